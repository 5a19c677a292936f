"""The workbench in a real browser: numbers on the page equal the library's, and nothing leaves this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import apps_case
import pytest
from PIL import Image

from apps import workbench
from apps.bench import Bench

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
PATIENCE = 60_000


@pytest.fixture(scope="module")
def url(bench: Bench) -> Iterator[str]:
    page = workbench.build(bench.models, apps_case.images())
    yield workbench.serve(page, workbench.free_port())
    page.close(verbose=False)


@pytest.fixture
def page(browser_page: Page, url: str) -> Iterator[Page]:
    """A page that fails its test on any console error, or on any request to another host."""
    complaints: list[str] = []
    own = (url, url.replace("http", "ws"), "data:", "blob:")
    browser_page.set_default_timeout(PATIENCE)
    browser_page.on("console", lambda m: complaints.append(f"console: {m.text}") if m.type == "error" else None)
    browser_page.on("pageerror", lambda error: complaints.append(f"page: {error}"))
    browser_page.on("request", lambda r: None if r.url.startswith(own) else complaints.append(f"request: {r.url}"))
    yield browser_page
    assert not complaints


def opened(page: Page, url: str, query: str, tab: str) -> None:
    page.goto(url + query)
    page.wait_for_selector(f"#{tab}-grid .panel-plot .main-svg >> visible=true")
    page.wait_for_function("window.workbenchOpened === true")


def table(page: Page) -> dict[str, list[int]]:
    cells = page.locator("#assign-table td[data-head]").evaluate_all(
        "cells => cells.map(c => [c.dataset.head, Number(c.innerText)])"
    )
    found: dict[str, list[int]] = {}
    for head, value in cells:
        found.setdefault(head, []).append(value)
    return found


def counts(bench: Bench, image: int, top_k: int = 9, iou: float = 0.5) -> dict[str, list[int]]:
    made = bench.assignments("lab_co_k2", image, top_k, iou)
    return {head: assignment.count_per_object().tolist() for head, assignment in made.items()}


def notes(page: Page, tab: str) -> list[str]:
    return page.locator(f"#{tab}-grid .panel-note").all_inner_texts()


def type_into(page: Page, element: str, value: str) -> None:
    box = page.locator(f"#{element} input[type=number]")
    box.fill(value)
    box.press("Enter")


def wait_until(page: Page, script: str, argument: object = None) -> None:
    page.wait_for_function(script, arg=argument, timeout=PATIENCE)


def keep_picture(page: Page, name: str) -> None:
    folder = Path(__file__).parents[2] / "test-artifacts"
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def test_assign_shows_the_librarys_counts(page: Page, url: str, bench: Bench) -> None:
    opened(page, url, "?tab=assign&image=1", "assign")
    before = counts(bench, 1)
    assert table(page) == before
    drawn = page.evaluate(
        """() => [...document.querySelectorAll('#assign-grid .panel-plot')].map(plot =>
          plot._fullData.filter(t => t.mode === 'markers' && /^(matched|stride|own box)/.test(t.name))
            .reduce((sum, t) => sum + t.x.length, 0))"""
    )
    assert drawn == [sum(values) for values in before.values()]
    keep_picture(page, "assign-1280")

    after = counts(bench, 1, top_k=3)
    assert after["atss"] != before["atss"]
    type_into(page, "assign-top-k", "3")
    wait_until(
        page, "n => document.querySelector('#assign-grid').innerText.includes(n)", f"{sum(after['atss'])} positiv"
    )
    assert table(page) == after

    page.locator("#assign-object label").nth(1).click()
    wait_until(page, "() => document.querySelector('#assign-table tr.chosen')")
    assert re.match(rf"{after['atss'][0]} positives? of 340", notes(page, "assign")[1])
    wait_until(page, "() => new URL(window.location).searchParams.get('object') === '0'")


def test_a_click_explains_the_candidate(page: Page, url: str, bench: Bench) -> None:
    opened(page, url, "?image=1", "assign")
    atss = bench.seen("lab_co_k2", 1).assignments["atss"]
    chosen = int(atss.positive.nonzero()[0])
    spot = page.evaluate(
        """candidate => {
          const plot = document.querySelectorAll('#assign-grid .panel-plot')[1];
          for (const points of plot.calcdata) {
            const trace = points[0].trace;
            if (!trace.customdata) continue;
            const index = [...trace.customdata].findIndex(row => row[0] === candidate);
            if (index < 0) continue;
            const { xaxis, yaxis } = plot._fullLayout;
            const box = plot.getBoundingClientRect();
            const across = xaxis._offset + xaxis.d2p(trace.x[index]);
            return [box.x + across, box.y + yaxis._offset + yaxis.d2p(trace.y[index])];
          }
        }""",
        chosen,
    )
    page.mouse.move(*spot)
    page.mouse.click(*spot)
    wait_until(page, "n => document.querySelector('#assign-why').innerText.includes(n)", f"candidate {chosen}")
    assert atss.explain(chosen) in page.locator("#assign-why").inner_text()
    assert page.locator("#assign-candidate input").input_value() == str(chosen)


def test_a_number_explains_as_well_as_a_click(page: Page, url: str, bench: Bench) -> None:
    opened(page, url, "?image=1", "assign")
    page.locator("#assign-head label").nth(2).click()
    type_into(page, "assign-candidate", "5")
    wait_until(page, "() => document.querySelector('#assign-why').innerText.includes('Faster R-CNN, candidate 5')")
    expected = bench.seen("lab_co_k2", 1).assignments["faster_rcnn"].explain(5)
    assert expected in page.locator("#assign-why").inner_text()


def test_heads_counts_detections_above_the_slider(page: Page, url: str, bench: Bench) -> None:
    opened(page, url, "?tab=heads&image=1", "heads")
    shown = [("lab_baseline", "original"), *(("lab_co_k2", head) for head in bench.heads("lab_co_k2"))]
    for score in (0.3, 0.02):
        type_into(page, "heads-score", str(score))
        expected = []
        for model, head in shown:
            count = int((bench.seen(model, 1).detections[head].scores >= score).sum())
            expected.append(f"{bench.titles[model]}: {count} detection{'' if count == 1 else 's'}")
        listed = "[...document.querySelectorAll('#heads-grid .panel-note')].map(n => n.innerText)"
        wait_until(page, f"e => {listed}.join() === e", ",".join(expected))
    keep_picture(page, "heads-1280")


def test_another_image_is_another_picture_in_both_tabs(page: Page, url: str, bench: Bench) -> None:
    opened(page, url, "?image=1", "assign")
    source = "() => document.querySelector('#assign-grid .panel-plot')._fullLayout.images[0].source"
    first = page.evaluate(source)
    type_into(page, "image", "3")
    wait_until(page, f"before => ({source})() !== before", first)
    assert table(page) == counts(bench, 3)
    page.get_by_role("tab", name="Heads").click()
    page.wait_for_selector("#heads-grid .panel-plot .main-svg >> visible=true")
    assert page.evaluate(source.replace("assign", "heads")) == page.evaluate(source)


def test_own_image_and_a_broken_one(page: Page, url: str, tmp_path: Path) -> None:
    opened(page, url, "?tab=heads", "heads")
    (tmp_path / "drawing.jpg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "drawing.jpg")
    page.wait_for_selector("#heads-message .warning")
    message = page.locator("#heads-message").inner_text()
    assert "drawing.jpg: is a vector drawing (SVG)" in message
    assert str(tmp_path) not in message
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "mine.png")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "mine.png")
    page.wait_for_selector("text=Your image, 90 x 60 pixels")
    width = "document.querySelector('#heads-grid .panel-plot')._fullLayout.images[0].sizex"
    wait_until(page, f"() => {width} === 90")
    page.locator("#heads-clear").click()
    wait_until(page, f"() => {width} === 128")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_needs_no_sideways_scrolling(page: Page, url: str, scheme: str) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.emulate_media(color_scheme=scheme)
    for tab in ("assign", "heads"):
        opened(page, url, f"?tab={tab}&image=1", tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        right = page.locator(f"#{tab}-grid .panel").evaluate_all("p => p.map(x => x.getBoundingClientRect().right)")
        assert max(right) <= 400
        keep_picture(page, f"{tab}-400-{scheme}")
