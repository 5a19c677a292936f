"""Fixtures of the model room."""

from conftest_models import small

__all__ = ["small"]
