"""The tab Discriminability: what two models' encoders tell apart, and where their decoders look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from torch import Tensor

from apps import style
from apps.bench import Bench
from apps.picture import Picture
from apps.plot import Panel, figure_grid, panels_json
from apps.tab import Tab, models_choice
from codetr_lab.analysis import IofIobCurve
from codetr_lab.viz import iof_iob_figure, mask_figure, score_map_figure
from codetr_lab.viz.score_map import decimals, point_at

INTRO = (
    "A score map says how strongly every pixel stands out in the encoder's features, from each map's lowest score "
    "(violet) to its highest (yellow); a good detector's objects stand out and its background does not. Move the "
    "threshold S: what lies above it is taken for an object, and the curve shows every trade-off at once."
)
EQUATION = (
    "D(F) = mean over levels of ‖F<sub>j</sub>‖<sub>2</sub> / max ‖F<sub>j</sub>‖<sub>2</sub> (Eq. 7); "
    "IoF = share of object pixels with D &gt; S, IoB = share of background pixels with D &lt; S (Eq. 8)."
)
ENCODER = "encoder"
SOURCES = [
    ("encoder features D(F)", ENCODER), ("decoder attention, matched queries", "matched"),
    ("decoder attention, all queries", "all"),
]  # fmt: skip
SIDES = ("left", "right")
LINES = ("#D55E00", "#0072B2")
"""One colour per side: these curves are models, not heads."""
TOGETHER = 0


@dataclass(frozen=True)
class Reading:
    """One model's map, where the threshold cuts it, and that in words; without objects there is no curve."""

    name: str
    scores: Tensor
    curve: IofIobCurve | None
    threshold: float
    words: str

    def point(self) -> tuple[float, float] | None:
        """IoF and IoB at S."""
        return None if self.curve is None else point_at(self.curve, self.threshold)


