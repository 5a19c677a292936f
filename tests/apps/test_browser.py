"""The workbench in a real browser: numbers on the page equal the library's, and nothing leaves this machine."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import apps_case
import pytest
from PIL import Image

from apps import workbench
from apps.bench import Bench
from apps.page import Page as Workbench
from apps.picture import Picture
from codetr_lab.viz.score_map import decimals, point_at

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request

pytestmark = pytest.mark.browser
PATIENCE = 60_000
MODEL = "lab_co_k2"
TABS = ("assign", "discriminability", "queries", "heads", "training", "about")
WAITING: WeakKeyDictionary[Page, set[Request]] = WeakKeyDictionary()
"""What each page has asked for and not been given yet."""
GRIDS = {"discriminability": "dis"} | {tab: tab for tab in TABS if tab != "discriminability"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is going on."""
    folder = tmp_path_factory.mktemp("runs") / "live"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 10, "losses": {"encoder.class": 2.0}}) + "\n")
    return folder


@pytest.fixture(scope="module")
def shown(runs: Path) -> Iterator[tuple[str, Bench]]:
    made = Workbench(apps_case.models(), apps_case.images(), runs=runs)
    yield workbench.serve(made.blocks, workbench.free_port()), made.bench
    made.blocks.close(verbose=False)


@pytest.fixture
def url(shown: tuple[str, Bench]) -> str:
    return shown[0]


@pytest.fixture
def made(shown: tuple[str, Bench]) -> Bench:
    """The served page's own bench."""
    return shown[1]


@pytest.fixture
def page(browser_page: Page, url: str) -> Iterator[Page]:
    """A page that fails its test on any console error, or on any request to another host."""
    complaints: list[str] = []
    own = (url, url.replace("http", "ws"), "data:", "blob:")
    browser_page.set_default_timeout(PATIENCE)
    browser_page.on("console", lambda m: complaints.append(f"console: {m.text}") if m.type == "error" else None)
    browser_page.on("pageerror", lambda error: complaints.append(f"page: {error}"))
    browser_page.on("request", lambda r: None if r.url.startswith(own) else complaints.append(f"request: {r.url}"))
    watch_requests(browser_page)
    yield browser_page
    idle(browser_page)
    assert not complaints


def watch_requests(page: Page) -> None:
    """Count what the page asks for and what has been answered, for `idle`."""
    waiting: set[Request] = set()
    page.on("request", lambda r: None if "/heartbeat/" in r.url else waiting.add(r))  # it lasts as long as the page
    page.on("requestfinished", lambda r: waiting.discard(r))
    page.on("requestfailed", lambda r: waiting.discard(r))
    WAITING[page] = waiting


def idle(page: Page) -> None:
    """Wait until nothing that the page asked for is on its way: Gradio complains of events that a page leaves behind.

    An answer may be the cause of another question, which the page asks before it is idle again.
    """
    end = time.monotonic() + PATIENCE / 1000
    still = 0
    while still < 3:
        page.evaluate("() => new Promise((resolve) => requestIdleCallback(resolve))")
        busy = bool(WAITING[page]) or page.evaluate("() => !!document.querySelector('.figure-grid[data-busy]')")
        still = 0 if busy else still + 1
        page.wait_for_timeout(50 if busy else 0)
        assert time.monotonic() < end, f"the page still waits for {[r.url for r in WAITING[page]]}"


def opened(page: Page, url: str, query: str, tab: str) -> None:
    page.goto(url + query)
    until(page, "window.workbenchOpened === true")
    drawn(page, tab)


def drawn(page: Page, tab: str) -> None:
    """Wait until the tab's first figure is in the page."""
    grid = f"#{GRIDS[tab]}-grid"
    page.wait_for_selector(f"{grid} .panel-plot .main-svg >> visible=true")
    until(page, f"() => !document.querySelector('{grid} .figure-grid[data-busy]')")


def until(page: Page, script: str, argument: Any = None) -> None:
    page.wait_for_function(script, arg=argument, timeout=PATIENCE)


