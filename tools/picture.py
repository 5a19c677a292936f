"""Make `docs/workbench.png`, the README's picture of the workbench: `.venv/bin/python -m tools.picture`."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from apps import workbench
from codetr_lab.data.shapes import Shapes
from codetr_lab.doctor import CHROMIUM_MEND, find_chromium

PICTURE = Path(__file__).parents[1] / "docs" / "workbench.png"
QUERY = "tab=assign&object=0"
"""The state that is shown, as the page's address names it."""
WIDTH, HEIGHT = 1280, 800
PATIENCE = 300_000


def photograph(url: str, path: Path) -> None:
    """Write what a browser window shows of a running workbench, once everything is drawn."""
    with sync_playwright() as playwright:
        executable = find_chromium() or sys.exit(f"Chromium not found; {CHROMIUM_MEND}")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PATIENCE)
        page.goto(f"{url}?{QUERY}")
        page.wait_for_function("window.workbenchOpened === true")
        page.wait_for_selector(".panel-plot .main-svg >> visible=true")
        page.wait_for_function("() => !document.querySelector('.figure-grid[data-busy]')")
        page.wait_for_timeout(1000)  # Gradio's controls fade in
        page.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    models, missing = workbench.lab_models()
    workbench_page = workbench.build(models, Shapes(split="val"), missing)
    photograph(workbench.serve(workbench_page, workbench.free_port()), PICTURE)
    workbench_page.close(verbose=False)
    print(f"wrote {PICTURE}")
