"""The tab Assign: which candidates every head makes positive for which object, and why."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components import Component

from apps import style
from apps.bench import Bench
from apps.picture import Picture
from apps.plot import Panel, figure_grid, panels_json
from apps.tab import Tab, models_choice
from codetr_lab.analysis.rules import RPN, knobs
from codetr_lab.structures import Assignment
from codetr_lab.viz import assignment_figure, colors, object_names

ALL = -1
INTRO = (
    "Every head has its own rule for which of its candidates must find which object; those candidates are its "
    "positives, drawn here in the head's colour. The DETR decoder's one-to-one matching gives an object a single "
    "positive, the auxiliary heads of Co-DETR give it many: that is the extra supervision which trains the encoder."
)
EQUATION = (
    "A<sub>i</sub>: {pos}, {neg}, targets = A<sub>i</sub>(P<sub>i</sub>, G), Eq. 1 of the paper and its Table 1. "
    "P<sub>i</sub> are the candidates of head i, G the objects."
)
PICK = "Click a point, or choose a head and a candidate's number, to read why it is positive or negative."
_RULES = {
    "original": "DETR: Hungarian matching", "atss": "ATSS", "faster_rcnn": "Faster R-CNN: RoI head",
    "faster_rcnn.rpn": "Faster R-CNN: RPN",
}  # fmt: skip


def head_choices(heads: list[str]) -> list[tuple[str, str]]:
    """Heads for a choice: what people call them, and their names."""
    return [(colors.head_title(head), head) for head in heads]


def knob_values(values: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The sliders' values by head and knob; their names are `head/knob`."""
    turned: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        head, slash, knob = name.partition("/")
        if slash:
            turned.setdefault(head, {})[knob] = value
    return turned


