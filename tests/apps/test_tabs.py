"""The tabs' functions: numbers in the page's text equal the library's."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from apps import style
from apps.assign_tab import ALL, AssignTab, Look, show
from apps.bench import Bench
from apps.heads_tab import HeadsTab
from codetr_lab.viz import object_names


@pytest.fixture(scope="module")
def tabs(bench: Bench) -> tuple[AssignTab, HeadsTab]:
    with gr.Blocks():
        image = gr.Slider(0, 7)
        return AssignTab(bench, image, "lab_co_k2"), HeadsTab(bench, image, ["lab_baseline", "lab_co_k2"])


def look(**changes: Any) -> Look:
    setting = {
        "model": "lab_co_k2", "image": 1, "object": ALL, "top_k": 9, "iou": 0.5, "head": "atss", "candidate": None,
    }  # fmt: skip
    return Look(**(setting | changes))


def cells(table: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for head, value in re.findall(r'<td data-head="(\w+)">.*?<span>(\d+)</span>', table):
        found.setdefault(head, []).append(int(value))
    return found


def test_table_holds_the_counts(bench: Bench) -> None:
    _, table, _ = show(bench, look())
    seen = bench.seen("lab_co_k2", 1)
    assert cells(table) == {head: a.count_per_object().tolist() for head, a in seen.assignments.items()}
    assert cells(table)["original"] == [1] * len(seen.scene.target["labels"])


def test_panels_note_what_is_shown(bench: Bench) -> None:
    seen = bench.seen("lab_co_k2", 1)
    for chosen in (ALL, 0):
        panels = json.loads(show(bench, look(object=chosen))[0])
        assert [panel["name"] for panel in panels] == ["original", "atss", "faster_rcnn"]
        for panel in panels:
            counts = seen.assignments[panel["name"]].count_per_object()
            expected = int(counts.sum() if chosen == ALL else counts[chosen])
            assert re.match(rf"{expected} positives? of", panel["note"])


def test_why_is_the_assignments_own_explanation(bench: Bench) -> None:
    atss = bench.seen("lab_co_k2", 1).assignments["atss"]
    index = int(atss.positive.nonzero()[0])
    assert atss.explain(index) in html.unescape(show(bench, look(candidate=index))[2])
    assert "Click a point" in show(bench, look())[2]
    assert "0 to 339" in show(bench, look(candidate=340))[2]
    assert "0 to 339" in show(bench, look(candidate=-1))[2]


def test_scene_resets_and_hides_what_a_model_lacks(bench: Bench, tabs: tuple[AssignTab, HeadsTab]) -> None:
    assign, _ = tabs
    objects, top_k, iou, heads, candidate, panels, *_ = assign.scene("lab_baseline", 2, 9, 0.5)
    names = object_names(bench.seen("lab_baseline", 2).scene.target, bench.dataset.classes)
    assert [label for label, _ in objects.choices] == ["all objects", *names]
    assert objects.value == ALL
    assert [value for _, value in heads.choices] == ["original"]
    assert (top_k.visible, iou.visible, candidate) == (False, False, None)
    assert len(json.loads(panels)) == 1
    assert assign.scene("lab_co_k2", 2, 9, 0.5, chosen=1)[0].value == 1
    assert assign.scene("lab_co_k2", 2, 9, 0.5, chosen=999)[0].value == ALL


def test_click_chooses_head_and_candidate(tabs: tuple[AssignTab, HeadsTab]) -> None:
    event = gr.EventData(None, {"panel": "atss", "row": [12.0, 8, 0.1]})
    head, candidate, panels, _, why = tabs[0].click("lab_co_k2", 1, ALL, 9, 0.5, event)
    assert (head, candidate) == ("atss", 12)
    assert "candidate 12" in why
    atss = json.loads(panels)[1]["figure"]
    assert "chosen candidate" in [trace.get("name") for trace in atss["data"]]


def test_view_takes_what_the_page_sends(tabs: tuple[AssignTab, HeadsTab]) -> None:
    assert "candidate 3" in tabs[0].view("lab_co_k2", 1.0, -1, 9.0, 0.5, "atss", 3.0)[2]


@pytest.mark.parametrize("score", [0.0, 0.02, 0.1, 1.0])
def test_score_counts_the_cached_detections(bench: Bench, tabs: tuple[AssignTab, HeadsTab], score: float) -> None:
    panels = json.loads(tabs[1].view(["lab_co_k2", "lab_baseline"], 1, score, True, None))
    names = ["lab_baseline/original", "lab_co_k2/original", "lab_co_k2/atss", "lab_co_k2/faster_rcnn"]
    assert [panel["name"] for panel in panels] == names
    for panel in panels:
        model, head = panel["name"].split("/")
        expected = int((bench.seen(model, 1).detections[head].scores >= score).sum())
        assert re.search(rf": {expected} detections?$", panel["note"])


def test_own_image_is_read_and_forgotten(tabs: tuple[AssignTab, HeadsTab], tmp_path: Path) -> None:
    heads = tabs[1]
    Image.new("RGB", (64, 48), "red").save(tmp_path / "mine.png")
    state = (["lab_baseline"], 0, 0.0, True)
    upload, button, words, shown = heads.receive(str(tmp_path / "mine.png"), *state)
    assert upload.image.shape == (48, 64, 3)
    assert button.visible
    assert "64 x 48" in words
    assert json.loads(shown)[0]["figure"]["layout"]["xaxis"]["range"] == [0, 64]
    assert heads.view(*state, upload) == shown
    upload, button, words, shown = heads.forget(*state)
    assert (upload, button.visible, words) == (None, False, "")
    assert json.loads(shown)[0]["figure"]["layout"]["xaxis"]["range"] == [0, 128]


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "empty"), (b"<svg xmlns='x'/>", "SVG"), (b"\x89PNG\r\n\x1a\n junk", "not an image")]
)
def test_broken_images_give_a_message_with_their_name(
    tabs: tuple[AssignTab, HeadsTab], tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "mine.jpg").write_bytes(content)
    upload, _, message, _ = tabs[1].receive(str(tmp_path / "mine.jpg"), ["lab_baseline"], 0, 0.5, True)
    assert upload is None
    assert words in message
    assert "mine.jpg" in message
    assert str(tmp_path) not in message


def test_huge_images_are_refused(tabs: tuple[AssignTab, HeadsTab], tmp_path: Path) -> None:
    Image.new("1", (6000, 6000)).save(tmp_path / "huge.png")
    upload, _, message, _ = tabs[1].receive(str(tmp_path / "huge.png"), ["lab_baseline"], 0, 0.5, True)
    assert upload is None
    assert "the limit is 25 megapixels" in message


def test_words_from_data_are_escaped() -> None:
    table = style.count_table({"atss": [1]}, ["0 <script>"], None)
    assert "<script>" not in table
    assert "<b>x" not in style.warning("<b>x")
