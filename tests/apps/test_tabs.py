"""What the tabs show: numbers in the page's text equal the library's."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from apps import style
from apps.assign_tab import ALL, AssignTab
from apps.bench import Bench
from apps.discriminability_tab import DiscriminabilityTab
from apps.heads_tab import HeadsTab
from apps.page import Page
from apps.parts import PARTS
from apps.picture import Picture
from apps.queries_tab import QueriesTab
from apps.tab import Tab, restored, url_value
from apps.training_tab import TrainingTab
from codetr_lab.analysis import discriminability, iof_iob_curve, query_distances
from codetr_lab.analysis.verdicts import verdicts
from codetr_lab.viz import object_names
from codetr_lab.viz.flow import count
from codetr_lab.viz.queries import refinement
from codetr_lab.viz.score_map import decimals, point_at

MODEL = "lab_co_k2"


def tab_of(page: Page, kind: type[Tab]) -> Any:
    return next(tab for tab in page.tabs if isinstance(tab, kind))


def shown(
    page: Page, kind: type[Tab], picture: Picture | None = None, fresh: bool = False, **changes: Any
) -> dict[str, Any]:
    """What `show` gives for picture 1 or another, by the names of controls and the tab's attributes."""
    tab = tab_of(page, kind)
    values = {name: control.value for name, control in tab.controls.items()}
    made = tab.show(picture or Picture(1), values | changes, fresh)
    names = {control: name for name, control in tab.controls.items()}
    names |= {value: name for name, value in vars(tab).items() if isinstance(value, gr.components.Component)}
    return {names.get(component, str(component)): value for component, value in made.items()}


def traces(panel: dict[str, Any]) -> list[dict[str, Any]]:
    """A panel's traces, the large ones fetched as the page does."""
    found = []
    for trace in panel["figure"]["data"]:
        part = PARTS.get(trace["part"]) if "part" in trace else None
        found.append(json.loads(part[0]) if part else trace)
    return found


