"""Fixtures of the model room."""

from __future__ import annotations

import pytest
from conftest_models import small

__all__ = ["backend", "small"]


@pytest.fixture(params=["compiled", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deformable attention by the compiled operator, then by the formula."""
    monkeypatch.delenv("CODETR_OPS", raising=False)
    if request.param == "reference":
        monkeypatch.setenv("CODETR_OPS", "reference")
    else:
        request.getfixturevalue("needs_operator")
