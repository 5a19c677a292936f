"""What every head finds, and which of it is right: `HeadComparison(model, image, target)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets
import numpy as np
import plotly.graph_objects as go

from codetr_lab.analysis.scene import make_scene
from codetr_lab.analysis.verdicts import verdicts
from codetr_lab.structures import Detections, Target
from codetr_lab.viz.colors import head_title
from codetr_lab.viz.detections import detection_figure
from codetr_lab.viz.image import side_by_side
from codetr_lab.viz.verdicts import verdict_figure
from codetr_lab.viz.widgets.explorer import Explorer, say, slider, words

if TYPE_CHECKING:
    from codetr_lab.models.codetr import CoDETR


class HeadComparison(Explorer):
    """Every head's detections on one image side by side, held against the objects if they are known.

    Args:
        model: in evaluation or training mode.
        image: (H,W,3) uint8 RGB.
        target: its objects, in its own pixels; None shows detections alone.
    """

    def __init__(self, model: CoDETR, image: np.ndarray, target: Target | None = None) -> None:
        self.model, self.scene = model, make_scene(image, target, model.config.image)
        trace = model.trace(self.scene.batch)
        self.found: dict[str, Detections] = {"original": trace.detections[0]} if "original" in trace.groups else {}
        self.found |= {name: head.detections[0] for name, head in trace.heads.items()}
        self.score = slider("Score at least", 0.3, 0, 1, 0.01)
        self.iou = slider("Right from IoU", 0.5, 0.3, 0.95, 0.05)
        self.judge = ipywidgets.Checkbox(target is not None, description="Say what is right", indent=False)
        self.counts = words()
        controls = [self.score, self.iou, self.judge] if target is not None else [self.score]
        self.finish([controls], [self.counts])

    def shown(self) -> dict[str, Detections]:
        """By head, above the slider."""
        return {head: found.select(found.scores >= self.score.value) for head, found in self.found.items()}

    def draw(self) -> go.Figure:
        """One panel per head."""
        classes, target, figures = self.model.config.classes, self.scene.target, {}
        for head, found in self.shown().items():
            if target is not None and self.judge.value:
                judged = verdicts(found, target, self.iou.value)
                figures[head_title(head)] = verdict_figure(
                    self.scene.image, found, judged, target, head, classes=classes
                )
            else:
                figures[head_title(head)] = detection_figure(
                    self.scene.image, found, head, self.score.value, classes=classes, target=target
                )
        return side_by_side(figures)

    def listen(self) -> None:
        """Renew the counts."""
        said = []
        for head, found in self.shown().items():
            if self.scene.target is None:
                said.append(f"{head_title(head)}: {len(found)}")
                continue
            judged = verdicts(found, self.scene.target, self.iou.value)
            right, missed = int(judged.right.sum()), int(judged.missed.sum())
            said.append(f"{head_title(head)}: {right} right, {int(judged.false.sum())} false, {missed} missed")
        say(self.counts, "; ".join(said) + ".")
