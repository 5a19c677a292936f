"""What every test shares: one thread, no telemetry, the golden files, and a browser."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")

import pytest
import torch

from codetr_lab import doctor
from codetr_lab.ops import compiled

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

torch.set_num_threads(1)

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # The same examples every time; no deadline, because the first call of an operation is slow.
    settings.register_profile("lab", deadline=None, derandomize=True, max_examples=50)
    settings.load_profile("lab")


def lacks(what: str, mend: str) -> NoReturn:
    """Skip a test for want of a tool, or fail where nothing may be skipped (CODETR_REQUIRE_ALL=1)."""
    reason = f"{what} not found; {mend}"
    if os.environ.get("CODETR_REQUIRE_ALL") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks that `--nbmake` collects carry the marker `notebook`."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.notebook)


@pytest.fixture
def needs_operator() -> None:
    """The compiled operator; skipped without it, failed where nothing may be skipped."""
    if compiled.NOT_LOADED:
        lacks("the compiled operator", compiled.NOT_LOADED)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference numbers, `tests/golden`."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def mongod() -> str:
    """The database that FiftyOne will use; the test is skipped where there is none."""
    return doctor.find_mongod() or lacks("mongod", doctor.MONGOD_MEND)


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The browser's program, and playwright to drive it; the test is skipped where one of them is missing."""
    if not importlib.util.find_spec("playwright"):
        lacks("playwright", 'pip install -e ".[dev]" -c constraints.txt')
    return doctor.find_chromium() or lacks("Chromium", doctor.CHROMIUM_MEND)


@pytest.fixture(scope="module")
def browser(chromium: Path) -> Iterator[Browser]:
    """Headless Chromium. One per module: while it runs, its event loop occupies the thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def browser_page(browser: Browser) -> Iterator[Page]:
    """A fresh page of 1280 x 800 pixels in its own context."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context.new_page()
    context.close()
