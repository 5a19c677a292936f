"""The App as a person sees it: `codetr fiftyone` serves it, a browser opens it."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from mongo_server import PATIENCE
from numpy.typing import NDArray
from PIL import Image, ImageColor

from codetr_lab.integrations.fiftyone.app import listens
from codetr_lab.viz.colors import head_color

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect, Page

pytestmark = [pytest.mark.fiftyone, pytest.mark.browser, pytest.mark.slow]
IMAGES = 8
VIEW = "Co-DETR finds, baseline misses"


@pytest.fixture(scope="module")
def address(fiftyone: Any, chromium: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dataset `seen` in the App, built and served by the command; Ctrl-C ends it and frees its port."""
    folder = tmp_path_factory.mktemp("app")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "codetr_lab.cli", "fiftyone", "--name", "seen", "--limit", str(IMAGES),
        "--media", str(folder), "--port", str(port),
    ]  # fmt: skip
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=(folder / "errors").open("w"), text=True)
    assert running.stdout is not None
    said = []
    for line in running.stdout:  # ends when the command does
        said.append(line)
        if line.startswith("FiftyOne is at"):
            break
    assert said[-1].startswith("FiftyOne is at"), "".join(said) + (folder / "errors").read_text()
    yield said[-1].split()[3]
    running.send_signal(signal.SIGINT)
    running.stdout.close()
    assert running.wait(timeout=PATIENCE) == 130
    assert not listens(port)


def picture(page: Page, box: FloatRect | None) -> NDArray[np.int64]:
    """(H,W,3) what the page shows inside a box."""
    assert box is not None
    clip = {"x": box["x"], "y": box["y"], "width": box["width"], "height": box["height"]}
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")).astype(int)  # type: ignore[arg-type]


def until(page: Page, condition: Callable[[], bool], what: str) -> None:
    for _ in range(PATIENCE):
        if condition():
            return
        page.wait_for_timeout(1000)
    pytest.fail(f"waited {PATIENCE} s until {what}")


def test_a_dataset_in_the_app(address: str, fiftyone: Any, browser_page: Page) -> None:
    page, lookers = browser_page, browser_page.locator("[data-cy=looker]")
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(address)
    page.get_by_text("Dismiss").click()  # an advertisement
    until(page, lambda: lookers.count() == IMAGES, "the grid shows every image")
    panel = page.locator("[data-cy=panel-content-iof_iob_curves]")
    until(page, lambda: f"mean of {IMAGES} images" in panel.inner_text(), "the plugin's panel is drawn")
    for model in ("lab_co_k2", "lab_baseline"):
        assert model in panel.inner_text()

    # The decoder's boxes go when its field is switched off; what went had its colour.
    def grid() -> NDArray[np.int64]:
        page.mouse.move(5, 5)
        return picture(page, lookers.nth(1).bounding_box())

    before = grid()
    page.locator("[data-cy=checkbox-detr]").click()
    until(page, lambda: bool((abs(grid() - before).sum(-1) > 30).sum() > 50), "boxes are gone")
    page.wait_for_timeout(500)
    after = grid()
    gone = abs(after - before).sum(-1) > 30
    color = np.array(ImageColor.getrgb(head_color("detr")))
    assert abs(before[gone] - color).sum() < abs(after[gone] - color).sum()

    gained = len(fiftyone.load_dataset("seen").load_saved_view(VIEW))
    assert 0 < gained < IMAGES
    page.locator("[data-cy=saved-views-selection]").click()
    page.locator("[data-cy=saved-views-co-detr-finds-baseline-misses-selection-option]").click()
    until(page, lambda: lookers.count() == gained, "the saved view is applied")
    until(page, lambda: f"mean of {gained} images" in panel.inner_text(), "the panel follows the view")

    box = lookers.first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 0.85 * box["height"])  # the upper part selects
    page.wait_for_selector("[data-cy=modal]")
    sample = page.locator("[data-cy=modal] canvas").first
    sample.wait_for()
    page.wait_for_timeout(1000)
    plain = picture(page, sample.bounding_box())
    page.locator("[data-cy=modal] [data-cy=checkbox-encoder_map]").click()

    def covered() -> bool:
        shown = picture(page, sample.bounding_box())
        return bool(shown.shape == plain.shape and (abs(shown - plain).sum(-1) > 30).mean() > 0.2)

    until(page, covered, "the heatmap lies over the image")