def notes(page: Page, tab: str, expected: list[str]) -> None:
    """Wait until the panels' notes are these, and their figures are drawn."""
    grid = f"#{GRIDS[tab]}-grid"
    listed = f"[...document.querySelectorAll('{grid} .panel-note')].map(n => n.innerText).join('|')"
    idle = f"!document.querySelector('{grid} .figure-grid[data-busy]')"
    until(page, f"e => {listed} === e && {idle}", "|".join(expected))


def type_into(page: Page, element: str, value: str) -> None:
    box = page.locator(f"#{element} input[type=number]")
    box.fill(value)
    box.press("Enter")


def keep_picture(page: Page, name: str) -> None:
    folder = Path(__file__).parents[2] / "test-artifacts"
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def counts(bench: Bench, image: int, **knobs: dict[str, float]) -> dict[str, list[int]]:
    made = bench.assignments(MODEL, Picture(image), knobs)
    return {head: a.count_per_object().tolist() for head, a in made.items() if not head.endswith(".rpn")}


def assign_notes(bench: Bench, image: int, chosen: int | None = None, **knobs: dict[str, float]) -> list[str]:
    made = bench.assignments(MODEL, Picture(image), knobs)
    words = []
    for head, numbers in counts(bench, image, **knobs).items():
        count = sum(numbers) if chosen is None else numbers[chosen]
        plural = "" if count == 1 else "s"
        words.append(f"{count} positive{plural} of {int(made[head].candidates.valid.sum())} candidates")
    return words


def table(page: Page) -> dict[str, list[int]]:
    cells = page.locator("#assign-table td[data-head]").evaluate_all(
        "cells => cells.map(c => [c.dataset.head, Number(c.innerText)])"
    )
    found: dict[str, list[int]] = {}
    for head, value in cells:
        found.setdefault(head, []).append(value)
    return found


SPOT = """([grid, panel, column, value]) => {
  const plot = document.querySelectorAll(`#${grid}-grid .panel-plot`)[panel];
  for (const points of plot.calcdata) {
    const trace = points[0].trace;
    if (!trace.customdata) continue;
    const index = [...trace.customdata].findIndex((row) => row[column] === value);
    if (index < 0) continue;
    const { xaxis, yaxis } = plot._fullLayout;
    const box = plot.getBoundingClientRect();
    const [x, y] = [xaxis._offset + xaxis.d2p(trace.x[index]), yaxis._offset + yaxis.d2p(trace.y[index])];
    return [box.x + x, box.y + y];
  }
}"""


def click_point(page: Page, grid: str, panel: int, value: float, script: str, argument: Any = None) -> None:
    """Click the marker whose customdata begins with `value`, until `script` holds: a redraw swallows a click."""
    for last in (False,) * 9 + (True,):
        page.locator(f"#{grid}-grid .panel-plot").nth(panel).scroll_into_view_if_needed()
        x, y = page.evaluate(SPOT, [grid, panel, 0, value])
        page.mouse.move(x - 3, y)
        page.mouse.move(x, y)
        page.mouse.click(x, y)
        from playwright.sync_api import TimeoutError

        try:
            page.wait_for_function(script, arg=argument, timeout=PATIENCE / 6)
            return
        except TimeoutError:
            if last:
                raise


