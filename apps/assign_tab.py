"""The tab Assign: which candidates every head makes positive for which object, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from apps import style
from apps.bench import Bench
from apps.plot import Panel, figure_grid, panels_json
from codetr_lab.structures import Assignment
from codetr_lab.viz import assignment_figure, colors, object_names

ALL = -1
INTRO = (
    "Every head has its own rule for which of its candidates must find which object; those candidates are its "
    "positives, drawn here in the head's colour. The DETR decoder's one-to-one matching gives an object a single "
    "positive, the auxiliary heads of Co-DETR give it many: that is the extra supervision which trains the encoder."
)
PICK = "Click a point, or choose a head and a candidate's number, to read why it is positive or negative."


@dataclass(frozen=True)
class Look:
    """What the reader has set; `object` is `ALL` or an index, `candidate` None while none is chosen."""

    model: str
    image: int
    object: int
    top_k: int
    iou: float
    head: str
    candidate: int | None


def head_choices(heads: list[str]) -> list[tuple[str, str]]:
    """Heads for a choice: what people call them, and their names."""
    return [(colors.head_title(head), head) for head in heads]


def show(bench: Bench, look: Look) -> tuple[str, str, str]:
    """The panels, the table of counts and the explanation for one setting."""
    seen = bench.seen(look.model, look.image)
    assignments = bench.assignments(look.model, look.image, look.top_k, look.iou)
    names = object_names(seen.scene.target, bench.dataset.classes)
    chosen = look.object if 0 <= look.object < len(names) else None
    valid = look.candidate is not None and look.head in assignments
    valid = valid and 0 <= look.candidate < len(assignments[look.head].candidates)  # type: ignore[operator]
    panels = []
    for head, assignment in assignments.items():
        figure = assignment_figure(
            seen.scene.image, assignment, head, classes=bench.dataset.classes, object_index=chosen,
            selected=look.candidate if valid and head == look.head else None,
        )  # fmt: skip
        panels.append(Panel(head, colors.head_title(head), figure, _note(assignment, chosen), colors.head_color(head)))
    counts = {head: assignment.count_per_object().tolist() for head, assignment in assignments.items()}
    return panels_json(panels), style.count_table(counts, names, chosen), _explain(assignments, look, valid)


def _note(assignment: Assignment, chosen: int | None) -> str:
    counts = assignment.count_per_object()
    count = int(counts.sum() if chosen is None else counts[chosen])
    return f"{count} positive{'' if count == 1 else 's'} of {int(assignment.candidates.valid.sum())} candidates"


def _explain(assignments: dict[str, Assignment], look: Look, valid: bool) -> str:
    if look.candidate is None or look.head not in assignments:
        return style.explanation("Why?", PICK, colors.TEXT)
    assignment = assignments[look.head]
    title = f"{colors.head_title(look.head)}, candidate {look.candidate}"
    if not valid:
        text = f"There is no such candidate; this head has 0 to {len(assignment.candidates) - 1} for this image."
        return style.explanation(title, text, colors.SELECTED)
    return style.explanation(title, assignment.explain(look.candidate), colors.head_color(look.head))


class AssignTab:
    """The tab's controls and what happens when they move.

    Args:
        bench: models and data.
        image: the page's image slider.
        start: the model shown first.
    """

    def __init__(self, bench: Bench, image: gr.Slider, start: str) -> None:
        self.bench = bench
        config = bench.models[start].config
        gr.HTML(style.intro(INTRO))
        with gr.Row():
            with gr.Column(scale=1, min_width=230):
                choices = [(title, name) for name, title in bench.titles.items()]
                self.model = gr.Dropdown(choices, value=start, label="Model", elem_id="assign-model")
                self.object = gr.Radio([("all objects", ALL)], value=ALL, label="Object", elem_id="assign-object")
                self.top_k = gr.Slider(
                    1, 25, value=config.atss.top_k, step=1, label="ATSS: top k",
                    elem_id="assign-top-k",
                )  # fmt: skip
                self.iou = gr.Slider(
                    0.3, 0.9, value=config.faster_rcnn.roi_positive_iou, step=0.05,
                    label="Faster R-CNN: IoU from", elem_id="assign-iou",
                )  # fmt: skip
                heads = bench.heads(start)
                self.head = gr.Radio(
                    head_choices(heads), value=heads[0], label="Explain a candidate of", elem_id="assign-head"
                )
                self.candidate = gr.Number(None, precision=0, label="Candidate number", elem_id="assign-candidate")
            with gr.Column(scale=4, min_width=300):
                self.grid = figure_grid("Positives of every head", elem_id="assign-grid")
                self.why = gr.HTML(style.explanation("Why?", PICK, colors.TEXT), elem_id="assign-why")
                self.table = gr.HTML(elem_id="assign-table")
        self._inputs = [self.model, image, self.object, self.top_k, self.iou, self.head, self.candidate]
        self._views = [self.grid, self.table, self.why]
        self.scene_outputs = [self.object, self.top_k, self.iou, self.head, self.candidate, *self._views]
        self._listen(image)

    def _listen(self, image: gr.Slider) -> None:
        gr.on(
            [self.model.input, image.input], self.scene, [self.model, image, self.top_k, self.iou],
            self.scene_outputs, show_progress="hidden", trigger_mode="always_last", api_name="assign_scene",
        )  # fmt: skip
        gr.on(
            [self.object.input, self.top_k.input, self.iou.input, self.head.input, self.candidate.input],
            self.view, self._inputs, self._views, show_progress="hidden", trigger_mode="always_last",
            api_name="assign",
        )  # fmt: skip
        self.grid.select(
            self.click, self._inputs[:5], [self.head, self.candidate, *self._views], show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip

    def scene(self, model: str, image: int, top_k: int, iou: float, chosen: int = ALL) -> list[Any]:
        """Another image or model: all objects unless one is chosen, and no candidate."""
        heads = self.bench.heads(model)
        names = object_names(self.bench.seen(model, int(image)).scene.target, self.bench.dataset.classes)
        chosen = chosen if chosen < len(names) else ALL
        look = Look(model, int(image), chosen, int(top_k), iou, heads[0], None)
        objects = [("all objects", ALL), *((name, i) for i, name in enumerate(names))]
        return [
            gr.Radio(objects, value=chosen), gr.Slider(visible="atss" in heads),
            gr.Slider(visible="faster_rcnn" in heads), gr.Radio(head_choices(heads), value=heads[0]), None,
            *show(self.bench, look),
        ]  # fmt: skip

    def view(
        self, model: str, image: int, object: int, top_k: int, iou: float, head: str, candidate: float | None
    ) -> tuple[str, str, str]:
        """Another object, rule or candidate on the same image."""
        number = None if candidate is None else int(candidate)
        return show(self.bench, Look(model, int(image), int(object), int(top_k), iou, head, number))

    def click(self, model: str, image: int, object: int, top_k: int, iou: float, event: gr.EventData) -> list[Any]:
        """A point was clicked."""
        head, candidate = str(event.panel), int(event.row[0])
        look = Look(model, int(image), int(object), int(top_k), iou, head, candidate)
        return [head, candidate, *show(self.bench, look)]
