"""The flow chart tells the model's own numbers; training curves are the records'; relations are the matrix."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import viz_case

from codetr_lab.models.meta import part_sizes
from codetr_lab.models.presets import create_model, preset
from codetr_lab.viz import (
    TrainingWatch,
    bars_figure,
    colors,
    flow_figure,
    losses_figure,
    metrics_figure,
    positions_figure,
    relation_figure,
    runs_figure,
)
from codetr_lab.viz.flow import count, model_parts
from codetr_lab.viz.training import loss_curves

RECORDS = [
    {"step": 10, "losses": {"decoder.original.0.class": 2.0, "decoder.original.1.class": 1.0, "aux.atss.box": 4.0}},
    {"step": 10, "metrics": {"detr": {"AP": 0.1, "AP50": None}}},
    {"step": 20, "losses": {"decoder.original.0.class": 1.0, "decoder.original.1.class": 0.5, "aux.atss.box": None,
                            "decoder.atss.0.class": 1.0, "encoder.class": 0.3}},
    {"step": 20, "metrics": {"detr": {"AP": 0.2, "AP50": 0.5}}},
]  # fmt: skip


def test_flow_names_every_part_with_its_parameters() -> None:
    model = create_model("lab_co_k2")
    parameters = part_sizes(model)
    assert sum(n for name, n in parameters.items() if "." not in name) == sum(p.numel() for p in model.parameters())
    figure = flow_figure(model.config, parameters, model.strides)
    text = " ".join(note.text for note in figure.layout.annotations)
    for number in (parameters["encoder"], parameters["heads.atss"], parameters["decoder"]):
        assert f"{count(number)} parameters" in text
    assert "336 tokens" in text and "50 original" in text and "9 to 80" in text
    assert sum(1 for shape in figure.layout.shapes if shape.line.dash == "dash") == 8


def test_flow_of_other_models() -> None:
    baseline, arrows = model_parts(preset("lab_baseline"), {}, (8, 16, 32, 64), (128, 128))
    assert list(baseline) == ["image", "backbone", "neck", "encoder", "selection", "queries", "decoder", "loss"]
    assert ("encoder", "selection") in arrows
    twice, _ = model_parts(preset("lab_co_k1", aux_heads=("atss", "atss")), {}, (8, 16, 32, 64), (128, 128))
    assert {"atss", "atss_2", "queries.atss_2"} <= set(twice)
    dense, _ = model_parts(preset("lab_co_k1", **{"transformer.decoder_layers": 0}), {}, (8, 16, 32, 64), (128, 128))
    assert list(dense) == ["image", "backbone", "neck", "encoder", "pyramid", "atss"]
    assert not dense["atss"].training


@pytest.mark.parametrize(("number", "words"), [(12, "12"), (712_345, "712 k"), (47_300_000, "47.3 M")])
def test_parameters_for_people(number: int, words: str) -> None:
    assert count(number) == words


def test_losses_are_summed_by_part() -> None:
    curves = loss_curves(RECORDS)
    assert curves["decoder original"] == ([10, 20], [3.0, 1.5])
    assert curves["decoder atss"] == ([20], [1.0])
    assert np.isnan(curves["head atss"][1][1])
    figure = losses_figure(RECORDS)
    styles = {trace.name: (trace.line.color, trace.line.dash) for trace in figure.data}
    assert styles["decoder, original queries"] == (colors.head_color("original"), "solid")
    assert styles["ATSS head"] == (colors.head_color("atss"), "dash")
    assert figure.layout.yaxis.type == "log"


def test_metrics_over_steps() -> None:
    (trace,) = metrics_figure(RECORDS, "AP").data
    assert (trace.name, list(trace.x), list(trace.y)) == ("DETR decoder", [10, 20], [0.1, 0.2])
    assert list(metrics_figure(RECORDS, "AP50").data[0].y) == [0.5]
    assert not metrics_figure([]).data


def test_relations_are_the_matrix() -> None:
    matrix = np.array([[0, 0.25], [0.25, np.nan]])
    (heat,) = relation_figure(matrix, ["atss", "faster_rcnn"]).data
    assert [list(row) for row in heat.text] == [["0", "0.25"], ["0.25", ""]]
    assert list(heat.x) == ["ATSS", "Faster R-CNN"]
    with pytest.raises(ValueError, match=r"shape \(2, 2\) for 1 heads"):
        relation_figure(matrix, ["atss"])
    assert list(bars_figure({"a": 1.5}, "distance").data[0].y) == [1.5]


def test_positions_put_originals_on_top() -> None:
    points = {("original", "original positive"): np.zeros((2, 2)), ("atss", "positive"): np.array([[0.25, -0.5]])}
    first, second = positions_figure(points).data
    assert (first.name, second.name) == ("ATSS: positive · 1", "DETR decoder: original positive · 2")
    assert viz_case.array(first.x) == 0.25 and viz_case.array(first.y) == -0.5


def test_runs_compare_the_loss_that_they_share() -> None:
    figure = runs_figure({"first": RECORDS, "second": RECORDS[:1]})
    losses, numbers, shorter, nothing = figure.data
    assert (losses.name, list(losses.x), list(losses.y)) == ("first", [10, 20], [3.0, 1.5])
    assert (list(numbers.x), list(numbers.y)) == ([10, 20], [0.1, 0.2])
    assert (shorter.name, list(shorter.y), list(nothing.y)) == ("second", [3.0], [])
    assert losses.line.color == numbers.line.color != shorter.line.color


def test_a_watch_shows_what_the_run_wrote_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict] = []

    class Output:
        def update(self, content: dict, raw: bool) -> None:
            shown.append(content)

    def display(content: dict, raw: bool, display_id: bool) -> Output:
        shown.append(content)
        return Output()

    monkeypatch.setattr("IPython.display.display", display)
    watch = TrainingWatch(every=10)
    observe = watch.run("K = 0", tmp_path)
    for step in range(21):
        if step and step % 10 == 0:
            written = "".join(json.dumps(record) + "\n" for record in RECORDS if record["step"] <= step)
            (tmp_path / "metrics.jsonl").write_text(written)
        observe(None, step)  # type: ignore[arg-type]
    drawn = [content["application/vnd.plotly.v1+json"]["data"][0] for content in shown]
    assert [list(curve.get("x") or ()) for curve in drawn] == [[], [10], [10, 20]]