def test_assign_shows_the_librarys_counts(page: Page, url: str, made: Bench) -> None:
    fetched: list[str] = []
    page.on("request", lambda r: fetched.append(r.url) if "/parts/" in r.url else None)
    opened(page, url, "?tab=assign&image=1", "assign")
    before = counts(made, 1)
    notes(page, "assign", assign_notes(made, 1))
    assert table(page) == before
    assert page.locator("#assign-table table").is_visible()
    points = page.evaluate(
        """() => [...document.querySelectorAll('#assign-grid .panel-plot')].map(plot =>
          plot._fullData.filter(t => t.mode === 'markers' && /^(matched|stride|own box)/.test(t.name))
            .reduce((sum, t) => sum + t.x.length, 0))"""
    )
    assert points == [sum(values) for values in before.values()]
    keep_picture(page, "assign-1280")

    turned = {"atss": {"top_k": 3.0}}
    after = counts(made, 1, **turned)
    assert after["atss"] != before["atss"]
    idle(page)
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url.partition("/gradio_api/")[2]) if r.method == "POST" else None)
    type_into(page, "assign-atss-top_k", "3")
    notes(page, "assign", assign_notes(made, 1, **turned))
    idle(page)
    assert asked and all(path.startswith("run/predict") for path in asked), "a slider waits in the queue"
    assert page.evaluate("JSON.stringify(localStorage).length") < 10_000, "answers are kept in the browser's storage"
    assert table(page) == after
    until(page, "() => window.location.search.includes('atss/top_k=3')")
    assert len(fetched) == len(set(fetched)), "a part of a figure was fetched twice"

    page.locator("#assign-object label").nth(1).click()
    until(page, "() => document.querySelector('#assign-table tr.chosen')")
    notes(page, "assign", assign_notes(made, 1, 0, **turned))

    atss = made.assignments(MODEL, Picture(1), turned)["atss"]
    chosen = int((atss.gt_index == 0).nonzero()[0])
    told = "n => document.querySelector('#assign-why').innerText.includes(n)"
    click_point(page, "assign", 1, chosen, told, f"candidate {chosen}")
    assert atss.explain(chosen) in page.locator("#assign-why").inner_text()
    assert page.locator("#assign-candidate input").input_value() == str(chosen)
    until(page, "n => new URL(window.location).searchParams.get('object') === '0'")


