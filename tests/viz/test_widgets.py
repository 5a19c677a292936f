"""The notebook explorers: what they show is what the library computes, and a move of a control shows it anew."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import viz_case

import codetr_lab as lab
from codetr_lab import assign
from codetr_lab.analysis import discriminability, foreground_from_boxes, iof_iob_curve
from codetr_lab.viz.score_map import point_at

for needed in ("ipywidgets", "anywidget"):
    pytest.importorskip(needed, reason=f'{needed} not found; pip install -e ".[notebooks]" -c constraints.txt')

explorer_module = importlib.import_module("codetr_lab.viz.widgets.explorer")

IMAGE = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
TARGET = {"boxes": torch.tensor([[10.0, 12, 50, 60], [70, 30, 120, 100]]), "labels": torch.tensor([1, 3])}


@pytest.fixture(scope="module")
def models() -> dict[str, lab.CoDETR]:
    made = {}
    for name in ("lab_baseline", "lab_co_k2"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made[name] = lab.create_model(name).eval()
    return made


def names(explorer: Any) -> list[str]:
    return [trace["name"] for trace in json.loads(explorer.figure.figure)["data"] if trace.get("name")]


def test_assignment_explorer_assigns_again(models: dict[str, lab.CoDETR]) -> None:
    explorer = lab.viz.AssignmentExplorer(models["lab_co_k2"], IMAGE, TARGET)
    assert list(explorer.own) == ["original", "atss", "faster_rcnn"]
    before = names(explorer)
    explorer.knobs["atss", "top_k"].value = 3
    atss = explorer.own["atss"]
    expected = assign.atss(atss.candidates, TARGET, top_k=3)
    assert explorer.assignments()["atss"].gt_index.equal(expected.gt_index)
    assert names(explorer) != before
    assert f"ATSS {expected.count_per_object().float().mean():.1f}" in explorer.counts.value
    explorer.object.value = 1
    assert any(name.startswith("other objects") for name in names(explorer))
    assert len(lab.viz.AssignmentExplorer(models["lab_co_k2"], IMAGE, TARGET, rpn=True).own) == 4


def test_a_click_explains(models: dict[str, lab.CoDETR]) -> None:
    explorer = lab.viz.AssignmentExplorer(models["lab_co_k2"], IMAGE, TARGET)
    shown = explorer.figure.shown
    index = next(i for i, t in enumerate(shown.data) if t.xaxis == "x2" and t.customdata is not None)
    row = viz_case.array(shown.data[index].customdata)[0].tolist()
    row = [None if math.isnan(value) else value for value in row]  # as the browser sends it
    explorer.figure._handle_custom_msg({"click": index, "row": row}, [])
    assert explorer.picked == ("atss", int(row[0]))
    words = explorer.own["atss"].explain(int(row[0])).split("'")[0][:40]
    assert words in explorer.why.value
    assert "chosen candidate" in names(explorer)


def test_discriminability_explorer_reads_equation_8(models: dict[str, lab.CoDETR]) -> None:
    explorer = lab.viz.DiscriminabilityExplorer({"a": models["lab_baseline"], "b": models["lab_co_k2"]}, IMAGE, TARGET)
    explorer.view.value, explorer.share.value = "mask", 0.7
    trace = models["lab_baseline"].trace(explorer.scenes["a"].batch)
    scores = discriminability(trace.memory, (128, 128))[0, 0]
    limit = float(scores.min() + 0.7 * (scores.max() - scores.min()))
    iof, iob = point_at(iof_iob_curve(scores, foreground_from_boxes(TARGET["boxes"], (128, 128))), limit)
    assert f"a: S = {limit:.3f}, IoF {iof:.2f}, IoB {iob:.2f}" in explorer.readout.value
    explorer.level.value = 1
    assert explorer.maps()["a"].equal(discriminability(trace.memory[1:2], (128, 128))[0, 0])
    alone = lab.viz.DiscriminabilityExplorer(models["lab_co_k2"], IMAGE, TARGET)
    assert list(alone.maps()) == ["lab_co_k2"]


def test_query_explorer_follows_a_query(models: dict[str, lab.CoDETR]) -> None:
    explorer = lab.viz.QueryExplorer(models["lab_co_k2"], IMAGE, TARGET)
    explorer.layer.value = 2
    assert any(name.startswith("stride 8 · ") for name in names(explorer))
    index = next(i for i, t in enumerate(explorer.figure.shown.data) if t.meta == {"group": "atss"})
    explorer.figure._handle_custom_msg({"click": index, "row": [2.0, 1, 0.5, 0]}, [])
    assert (explorer.group.value, explorer.query.value) == ("atss", 2)
    assert "ATSS query 2. layer 1: score" in explorer.story.value


@pytest.mark.parametrize("known", [True, False])
def test_head_comparison_counts(models: dict[str, lab.CoDETR], known: bool) -> None:
    comparison = lab.viz.HeadComparison(models["lab_co_k2"], IMAGE, TARGET if known else None)
    comparison.score.value = 0.02
    for head, found in comparison.found.items():
        count = int((found.scores >= 0.02).sum())
        shown = comparison.shown()[head]
        assert len(shown) == count
        if not known:
            assert f"{lab.viz.head_title(head)}: {count}" in comparison.counts.value
    assert ("right" in comparison.counts.value) == known


def test_plotly_is_sent_when_asked_for_and_the_saved_notebook_keeps_a_figure(
    models: dict[str, lab.CoDETR], monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = lab.viz.HeadComparison(models["lab_co_k2"], IMAGE, TARGET)
    sent: list[Any] = []
    monkeypatch.setattr(comparison.figure, "send", lambda content, buffers: sent.append((content, buffers)))
    comparison.figure._handle_custom_msg({"ask": "plotly"}, [])
    assert sent[0][0] == {"plotly": True} and b"plotly.js" in sent[0][1][0][:100]
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(explorer_module, "display", lambda bundle, raw: shown.append(bundle))
    monkeypatch.delenv("VSCODE_PID", raising=False)
    comparison._ipython_display_()
    assert shown[0]["application/vnd.plotly.v1+json"]["data"]
    assert "application/vnd.jupyter.widget-view+json" in shown[1]
    monkeypatch.setenv("VSCODE_PID", "1")
    shown.clear()
    comparison._ipython_display_()
    assert len(shown) == 1


def test_a_model_without_decoder_has_no_queries(models: dict[str, lab.CoDETR], monkeypatch: pytest.MonkeyPatch) -> None:
    model = models["lab_co_k2"]
    trace = model.trace
    monkeypatch.setattr(model, "trace", lambda *arguments: replace(trace(*arguments), groups={}))
    with pytest.raises(ValueError, match="no decoder"):
        lab.viz.QueryExplorer(model, IMAGE, TARGET)
