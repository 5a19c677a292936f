"""What a model's encoder tells apart: `DiscriminabilityExplorer(models, image, target)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from torch import Tensor

from codetr_lab.analysis import IofIobCurve, discriminability, foreground, iof_iob_curve
from codetr_lab.analysis.scene import make_scene
from codetr_lab.structures import Target
from codetr_lab.viz.image import side_by_side
from codetr_lab.viz.score_map import iof_iob_figure, mask_figure, point_at, score_map_figure
from codetr_lab.viz.widgets.explorer import Explorer, FigureView, choice, say, slider, words

if TYPE_CHECKING:
    from codetr_lab.models.codetr import CoDETR

COMBINED = -1


class DiscriminabilityExplorer(Explorer):
    """D(F) of several models (Eq. 7) on one image, what a threshold S keeps of it, and the IoF-IoB curves (Eq. 8).

    Args:
        models: by the names that they shall have; a single model may be given alone.
        image: (H,W,3) uint8 RGB.
        target: its objects, in its own pixels.
    """

    def __init__(self, models: CoDETR | Mapping[str, CoDETR], image: np.ndarray, target: Target) -> None:
        named: Mapping[str, CoDETR] = models if isinstance(models, Mapping) else {models.config.preset: models}
        self.scenes = {name: make_scene(image, target, model.config.image) for name, model in named.items()}
        self.memory = {name: model.trace(self.scenes[name].batch).memory for name, model in named.items()}
        first = next(iter(named.values()))
        levels = [("all levels", COMBINED)]
        levels += [(f"stride {s}", i) for i, s in enumerate(first.strides[: len(next(iter(self.memory.values())))])]
        self.level = choice("Level", levels, COMBINED)
        self.view = choice("Show", [("score D(F)", "score"), ("mask D(F) > S", "mask")], "score")
        self.share = slider("S, from a map's lowest to its highest score", 0.4, 0, 1, 0.01)
        self.curves = FigureView(self.draw_curves())
        self.readout = words()
        self.finish([[self.level, self.view, self.share]], [self.curves, self.readout])

    def maps(self) -> dict[str, Tensor]:
        """(h,w) scores by model, of the chosen level."""
        made = {}
        for name, memory in self.memory.items():
            levels = memory if self.level.value == COMBINED else [memory[self.level.value]]
            scene = self.scenes[name]
            height, width = scene.size
            scores = discriminability(levels, scene.padded, scene.batch.pad_mask)
            made[name] = scores[0, 0, :height, :width]
        return made

    def thresholds(self) -> dict[str, float]:
        """S by model: the slider's position between the map's lowest and highest score."""
        return {n: float(m.min() + self.share.value * (m.max() - m.min())) for n, m in self.maps().items()}

    def iof_iob(self) -> dict[str, IofIobCurve]:
        """The curve of every model."""
        return {name: iof_iob_curve(scores, self._foreground(name)) for name, scores in self.maps().items()}

    def _foreground(self, name: str) -> Tensor:
        scene = self.scenes[name]
        return foreground(scene.target or {}, scene.size)

    def draw(self) -> go.Figure:
        """One panel per model: the score, or its mask."""
        figures, limits = {}, self.thresholds()
        for name, scores in self.maps().items():
            scene = self.scenes[name]
            if self.view.value == "score":
                figures[name] = score_map_figure(scene.image, scores.numpy(), target=scene.target)
            else:
                inside = self._foreground(name).numpy()
                figures[name] = mask_figure(scene.image, scores.numpy(), inside, limits[name], target=scene.target)
        return side_by_side(figures)

    def draw_curves(self) -> go.Figure:
        """The curves, with a point at S on each."""
        figure = iof_iob_figure(self.iof_iob(), thresholds=self.thresholds())
        return figure.update_layout(width=520)

    def listen(self) -> None:
        """Renew the curves and the numbers."""
        self.curves.replace(self.draw_curves())
        limits, said = self.thresholds(), []
        for name, curve in self.iof_iob().items():
            iof, iob = point_at(curve, limits[name])
            said.append(f"{name}: S = {limits[name]:.3f}, IoF {iof:.2f}, IoB {iob:.2f}, area {curve.area():.2f}")
        say(self.readout, "; ".join(said))