class DiscriminabilityTab(Tab):
    """Two score maps or masks side by side, and their curves.

    Args:
        bench: models and data.
        start: the two models shown first.
    """

    name, title = "discriminability", "Discriminability"

    def __init__(self, bench: Bench, start: tuple[str, str]) -> None:
        super().__init__(bench)
        strides = [model.neck.strides for model in bench.models.values()]
        shared = [stride for stride in strides[0] if all(stride in others for others in strides)]
        levels = [("all levels together", TOGETHER), *((f"stride {stride}", stride) for stride in shared)]
        layers = max(m.config.transformer.decoder_layers for m in bench.models.values())
        gr.HTML(style.intro(INTRO, EQUATION, "05_discriminability"))
        with gr.Row():
            with gr.Column(scale=1, min_width=250):
                left = gr.Dropdown(models_choice(bench), value=start[0], label="Left model", elem_id="dis-left")
                right = gr.Dropdown(models_choice(bench), value=start[1], label="Right model", elem_id="dis-right")
                what = gr.Dropdown(SOURCES, value=ENCODER, label="Score", elem_id="dis-what")
                level = gr.Dropdown(levels, value=TOGETHER, label="Level", elem_id="dis-level")
                layer = gr.Dropdown(
                    [(f"layer {i + 1}", i) for i in range(layers)], value=max(0, layers - 1), label="Decoder layer",
                    elem_id="dis-layer", visible=False,
                )  # fmt: skip
                view = gr.Radio(
                    [("score", "score"), ("mask above S", "mask")], value="score", label="Show", elem_id="dis-view"
                )
                share = gr.Slider(0, 100, value=40, step=1, label="Threshold S (%)", elem_id="dis-share")
            with gr.Column(scale=4, min_width=300):
                self.grid = figure_grid("Score maps of two models and their curves", 260, elem_id="dis-grid")
                self.table = gr.HTML(elem_id="dis-table")
        self.controls = {
            "left": left, "right": right, "what": what, "level": level, "layer": layer, "view": view, "share": share,
        }  # fmt: skip
        self.renewing, self.reading = ("what",), ("left", "right")
        self.outputs = [self.grid, self.table, view]

    def readings(self, picture: Picture, values: dict[str, Any]) -> list[Reading]:
        """What the two models give under these settings, left first."""
        readings = []
        for side in SIDES:
            model, what = values[side], values["what"]
            part = self._part(model, values)
            scores = self.bench.score_map(model, picture, what, part)
            low, high = float(scores.min()), float(scores.max())
            threshold = low + values["share"] / 100 * (high - low)
            curve = self.bench.curve(model, picture, what, part)
            words = f"{threshold:.{decimals(low, high)}f}"
            readings.append(Reading(self.bench.titles[model], scores, curve, threshold, words))
        return readings

    def _part(self, model: str, values: dict[str, Any]) -> int:
        """Which of the model's levels or decoder layers is looked at; its last layer if it has fewer."""
        if values["what"] != ENCODER:
            return min(values["layer"], self.bench.models[model].config.transformer.decoder_layers - 1)
        own = list(self.bench.models[model].neck.strides)
        return own.index(values["level"]) if values["level"] in own else -1

    def show(self, picture: Picture, values: dict[str, Any], fresh: bool) -> dict[Component, Any]:
        """See `Tab.show`. The first move of the threshold turns the maps into masks."""
        changes: dict[Component, Any] = {}
        if values.get("moved") == "share" and values["view"] != "mask":
            values["view"] = changes[self.controls["view"]] = "mask"
        if fresh:
            encoder = values["what"] == ENCODER
            changes[self.controls["level"]] = gr.Dropdown(visible=encoder)
            changes[self.controls["layer"]] = gr.Dropdown(visible=not encoder)
        without = [self.bench.titles[values[side]] for side in SIDES if self.bench.models[values[side]].decoder is None]
        if values["what"] != ENCODER and without:
            words = f"{without[0]} has no decoder, so there is no attention to look at."
            return changes | {self.grid: "[]", self.table: style.warning(words)}
        readings = self.readings(picture, values)
        score = "D(F)" if values["what"] == ENCODER else "attention"
        panels = []
        for side, reading, color in zip(SIDES, readings, LINES, strict=True):
            seen = self.bench.seen(values[side], picture)
            target = seen.target if len(seen.target["boxes"]) else None
            if values["view"] == "mask":
                inside = self.bench.foreground(values[side], picture).numpy()
                figure = mask_figure.sketch(
                    seen.scene.image, reading.scores.numpy(), inside, reading.threshold, target=target
                )
            else:
                figure = score_map_figure.sketch(seen.scene.image, reading.scores.numpy(), score=score, target=target)
            point = reading.point()
            note = "" if point is None else f": IoF {point[0]:.2f}, IoB {point[1]:.2f}"
            note = f"S = {reading.words}{note}"
            panels.append(Panel(side, reading.name, figure, note, color, seen.backdrop))
        curves = {_name(side, r): r.curve for side, r in zip(SIDES, readings, strict=True) if r.curve is not None}
        if curves:
            limits = {_name(side, r): r.threshold for side, r in zip(SIDES, readings, strict=True)}
            shades = {_name(side, r): c for side, r, c in zip(SIDES, readings, LINES, strict=True)}
            figure = iof_iob_figure.sketch(curves, thresholds=limits, line_colors=shades)
            panels.append(Panel("curves", "IoF-IoB curves", figure, "further to the upper right is better"))
        return changes | {self.grid: panels_json(panels), self.table: _table(readings)}


def _name(side: str, reading: Reading) -> str:
    return f"{reading.name} ({side})"


def _table(readings: list[Reading]) -> str:
    if any(reading.curve is None for reading in readings):
        return style.hint("The curve needs an image with objects and background: draw an object, or choose another.")
    rows = []
    for reading in readings:
        iof, iob = reading.point() or (0.0, 0.0)
        area = reading.curve.area() if reading.curve else 0.0
        rows.append([reading.name, reading.words, f"{iof:.3f}", f"{iob:.3f}", f"{area:.3f}"])
    head = ["model", "S", "IoF: objects kept", "IoB: background removed", "area under the curve"]
    return style.plain_table("At this threshold", head, rows)