def cells(table: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for head, value in re.findall(r'<td data-head="(\w+)">.*?<span>(\d+)</span>', table):
        found.setdefault(head, []).append(int(value))
    return found


# --- Assign


def test_assign_table_and_notes_hold_the_counts(page_of_tests: Page, bench: Bench) -> None:
    made = bench.seen(MODEL, Picture(1)).assignments
    counts = {head: a.count_per_object() for head, a in made.items() if not head.endswith(".rpn")}
    for chosen in (ALL, 0):
        page = shown(page_of_tests, AssignTab, object=chosen)
        assert cells(page["table"]) == {head: c.tolist() for head, c in counts.items()}
        panels = json.loads(page["grid"])
        assert [panel["name"] for panel in panels] == ["original", "atss", "faster_rcnn"]
        for panel in panels:
            expected = int(counts[panel["name"]].sum() if chosen == ALL else counts[panel["name"]][chosen])
            assert re.match(rf"{expected} positives? of", panel["note"])
    with_rpn = shown(page_of_tests, AssignTab, rpn=True, fresh=True)
    assert len(json.loads(with_rpn["grid"])) == 4
    assert ("Faster R-CNN: RPN", "faster_rcnn.rpn") in with_rpn["head"].choices


def test_why_is_the_assignments_own_explanation(page_of_tests: Page, bench: Bench) -> None:
    atss = bench.seen(MODEL, Picture(1)).assignments["atss"]
    index = int(atss.positive.nonzero()[0])
    page = shown(page_of_tests, AssignTab, head="atss", candidate=index)
    assert atss.explain(index) in html.unescape(page["why"])
    assert "chosen candidate" in [trace.get("name") for trace in traces(json.loads(page["grid"])[1])]
    assert "Click a point" in shown(page_of_tests, AssignTab)["why"]
    for outside in (340, -1):
        assert "0 to 339" in shown(page_of_tests, AssignTab, head="atss", candidate=outside)["why"]


def test_sliders_assign_again_and_a_fresh_model_resets(page_of_tests: Page, bench: Bench) -> None:
    turned = bench.assignments(MODEL, Picture(1), {"atss": {"top_k": 3}})["atss"]
    page = shown(page_of_tests, AssignTab, **{"atss/top_k": 3})
    assert cells(page["table"])["atss"] == turned.count_per_object().tolist()
    names = object_names(bench.seen("lab_baseline", Picture(2)).target, bench.classes)
    page = shown(
        page_of_tests, AssignTab, Picture(2), True, model="lab_baseline", head="atss", candidate=3, object=99,
        reset=True, **{"original/l1": 9},
    )  # fmt: skip
    assert [label for label, _ in page["object"].choices] == ["all objects", *names]
    assert (page["object"].value, page["head"].value, page["candidate"]) == (ALL, "original", None)
    assert page["original/l1"] == 5
    groups = tab_of(page_of_tests, AssignTab)._groups
    visible = {head: page[str(group)].visible for head, group in groups.items()}
    assert visible == {"original": True, "atss": False, "faster_rcnn": False, "faster_rcnn.rpn": False}


# --- Discriminability


def test_masks_and_curves_read_equations_7_and_8(page_of_tests: Page, bench: Bench) -> None:
    page = shown(page_of_tests, DiscriminabilityTab, share=70, moved="share")
    assert page["view"] == "mask"
    panels = {panel["name"]: panel for panel in json.loads(page["grid"])}
    assert list(panels) == ["left", "right", "curves"]
    for side, model in (("left", "lab_baseline"), ("right", MODEL)):
        scores = discriminability(bench.seen(model, Picture(1)).trace.memory, (128, 128))[0, 0]
        low, high = float(scores.min()), float(scores.max())
        limit = low + 0.7 * (high - low)
        curve = iof_iob_curve(scores, bench.foreground(model, Picture(1)))
        iof, iob = point_at(curve, limit)
        assert panels[side]["note"] == f"S = {limit:.{decimals(low, high)}f}: IoF {iof:.2f}, IoB {iob:.2f}"
        assert f"<td>{curve.area():.3f}</td>" in page["table"]
        mark = next(t for t in traces(panels["curves"]) if t.get("mode") == "markers" and side in t["name"])
        assert (mark["y"][0], mark["x"][0]) == pytest.approx((iof, iob))
    score = shown(page_of_tests, DiscriminabilityTab, view="score")
    assert traces(json.loads(score["grid"])[0])[0]["type"] == "heatmap"


def test_levels_layers_and_images_without_objects(page_of_tests: Page, bench: Bench) -> None:
    page = shown(page_of_tests, DiscriminabilityTab, fresh=True, what="matched", layer=2)
    assert (page["level"].visible, page["layer"].visible) == (False, True)
    attention = bench.score_map(MODEL, Picture(1), "matched", 2)
    assert f"S = {float(attention.min()) + 0.4 * float(attention.max() - attention.min()):.3f}" in page["grid"]
    empty = shown(page_of_tests, DiscriminabilityTab, Picture(1, drawn=()))
    assert "needs an image with objects" in empty["table"]
    assert len(json.loads(empty["grid"])) == 2


# --- Queries


def test_queries_tell_layer_by_layer(page_of_tests: Page, bench: Bench) -> None:
    seen = bench.seen(MODEL, Picture(1))
    page = shown(page_of_tests, QueriesTab, fresh=True, group="atss", query=2, layer=2)
    rows = refinement(seen.trace.groups["atss"], 2, seen.scene.size, seen.target)
    for layer, row in enumerate(rows, 1):
        assert f'<th scope="row">{layer}</th><td>{row["score"]:.3f}</td><td>{row["iou"]:.3f}</td>' in page["table"]
    panels = {panel["name"]: panel for panel in json.loads(page["grid"])}
    assert list(panels) == ["map", "look", "distances"]
    bars = {trace["name"]: list(trace["y"]) for trace in traces(panels["distances"])}
    expected = query_distances(seen.trace)["atss"]["positive"]
    assert bars["ATSS"] == pytest.approx(list(expected.values()))
    assert panels["look"]["title"] == "ATSS query 2"
    outside = shown(page_of_tests, QueriesTab, query=999)
    assert "There is no query 999; this group has 0 to 49" in outside["table"]
    baseline = shown(page_of_tests, QueriesTab, fresh=True, model="lab_baseline", group="atss", object=77)
    assert (baseline["group"].value, baseline["object"].value) == ("original", ALL)


# --- Heads


@pytest.mark.parametrize(("score", "nms"), [(0.0, "own"), (0.02, "own"), (0.02, "none"), (0.02, "all"), (1.0, "own")])
def test_heads_counts_and_verdicts(page_of_tests: Page, bench: Bench, score: float, nms: Any) -> None:
    page = shown(page_of_tests, HeadsTab, score=score, nms=nms, nms_iou=0.5)
    panels = json.loads(page["grid"])
    names = ["lab_baseline/original", f"{MODEL}/original", f"{MODEL}/atss", f"{MODEL}/faster_rcnn"]
    assert [panel["name"] for panel in panels] == names
    for panel in panels:
        model, head = panel["name"].split("/")
        found = bench.detections(model, Picture(1), nms, 0.5)[head]
        found = found.select(found.scores >= score)
        judged = verdicts(found, bench.seen(model, Picture(1)).target)
        expected = f"{len(found)} detections?; {int(judged.right.sum())} right, {int(judged.missed.sum())} missed$"
        assert re.search(expected, panel["note"]), panel["note"]


def test_ap_of_every_head(page_of_tests: Page, bench: Bench) -> None:
    table = tab_of(page_of_tests, HeadsTab).measured(["lab_baseline"], 2, progress=lambda *_, **__: None)
    assert style.number(bench.metrics("lab_baseline", 2)["detr"]["AP50"]) in table
    assert "On the first 2 images of shapes" in table
    assert "Choose a model" in tab_of(page_of_tests, HeadsTab).measured([], 2, progress=lambda *_, **__: None)


# --- Conflicts and training, About


def test_training_curves_and_relations(page_of_tests: Page, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"step": 10, "losses": {"decoder.original.0.class": 2.0, "aux.atss.box": 1.0}}) + "\n"
        + json.dumps({"step": 10, "metrics": {"detr": {"AP": 0.25}}}) + "\n"
    )  # fmt: skip
    looks = [{"step": s, "matches": [[[1, s % 2]]], "positives": {"original": 1.0, "atss": 4.0}} for s in (1, 2)]
    (tmp_path / "looks.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
    with gr.Blocks():
        tab = TrainingTab(page_of_tests.bench, MODEL, tmp_path)
    values = {name: control.value for name, control in tab.controls.items()}
    assert values["run"] == tmp_path.name
    made = tab.show(Picture(1), values, True)
    panels = {panel["name"]: panel for panel in json.loads(made[tab.grid])}
    assert list(panels) == ["losses", "metrics", "instability", "positives"]
    assert traces(panels["instability"])[0]["y"] == [1.0]
    assert traces(panels["metrics"])[0]["y"] == [0.25]
    assert made[tab.timer].active
    (relation, _) = json.loads(made[tab.relations])
    assert len(traces(relation)[0]["x"]) == 3
    (tmp_path / "run.json").write_text('{"finished": true}')
    assert not tab.show(Picture(1), values, False)[tab.timer].active
    table = json.loads(tab.compared(MODEL, 1, progress=lambda *_, **__: None)[tab.relations])
    assert "mean over 1 image;" in table[0]["note"]
    assert "--run" in shown(page_of_tests, TrainingTab)["words"]


def test_about_tells_the_models_numbers(page_of_tests: Page, bench: Bench) -> None:
    from apps.about_tab import AboutTab

    page = shown(page_of_tests, AboutTab)
    (panel,) = json.loads(page["grid"])
    total = sum(p.numel() for p in bench.models[MODEL].parameters())
    assert panel["note"].startswith(f"{count(total)} parameters")
    assert "&quot;num_queries&quot;: 50" in page["facts"]


# --- the URL


def test_a_url_gives_back_what_it_was_given(page_of_tests: Page) -> None:
    for tab in page_of_tests.tabs:
        values = {name: control.value for name, control in tab.controls.items()}
        query = {name: url_value(value) for name, value in values.items() if value is not None}
        assert restored(tab.controls, query) == {name: values[name] for name in query}


@pytest.mark.parametrize(
    ("name", "text"),
    [("model", "../../etc"), ("atss/top_k", "99"), ("atss/top_k", "nan"), ("candidate", "x"), ("object", "9" * 30),
     ("rpn", "maybe"), ("nothing", "1")],
)  # fmt: skip
def test_what_a_control_cannot_have_is_passed_over(page_of_tests: Page, name: str, text: str) -> None:
    assert restored(tab_of(page_of_tests, AssignTab).controls, {name: text}) == {}


def test_restore_opens_what_the_address_names(page_of_tests: Page) -> None:
    query = {"tab": "queries", "image": "2", "query": "7", "group": "atss", "layer": "3", "object": "1"}
    tab = tab_of(page_of_tests, QueriesTab)
    made = page_of_tests.restore(SimpleNamespace(query_params=query))
    assert made[page_of_tests.source.image] == 2 and made[page_of_tests.active] == "queries"
    assert (made[tab.controls["query"]], made[tab.controls["group"]].value, made[tab.controls["layer"]].value) == (
        7, "atss", 3,
    )  # fmt: skip
    assert made[tab.controls["object"]].value == 1
    assert "ATSS query 7" in made[tab.table]
    made = page_of_tests.restore(SimpleNamespace(query_params={"tab": "nonsense", "image": "1e9"}))
    assert (made[page_of_tests.source.image], made[page_of_tests.active]) == (page_of_tests.first, "assign")


def test_words_from_data_are_escaped() -> None:
    table = style.count_table({"atss": [1]}, ["0 <script>"], None)
    assert "<script>" not in table + style.plain_table("<script>", ["<script>"], [["<script>", "<script>"]])
    assert "<b>x" not in style.warning("<b>x") + style.hint("<b>x")


def test_every_tab_explains_itself_and_links_on(page_of_tests: Page, repository: Path) -> None:
    course = sorted(path.name for path in (repository / "notebooks").glob("[0-9]*.ipynb"))
    assert style.notebooks() == course
    pages = [str(block.value) for block in page_of_tests.blocks.blocks.values() if isinstance(block, gr.HTML)]
    introductions = [text for text in pages if 'class="intro"' in text]
    assert len(introductions) == len(page_of_tests.tabs)
    for text in introductions:
        assert re.search(r"Eq\. \d|AP is", text) and style.PAPER in text
    linked = {name for text in introductions for name in re.findall(r'href="notebooks/(\w+\.ipynb)"', text)}
    assert linked and linked <= set(course)
    assert "missing" not in style.intro("Two sentences.", "E = mc<sup>2</sup>", "99_missing")
