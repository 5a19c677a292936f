"""What the tests of the workbench share."""

from __future__ import annotations

import apps_case
import pytest

pytest.importorskip("gradio", reason='gradio not found; pip install -e ".[app]" -c constraints.txt')

from apps.bench import Bench
from apps.page import Page


@pytest.fixture(scope="session")
def page_of_tests() -> Page:
    """The page on small models with random weights, not served."""
    return Page(apps_case.models(), apps_case.images())


@pytest.fixture(scope="session")
def bench(page_of_tests: Page) -> Bench:
    return page_of_tests.bench