class AssignTab(Tab):
    """Candidates and positives of every head, side by side.

    Args:
        bench: models and data.
        start: the model shown first.
        picture: the picture shown first; what can be turned is known from its assignments.
    """

    name, title = "assign", "Assign"

    def __init__(self, bench: Bench, start: str, picture: Picture) -> None:
        super().__init__(bench)
        own = bench.seen(start, picture).assignments
        heads = list(own)
        gr.HTML(style.intro(INTRO, EQUATION, "01_quickstart", "02_one_to_one_or_many"))
        with gr.Row():
            with gr.Column(scale=1, min_width=250):
                model = gr.Dropdown(models_choice(bench), value=start, label="Model", elem_id="assign-model")
                thing = gr.Radio(
                    [("all objects", ALL)], value=ALL, label="Object", elem_id="assign-object",
                    elem_classes="open-choice",
                )  # fmt: skip
                self._sliders, self._groups = self._make_sliders(picture, start)
                rpn = gr.Checkbox(
                    False, label="Show the RPN, too", elem_id="assign-rpn", visible=bool(RPN in "".join(own))
                )
            with gr.Column(scale=4, min_width=300):
                self.grid = figure_grid("Positives of every head", 200, elem_id="assign-grid")
                with gr.Row():
                    head = gr.Radio(
                        head_choices([h for h in heads if not h.endswith(RPN)]), value=heads[0],
                        label="Explain a candidate of", elem_id="assign-head", scale=3,
                    )  # fmt: skip
                    candidate = gr.Number(
                        None, precision=0, label="Candidate number", elem_id="assign-candidate", scale=1,
                        min_width=120,
                    )  # fmt: skip
                self.why = gr.HTML(style.explanation("Why?", PICK, colors.TEXT), elem_id="assign-why")
                self.table = gr.HTML(elem_id="assign-table")
        self.controls = {
            "model": model, "object": thing, "rpn": rpn, "head": head, "candidate": candidate, **self._sliders,
        }  # fmt: skip
        self.renewing = ("model",)
        self.outputs = [self.grid, self.why, self.table, *self._groups.values()]

    def _make_sliders(self, picture: Picture, start: str) -> tuple[dict[str, Component], dict[str, Component]]:
        """One slider for every knob of every head of every model, those of one head in a group of their own."""
        sliders: dict[str, Component] = {}
        groups: dict[str, Component] = {}
        for name in dict.fromkeys([start, *self.bench.models]):
            for head, assignment in self.bench.seen(name, picture).assignments.items():
                if head in groups or not knobs(assignment):
                    continue
                shown = name == start and not head.endswith(RPN)
                words = _RULES.get(head, colors.head_title(head))
                with gr.Accordion(words, open=head != "original", visible=shown) as groups[head]:
                    for knob in knobs(assignment):
                        sliders[f"{head}/{knob.name}"] = gr.Slider(
                            knob.least, knob.most, value=assignment.parameters[knob.name], step=knob.step,
                            label=knob.title[0].upper() + knob.title[1:],
                            elem_id=f"assign-{head.replace('.', '-')}-{knob.name}",
                        )  # fmt: skip
        return sliders, groups

    def show(self, picture: Picture, values: dict[str, Any], fresh: bool) -> dict[Component, Any]:
        """See `Tab.show`. A fresh model starts with its own parameters, a fresh picture keeps them."""
        model, seen = values["model"], self.bench.seen(values["model"], picture)
        names = object_names(seen.target, self.bench.classes)
        changes: dict[Component, Any] = {}
        if fresh:
            changes = self._renew(model, values, seen.assignments, names)
        shown = {
            head: assignment
            for head, assignment in self.bench.assignments(model, picture, knob_values(values)).items()
            if values["rpn"] or not head.endswith(RPN)
        }
        chosen = values["object"] if 0 <= values["object"] < len(names) else None
        picked = values["candidate"]
        valid = picked is not None and values["head"] in shown and 0 <= picked < len(shown[values["head"]].candidates)
        panels = []
        for head, assignment in shown.items():
            figure = assignment_figure.sketch(
                seen.scene.image, assignment, head, classes=self.bench.classes, object_index=chosen,
                selected=int(picked) if valid and head == values["head"] else None,
            )  # fmt: skip
            words, color = colors.head_title(head), colors.head_color(head)
            panels.append(Panel(head, words, figure, _note(assignment, chosen), color, seen.backdrop))
        counts = {head: assignment.count_per_object().tolist() for head, assignment in shown.items()}
        return changes | {
            self.grid: panels_json(panels, draw=bool(values.get("draw"))),
            self.table: style.count_table(counts, names, chosen),
            self.why: _explain(shown, values["head"], picked, valid),
        }

    def _renew(
        self, model: str, values: dict[str, Any], own: dict[str, Assignment], names: list[str]
    ) -> dict[Component, Any]:
        """Set what controls offer; corrects `values` where a control cannot keep its value."""
        heads = [head for head in own if values["rpn"] or not head.endswith(RPN)]
        if values["object"] not in range(len(names)):
            values["object"] = ALL
        if values["head"] not in heads:
            values |= {"head": heads[0], "candidate": None}
        objects = [("all objects", ALL), *((name, i) for i, name in enumerate(names))]
        changes: dict[Component, Any] = {
            self.controls["object"]: gr.Radio(objects, value=values["object"]),
            self.controls["head"]: gr.Radio(head_choices(heads), value=values["head"]),
            self.controls["candidate"]: values["candidate"],
            self.controls["rpn"]: gr.Checkbox(visible=any(head.endswith(RPN) for head in own)),
        }
        for head, group in self._groups.items():
            changes[group] = gr.Accordion(visible=head in heads and bool(knobs(own[head])))
        for name, slider in self._sliders.items():
            head, _, knob = name.partition("/")
            if head in own and values.get("reset") and knob in own[head].parameters:
                values[name] = own[head].parameters[knob]
                changes[slider] = values[name]
        return changes


def _note(assignment: Assignment, chosen: int | None) -> str:
    counts = assignment.count_per_object()
    count = int(counts.sum() if chosen is None else counts[chosen])
    return f"{count} positive{'' if count == 1 else 's'} of {int(assignment.candidates.valid.sum())} candidates"


def _explain(assignments: dict[str, Assignment], head: str, picked: float | None, valid: bool) -> str:
    if picked is None or head not in assignments:
        return style.explanation("Why?", PICK, colors.TEXT)
    assignment, title = assignments[head], f"{colors.head_title(head)}, candidate {picked:g}"
    if not valid:
        text = f"There is no such candidate; this head has 0 to {len(assignment.candidates) - 1} for this image."
        return style.explanation(title, text, colors.SELECTED)
    return style.explanation(title, assignment.explain(int(picked)), colors.head_color(head))