def test_a_shared_address_and_the_keyboard(page: Page, url: str, made: Bench) -> None:
    opened(page, url, "?tab=assign&image=3&head=faster_rcnn&candidate=5&atss/top_k=4", "assign")
    notes(page, "assign", assign_notes(made, 3, atss={"top_k": 4.0}))
    expected = made.seen(MODEL, Picture(3)).assignments["faster_rcnn"].explain(5)
    assert expected in page.locator("#assign-why").inner_text()
    page.locator("#assign-atss-top_k input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    notes(page, "assign", assign_notes(made, 3, atss={"top_k": 5.0}))
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input:not([type=file]), button, select, textarea')]
          .filter(e => e.offsetParent && !e.closest('.panel-plot'))
          .filter(e => !(e.labels && e.labels.length) && !e.ariaLabel && !e.innerText.trim() && !e.title
            && !e.getAttribute('aria-labelledby'))
          .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert not unnamed


def test_a_figure_is_saved_by_keyboard(page: Page, url: str, tmp_path: Path) -> None:
    opened(page, url, "?tab=assign&image=1", "assign")
    saved = {}
    for word, steps in (("png", 1), ("html", 2)):
        page.get_by_label("Save the figure ATSS", exact=True).focus()
        page.keyboard.press("Enter")
        for _ in range(steps):
            page.keyboard.press("Tab")
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        assert download.value.suggested_filename == f"atss.{word}"
        saved[word] = tmp_path / f"saved.{word}"
        download.value.save_as(saved[word])
    width = page.evaluate("document.querySelectorAll('#assign-grid .panel-plot')[1]._fullLayout.width")
    with Image.open(saved["png"]) as picture:
        assert picture.width == 2 * round(width + 16)
        assert len(picture.convert("RGB").getcolors(2**24)) > 1000, "the image is missing in the picture"
    drawn_names = "plot => plot._fullData.map(trace => trace.name)"
    names = page.locator("#assign-grid .panel-plot").nth(1).evaluate(drawn_names)
    alone = page.context.browser.new_context(offline=True)  # type: ignore[union-attr]
    try:
        copy = alone.new_page()
        copy.goto(saved["html"].as_uri(), timeout=PATIENCE)
        copy.wait_for_selector("#figure .main-svg image", timeout=PATIENCE)
        assert copy.locator("#figure").evaluate(drawn_names) == names
        assert copy.locator("h1").inner_text() == "ATSS"
        assert copy.locator("#figure image").first.get_attribute("href").startswith("data:image/")  # type: ignore[union-attr]
    finally:
        alone.close()


def test_the_threshold_moves_masks_and_points(page: Page, url: str, made: Bench) -> None:
    opened(page, url, "?tab=discriminability&image=1", "discriminability")
    for share in (40, 80):
        if share != 40:
            type_into(page, "dis-share", str(share))
        expected = []
        for model in ("lab_baseline", MODEL):
            scores = made.score_map(model, Picture(1), "encoder", -1)
            low, high = float(scores.min()), float(scores.max())
            limit = low + share / 100 * (high - low)
            curve = made.curve(model, Picture(1), "encoder", -1)
            assert curve is not None
            iof, iob = point_at(curve, limit)
            expected.append(f"S = {limit:.{decimals(low, high)}f}: IoF {iof:.2f}, IoB {iob:.2f}")
        notes(page, "discriminability", [*expected, "further to the upper right is better"])
    until(page, "() => document.querySelector('#dis-grid .panel-plot')._fullData.some(t => t.name === 'mask')")
    keep_picture(page, "discriminability-1280")
    page.get_by_label("Score", exact=True).click()
    page.get_by_role("option", name="decoder attention, matched queries").click()
    until(page, "() => !document.querySelector('#dis-level')")
    scores = made.score_map("lab_baseline", Picture(1), "matched", 2)
    limit = float(scores.min()) + 0.8 * float(scores.max() - scores.min())
    until(page, "n => document.querySelector('#dis-grid').innerText.includes(n)", f"S = {limit:.3f}")


def test_a_clicked_query_is_followed(page: Page, url: str, made: Bench) -> None:
    opened(page, url, "?tab=queries&image=1", "queries")
    assert "DETR decoder query 0, layer by layer" in page.locator("#queries-table").inner_text()
    page.locator("#queries-group label", has_text="ATSS").click()
    until(page, "() => document.querySelector('#queries-table').innerText.includes('ATSS query 0')")
    keep_picture(page, "queries-1280")
    click_point(page, "queries", 0, 7.0, "() => document.querySelector('#queries-query input').value === '7'")
    group = page.locator("#queries-group input:checked").input_value()
    seen = made.seen(MODEL, Picture(1)).trace.groups[group]
    score = float(seen.logits[0, 0, 7].sigmoid().max())
    until(page, "n => document.querySelector('#queries-table td').innerText === n", f"{score:.3f}")


def test_heads_counts_detections_above_the_slider(page: Page, url: str, made: Bench) -> None:
    opened(page, url, "?tab=heads&image=1", "heads")
    pairs = [("lab_baseline", "original"), *((MODEL, head) for head in made.heads(MODEL))]
    page.locator("#heads-judge input").uncheck()
    for score, nms in ((0.3, "own"), (0.02, "own"), (0.02, "none")):
        type_into(page, "heads-score", str(score))
        page.locator(f"#heads-nms input[value={nms}]").check()
        expected = []
        for model, head in pairs:
            count = int((made.detections(model, Picture(1), nms)[head].scores >= score).sum())  # type: ignore[arg-type]
            expected.append(f"{made.titles[model]}: {count} detection{'' if count == 1 else 's'}")
        notes(page, "heads", expected)
    keep_picture(page, "heads-1280")


def test_a_dragged_slider_shows_where_it_was_let_go(page: Page, url: str, made: Bench) -> None:
    opened(page, url, "?tab=assign&image=1", "assign")
    idle(page)
    page.evaluate(
        """async () => {
          const input = document.querySelector('#assign-atss-top_k input[type=range]');
          const value = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value');
          for (const k of [1, 25, 3, 24, 5, 23, 7, 22, 2]) {
            value.set.call(input, k);
            input.dispatchEvent(new Event('input', { bubbles: true }));
            await new Promise((resolve) => setTimeout(resolve, 15));
          }
        }"""
    )
    idle(page)
    turned = {"atss": {"top_k": 2.0}}
    notes(page, "assign", assign_notes(made, 1, **turned))
    assert table(page) == counts(made, 1, **turned)


def test_another_image_is_another_picture_in_every_tab(page: Page, url: str, made: Bench) -> None:
    opened(page, url, "?image=1", "assign")
    source = "document.querySelector('#{}-grid .panel-plot')._fullLayout.images[0].source"
    type_into(page, "image", "3")
    backdrop = made.seen(MODEL, Picture(3)).backdrop
    until(page, f"b => {source.format('assign')} === b", backdrop)
    notes(page, "assign", assign_notes(made, 3))
    assert table(page) == counts(made, 3)
    page.get_by_role("tab", name="Heads").click()
    drawn(page, "heads")
    until(page, f"b => {source.format('heads')} === b", backdrop)
    until(page, "() => /tab=heads&image=3/.test(window.location.search)")


def test_own_images_own_objects_and_broken_files(page: Page, url: str, made: Bench, tmp_path: Path) -> None:
    opened(page, url, "?tab=assign&image=1", "assign")
    page.get_by_role("button", name="Your own image, your own objects").click()
    (tmp_path / "drawing.jpg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "no.json").write_text('{"images": []}')
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "mine.png")
    choose = page.locator("input[type=file]").first
    for files, words in ((["drawing.jpg"], "drawing.jpg: is a vector drawing (SVG)"),
                         (["mine.png", "no.json"], "no.json: has no 'annotations'")):  # fmt: skip
        choose.set_input_files([tmp_path / name for name in files])
        until(page, "w => document.querySelector('#own-message').innerText.includes(w)", words)
        assert str(tmp_path) not in page.locator("#own-message").inner_text()
    choose.set_input_files(tmp_path / "mine.png")
    page.wait_for_selector("text=Your image, 90 x 60 pixels")
    size = "document.querySelector('#assign-grid .panel-plot')._fullLayout.images[0].sizey"
    until(page, f"() => {size} === 85")  # 128 x 85, as the model reads it
    until(page, "() => !document.querySelector('#assign-table td[data-head]')")

    page.locator("#own-box input, #own-box textarea").fill("10, 10, 40, 50")
    page.locator("#own-box input, #own-box textarea").press("Enter")
    until(page, "() => document.querySelectorAll('#assign-table td[data-head=atss]').length === 1")
    page.locator("#own-draw input").check()
    until(page, "() => document.querySelector('#assign-grid .panel-plot')._fullLayout.dragmode === 'drawrect'")
    plot = page.locator("#assign-grid .panel-plot .nsewdrag").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.6 * box["height"], steps=5)
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.9 * box["height"], steps=5)
    page.mouse.up()
    until(page, "() => document.querySelectorAll('#assign-table td[data-head=atss]').length === 2")
    keep_picture(page, "own-1280")
    page.get_by_role("button", name="Remove all objects").click()
    until(page, "() => !document.querySelector('#assign-table td[data-head]')")
    type_into(page, "image", "2")
    notes(page, "assign", assign_notes(made, 2))


