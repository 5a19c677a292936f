"""Whose candidates become positive, and why: `AssignmentExplorer(model, image, target)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets
import numpy as np
import plotly.graph_objects as go

from codetr_lab.analysis.rules import RPN, assign_again, knobs, sampling_of, trace_assignments
from codetr_lab.analysis.scene import make_scene
from codetr_lab.structures import Assignment, Target
from codetr_lab.viz.assignment import assignment_figure
from codetr_lab.viz.colors import head_title
from codetr_lab.viz.image import object_names, side_by_side
from codetr_lab.viz.widgets.explorer import Explorer, choice, say, slider, words

if TYPE_CHECKING:
    from codetr_lab.models.codetr import CoDETR

_PICK = "Click a point to read why it is positive or negative."


class AssignmentExplorer(Explorer):
    """Every head's positives on one image, side by side, with a slider for each parameter of each rule.

    Sliders assign the same candidates again; the model runs once, at the beginning.

    Args:
        model: in evaluation or training mode.
        image: (H,W,3) uint8 RGB.
        target: its objects, in its own pixels.
        rpn: also show the anchors of region proposal networks.
    """

    def __init__(self, model: CoDETR, image: np.ndarray, target: Target, *, rpn: bool = False) -> None:
        self.model, self.scene = model, make_scene(image, target, model.config.image)
        found = trace_assignments(model.trace(self.scene.batch, [self.scene.target or target]))
        self.own = {name: a for name, a in found.items() if rpn or not name.endswith(RPN)}
        classes = model.config.classes
        names = object_names(target, classes)
        self.object = choice("Object", [("all objects", -1), *((n, i) for i, n in enumerate(names))], -1)
        self.knobs: dict[tuple[str, str], ipywidgets.Widget] = {
            (head, knob.name): slider(
                f"{head_title(head)}: {knob.title}", a.parameters[knob.name], knob.least, knob.most, knob.step
            )
            for head, a in self.own.items()
            for knob in knobs(a)
        }
        self.picked: tuple[str, int] | None = None
        self.why, self.counts = words(_PICK), words()
        self.finish([[self.object], list(self.knobs.values())], [self.counts, self.why])
        self.figure.clicked = self._clicked

    def assignments(self) -> dict[str, Assignment]:
        """By head, under the sliders' parameters."""
        made = {}
        for head, assignment in self.own.items():
            values = {name: float(control.value) for (owner, name), control in self.knobs.items() if owner == head}
            made[head] = assign_again(assignment, values, sampling_of(self.model.config, head))
        return made

    def draw(self) -> go.Figure:
        """One panel per head."""
        chosen = None if self.object.value < 0 else self.object.value
        picked_head, picked = self.picked or ("", None)
        return side_by_side(
            {
                head_title(head): assignment_figure(
                    self.scene.image, assignment, head, classes=self.model.config.classes, object_index=chosen,
                    selected=picked if head == picked_head else None,
                )
                for head, assignment in self.assignments().items()
            }
        )  # fmt: skip

    def listen(self) -> None:
        """Renew the counts and the explanation."""
        assignments = self.assignments()
        counts = {head: a.count_per_object().float() for head, a in assignments.items()}
        shown = [f"{head_title(head)} {c.mean():.1f}" for head, c in counts.items() if len(c)]
        say(self.counts, f"Positives per object: {', '.join(shown)}." if shown else "The image has no objects.")
        if self.picked is not None:
            head, index = self.picked
            say(self.why, f"{head_title(head)}: {assignments[head].explain(index)}")

    def _clicked(self, trace: go.Figure, row: list[float]) -> None:
        panel = int((trace.xaxis or "x")[1:] or 1) - 1
        self.pick(list(self.own)[panel], int(row[0]))

    def pick(self, head: str, candidate: int) -> None:
        """Point out one candidate of one head, and say why it is what it is."""
        self.picked = (head, candidate)
        self.update()
