"""The fixtures of tests/conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
import torch

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture
def lacks(request: pytest.FixtureRequest) -> Callable[[str, str], NoReturn]:
    """`lacks` of tests/conftest.py."""
    manager = request.config.pluginmanager
    plugin = next(p for p in manager.get_plugins() if str(getattr(p, "__file__", "")).endswith("tests/conftest.py"))
    return plugin.lacks


def test_one_thread() -> None:
    assert torch.get_num_threads() == 1


def test_golden_is_the_folder_of_reference_numbers(golden: Path, repository: Path) -> None:
    assert golden == repository / "tests" / "golden"


def test_a_missing_tool_skips(lacks: Callable[[str, str], NoReturn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODETR_REQUIRE_ALL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="Chromium not found; install it"):
        lacks("Chromium", "install it")


def test_a_missing_tool_fails_in_continuous_integration(
    lacks: Callable[[str, str], NoReturn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODETR_REQUIRE_ALL", "1")
    with pytest.raises(pytest.fail.Exception, match="Chromium not found; install it"):
        lacks("Chromium", "install it")


@pytest.mark.browser
def test_a_page_runs_scripts(browser_page: Page) -> None:
    browser_page.set_content("<p id=answer></p><script>answer.textContent = 6 * 7</script>")
    assert browser_page.inner_text("#answer") == "42"
    assert browser_page.viewport_size == {"width": 1280, "height": 800}