def test_a_live_run_and_the_models_flow(page: Page, url: str, runs: Path) -> None:
    opened(page, url, "?tab=training&image=1", "training")
    steps = "document.querySelector('#training-grid .panel-plot')._fullData[0].x.length"
    until(page, f"() => {steps} === 1")
    with (runs / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 20, "losses": {"encoder.class": 1.0}}) + "\n")
    until(page, f"() => {steps} === 2")
    page.wait_for_selector("#training-relations .panel-plot .main-svg >> visible=true")
    keep_picture(page, "training-1280")
    page.get_by_role("tab", name="About this model").click()
    drawn(page, "about")
    until(page, "() => document.querySelector('#about-grid').innerText.includes('336 tokens')")
    until(page, "() => window.location.search.includes('tab=about')")
    clips = page.locator("#about-grid [clip-path]").evaluate_all("e => e.map(x => x.getAttribute('clip-path'))")
    assert clips and not [clip for clip in clips if "http" in clip], "these clips fail when the address changes"
    keep_picture(page, "about-1280")


def test_phone_width_needs_no_sideways_scrolling(page: Page, url: str, runs: Path) -> None:
    (runs / "run.json").write_text('{"finished": true}')  # a page that asks every few seconds cannot be left in peace
    page.set_viewport_size({"width": 400, "height": 800})
    for number, tab in enumerate(TABS):
        scheme = ("light", "dark")[number % 2]
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        opened(page, url, f"?tab={tab}&image=1", tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, tab
        right = page.locator(f"#{GRIDS[tab]}-grid .panel").evaluate_all(
            "p => p.map(x => x.getBoundingClientRect().right)"
        )
        assert max(right) <= 400
        assert re.search(r"\w", page.locator(".intro:visible").inner_text())
        keep_picture(page, f"{tab}-400-{scheme}")
        idle(page)
