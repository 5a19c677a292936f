"""Models of every kind in every tab: each auxiliary head, none, no decoder, and several kinds side by side."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import apps_case
import pytest
import torch

from apps.assign_tab import AssignTab
from apps.bench import Bench, titles, whole_boxes, without_nms
from apps.discriminability_tab import DiscriminabilityTab
from apps.heads_tab import HeadsTab
from apps.page import Page
from apps.picture import Picture
from apps.queries_tab import QueriesTab
from apps.training_tab import TrainingTab
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.heads import HEADS
from codetr_lab.models.presets import create_model

PICTURES = (Picture(1, drawn=()), Picture(1, drawn=((10.0, 10.0, 60.0, 70.0, 2), (70.0, 20.0, 120.0, 90.0, 1))))
DENSE = {"transformer.decoder_layers": 0}


@cache
def model(aux_heads: tuple[str, ...] = (), **changes: Any) -> CoDETR:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model("lab_co_k2", aux_heads=aux_heads, **changes).eval()


def page_of(**models: CoDETR) -> Page:
    return Page(models, apps_case.images())


def show(page: Page, kind: type, picture: Picture = Picture(1), **changes: Any) -> tuple[list[dict[str, Any]], str]:  # noqa: B008
    """The tab's panels, and all the words that it says beside them."""
    tab = next(tab for tab in page.tabs if isinstance(tab, kind))
    values = {name: control.value for name, control in tab.controls.items()}
    made = tab.show(picture, values | changes, True)
    words = " ".join(value for part, value in made.items() if isinstance(value, str) and part is not tab.grid)
    return json.loads(made[tab.grid]), words


CASES = {
    **{head: ((head,), {}) for head in HEADS},
    "twice": (("atss", "atss"), {}),
    "k0": ((), {}),
    "dense": (("fcos",), DENSE),
    "dense_two": (("mask_rcnn", "gfl"), DENSE),
    "untrained_heads": (("atss",), {"aux_losses": False}),
    "more_levels": (("retinanet",), {"transformer.extra_levels": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_tab_shows_every_model(case: str) -> None:
    aux_heads, changes = CASES[case]
    page = page_of(own=model(aux_heads, **changes))
    heads = page.bench.heads("own")
    for picture in PICTURES:
        panels, _ = show(page, AssignTab, picture, rpn=True)
        assert [panel["name"] for panel in panels if not panel["name"].endswith(".rpn")] == heads
        for nms in ("own", "all"):
            panels, _ = show(page, HeadsTab, picture, nms=nms, score=0.0)
            trained = [head for head in heads if head == "original" or page.bench.models["own"].config.aux_losses]
            assert [panel["name"].partition("/")[2] for panel in panels] == trained
        for what in ("encoder", "matched"):
            panels, words = show(page, DiscriminabilityTab, picture, what=what, view="mask")
            assert panels or "has no decoder" in words
        panels, words = show(page, QueriesTab, picture)
        assert panels or "has no decoder" in words
        next(tab for tab in page.tabs if tab.name == "about").show(picture, {"model": "own"}, True)
    knobs = {name: slider for name, slider in page.tabs[0].controls.items() if "/" in name}
    for end in ("minimum", "maximum"):
        show(page, AssignTab, **{name: getattr(slider, end) for name, slider in knobs.items()})


def test_a_conflict_needs_two_trained_heads_and_an_object() -> None:
    two, one, untrained = model(("fcos", "paa")), model(), model(("atss",), aux_losses=False)
    page = page_of(two=two, one=one, untrained=untrained, dense=model(("atss",), **DENSE))
    for name, expected in (
        ("one", "Baseline, K = 0 has one head, the DETR decoder: a conflict needs two."),
        ("dense", "Dense, K = 1 has one head, the ATSS: a conflict needs two."), ("untrained", "keeps no class logits"),
    ):  # fmt: skip
        assert expected in show(page, TrainingTab, model=name)[1]
    assert "this image has none" in show(page, TrainingTab, Picture(1, drawn=()), model="two")[1]
    assert '"relation"' in show(page, TrainingTab, model="two")[1]


def test_kinds_side_by_side_share_what_they_have() -> None:
    """Levels and decoder layers that only one of the two models has are not asked of the other."""
    shallow = model((), **{"transformer.decoder_layers": 1})
    page = page_of(
        more=model(("atss",), **{"transformer.extra_levels": 1}), shallow=shallow, dense=model(("gfl",), **DENSE)
    )
    tab = next(tab for tab in page.tabs if isinstance(tab, DiscriminabilityTab))
    strides = [value for _, value in tab.controls["level"].choices]  # type: ignore[attr-defined]
    assert strides == [0, 8, 16, 32]
    for stride in strides:
        panels, _ = show(page, DiscriminabilityTab, left="more", right="shallow", level=stride)
        assert len(panels) == 3
    panels, _ = show(page, DiscriminabilityTab, left="more", right="shallow", what="all", layer=2)
    scores = page.bench.score_map("shallow", Picture(1), "all", 0)
    assert f"S = {float(scores.min() + 0.4 * (scores.max() - scores.min())):.3f}" in panels[1]["note"]
    assert "Dense, K = 1 has no decoder" in show(page, DiscriminabilityTab, left="dense", what="all")[1]


def test_titles_tell_kinds_apart() -> None:
    kinds = {"a": model(), "b": model(("atss",)), "c": model(("fcos",), **DENSE), "d": model(("paa",))}
    assert list(titles(kinds).values()) == [
        "Baseline, K = 0",
        "Co-DETR, K = 1 (b)",
        "Dense, K = 1",
        "Co-DETR, K = 1 (d)",
    ]


def test_without_nms_a_head_hands_out_what_it_puts_into_its_nms() -> None:
    own = model(("retinanet", "mask_rcnn"))
    bench = Bench({"own": own}, apps_case.images())
    loose = create_model("lab_co_k2", aux_heads=("retinanet", "mask_rcnn")).eval()
    loose.load_state_dict(own.state_dict())
    for head in loose.heads.values():
        for name in ("picking", "settings"):
            settings = getattr(without_nms(own.config), head.name)
            if hasattr(head, name):
                setattr(head, name, settings)
    expected = loose.trace(bench.seen("own", Picture(1)).scene.batch).heads
    found = bench.detections("own", Picture(1), "none")
    for head in ("retinanet", "mask_rcnn"):
        assert len(found[head]) > len(bench.detections("own", Picture(1))[head])
        torch.testing.assert_close(found[head].boxes, expected[head].detections[0].boxes)
    assert found["mask_rcnn"].masks is None, "3,000 masks of a large image do not fit into memory"


def test_whole_boxes_cover_the_pixels_whose_centres_they_hold() -> None:
    masks = whole_boxes(torch.tensor([[1.0, 0.0, 3.0, 2.0], [0.0, 0.0, 0.4, 0.4]]), (3, 4))
    assert masks[0].int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert not masks[1].any() and whole_boxes(torch.zeros(0, 4), (3, 4)).shape == (0, 3, 4)
