"""How long every slider of the workbench takes to redraw its figures: `.venv/bin/python -m tools.sliders`.

In headless Chromium, which draws without a graphics card, from the input event in the page until the browser has drawn.
It is the wall clock that is read: the machine must have nothing else to do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from statistics import median

from playwright.sync_api import Page, sync_playwright
from tqdm.auto import tqdm

from apps import workbench
from apps.page import Page as Workbench
from codetr_lab.data.shapes import Shapes
from codetr_lab.doctor import CHROMIUM_MEND, find_chromium

MOVES = 12
GRIDS = {"assign": "assign-grid", "discriminability": "dis-grid", "queries": "queries-grid", "heads": "heads-grid"}
_MOVE = """async ([id, value, grid]) => {
  const input = document.querySelector(`#${id} input[type=range]`);
  const figures = document.querySelector(`#${grid} .figure-grid`);
  const drawn = new Promise((resolve) => {
    let began = false;
    const observer = new MutationObserver(() => {
      began ||= "busy" in figures.dataset;
      if (!began || "busy" in figures.dataset) return;
      observer.disconnect();
      requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now())));
    });
    observer.observe(figures, { attributes: true, attributeFilter: ["data-busy"] });
    setTimeout(() => resolve(null), 10000); // the figures stay as they are
  });
  const start = performance.now();
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(input, value);
  input.dispatchEvent(new Event("input", { bubbles: true }));
  const end = await drawn;
  return end && end - start;
}"""
_SLIDERS = """(grid) => [...document.querySelectorAll(".tabitem input[type=range]")]
  .filter((input) => input.offsetParent)
  .map((input) => [input.closest(".block[id]").id, +input.min, +input.max, +input.step, +input.value])"""


def values(least: float, most: float, step: float, now: float) -> Iterator[float]:
    """Places of a slider, none of them twice in a row, the first not `now`."""
    places = [p for p in (least + step * round((most - least) * k / 7 / step) for k in range(8)) if p <= most]
    for _ in range(MOVES):
        now = next(p for p in (*places[places.index(now) + 1 :], *places) if p != now) if now in places else places[0]
        yield now


def measure(page: Page, tab: str, grid: str) -> list[tuple[str, str, float, float]]:
    """Tab, slider, and the median and the worst milliseconds; sliders that never changed a figure are left out."""
    rows = []
    for name, *scale in page.evaluate(_SLIDERS, grid):
        found = [page.evaluate(_MOVE, [name, str(value), grid]) for value in values(*scale)]
        walls = [wall for wall in found if wall is not None]
        if walls:
            rows.append((tab, name, median(walls), max(walls)))
    return rows


def main() -> None:
    """Print one row per slider."""
    models, missing = workbench.lab_models()
    shown = Workbench(models, Shapes(split="val"), missing)
    url = workbench.serve(shown.blocks, workbench.free_port())
    rows = []
    with sync_playwright() as playwright:
        executable = find_chromium() or sys.exit(f"Chromium not found; {CHROMIUM_MEND}")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(300_000)
        for tab, grid in tqdm(GRIDS.items(), unit="tab"):
            page.goto(f"{url}?tab={tab}")
            page.wait_for_function("window.workbenchOpened === true")
            page.wait_for_selector(f"#{grid} .panel-plot .main-svg >> visible=true")
            page.wait_for_function("() => !document.querySelector('.figure-grid[data-busy]')")
            rows += measure(page, tab, grid)
        browser.close()
    shown.blocks.close(verbose=False)
    print(f"{'tab':18}{'slider':32}{'median ms':>10}{'worst':>8}")
    for tab, name, middle, worst in rows:
        print(f"{tab:18}{name:32}{middle:10.0f}{worst:8.0f}")


if __name__ == "__main__":
    main()
