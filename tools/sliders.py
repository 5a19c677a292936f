"""How long every slider of the workbench takes to redraw its figures: `.venv/bin/python -m tools.sliders`.

In headless Chromium, from the input event in the page until the browser has drawn. Beside the wall clock it prints the
processor time, which other programs disturb less: the server's, and that of the page's main thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from apps import workbench
from apps.page import Page as Workbench
from codetr_lab.data.shapes import Shapes
from tools.picture import browser_page

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession, Page

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


def processor_seconds(session: CDPSession) -> float:
    """What the page's main thread has used."""
    return float({m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}["TaskDuration"])


def measure(page: Page, session: CDPSession, tab: str, grid: str) -> list[tuple[Any, ...]]:
    """Slider, and median and worst milliseconds of the wall clock, the server and the page."""
    rows = []
    for name, *scale in page.evaluate(_SLIDERS, grid):
        walls, servers, pages = [], [], []
        for value in values(*scale):
            server, thread = time.process_time(), processor_seconds(session)
            wall = page.evaluate(_MOVE, [name, str(value), grid])
            if wall is None:
                continue
            walls.append(wall)
            servers.append(1000 * (time.process_time() - server))
            pages.append(1000 * (processor_seconds(session) - thread))
        if walls:
            rows.append((tab, name, median(walls), max(walls), median(servers), median(pages)))
    return rows


def main() -> None:
    """Print one row per slider."""
    models, missing = workbench.lab_models()
    shown = Workbench(models, Shapes(split="val"), missing)
    url = workbench.serve(shown.blocks, workbench.free_port())
    rows = []
    with browser_page() as page:
        session = page.context.new_cdp_session(page)
        session.send("Performance.setTimeDomain", {"timeDomain": "threadTicks"})
        session.send("Performance.enable")
        grids = {
            "assign": "assign-grid",
            "discriminability": "dis-grid",
            "queries": "queries-grid",
            "heads": "heads-grid",
        }
        for tab, grid in tqdm(grids.items(), unit="tab"):
            page.goto(f"{url}?tab={tab}")
            page.wait_for_function("window.workbenchOpened === true")
            page.wait_for_selector(f"#{grid} .panel-plot .main-svg >> visible=true")
            page.wait_for_function("() => !document.querySelector('.figure-grid[data-busy]')")
            rows += measure(page, session, tab, grid)
    shown.blocks.close(verbose=False)
    print(f"{'tab':18}{'slider':32}{'median ms':>10}{'worst':>8}{'server CPU':>12}{'page CPU':>10}")
    for tab, name, middle, worst, server, thread in rows:
        print(f"{tab:18}{name:32}{middle:10.0f}{worst:8.0f}{server:12.0f}{thread:10.0f}")


if __name__ == "__main__":
    main()
