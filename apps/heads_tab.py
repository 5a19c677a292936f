"""The tab Heads: what every head of every model finds in the same image, and which of it is right."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components import Component

from apps import style
from apps.bench import Bench
from apps.picture import Picture
from apps.plot import Panel, figure_grid, panels_json
from apps.tab import Tab, models_choice
from codetr_lab.analysis.verdicts import verdicts
from codetr_lab.viz import colors, detection_figure, verdict_figure

INTRO = (
    "One image, read by every head of every model: baseline and Co-DETR, and Co-DETR's auxiliary heads beside its "
    "decoder. At test time Co-DETR uses the DETR decoder alone, without NMS; the other heads exist for training, and "
    "are run here only to be looked at."
)
EQUATION = (
    "A detection is right if its class is the object's, their IoU is high enough, and no better-scored one has the "
    "object already; AP is the area under precision over recall, averaged over IoU 0.50 to 0.95 (see Table 11)."
)


class HeadsTab(Tab):
    """One panel per model and head.

    Args:
        bench: models and data.
        start: the models shown first.
    """

    name, title = "heads", "Heads"

    def __init__(self, bench: Bench, start: list[str]) -> None:
        super().__init__(bench)
        gr.HTML(style.intro(INTRO, EQUATION, "04_train_and_compare", "08_your_own_data"))
        with gr.Row():
            with gr.Column(scale=1, min_width=250):
                models = gr.CheckboxGroup(models_choice(bench), value=start, label="Models", elem_id="heads-models")
                score = gr.Slider(0, 1, value=0.3, step=0.01, label="Score at least", elem_id="heads-score")
                nms = gr.Radio(
                    [("each head's own", "own"), ("off", "none"), ("on, for all", "all")], value="own", label="NMS",
                    elem_id="heads-nms",
                )  # fmt: skip
                nms_iou = gr.Slider(
                    0.1, 0.95, value=0.5, step=0.05, label="NMS from IoU", elem_id="heads-nms-iou", visible=False
                )
                judge = gr.Checkbox(True, label="Say what is right, false and missed", elem_id="heads-judge")
                iou = gr.Slider(0.3, 0.95, value=0.5, step=0.05, label="Right from IoU", elem_id="heads-iou")
                with gr.Accordion("AP of every head on the data set", open=False):
                    self.images = gr.Slider(
                        1, max(2, len(bench.dataset)), value=min(100, len(bench.dataset)), step=1, label="First images",
                        elem_id="heads-images",
                    )  # fmt: skip
                    self.measure = gr.Button("Measure", size="sm", elem_id="heads-measure")
            with gr.Column(scale=4, min_width=300):
                self.grid = figure_grid("Detections of every head", 200, elem_id="heads-grid")
                self.ap = gr.HTML(elem_id="heads-ap")
        self.controls = {
            "models": models, "score": score, "nms": nms, "nms_iou": nms_iou, "judge": judge, "iou": iou,
        }  # fmt: skip
        self.renewing, self.reading = ("nms",), ("models", "nms")
        self.outputs = [self.grid]
        self.measure.click(
            self.measured, [models, self.images], self.ap, api_visibility="private", concurrency_limit=1,
            trigger_mode="once",
        )  # fmt: skip

    def show(self, picture: Picture, values: dict[str, Any], fresh: bool) -> dict[Component, Any]:
        """See `Tab.show`."""
        panels = []
        for name in (name for name in self.bench.models if name in values["models"]):
            seen = self.bench.seen(name, picture)
            known = seen.scene.target is not None
            found = self.bench.detections(name, picture, values["nms"], values["nms_iou"])
            for head, detections in found.items():
                shown = detections.select(detections.scores >= values["score"])
                note = f"{self.bench.titles[name]}: {len(shown)} detection{'' if len(shown) == 1 else 's'}"
                if known and values["judge"]:
                    judged = verdicts(shown, seen.target, values["iou"])
                    note += f"; {int(judged.right.sum())} right, {int(judged.missed.sum())} missed"
                    figure = verdict_figure.sketch(
                        seen.scene.image, shown, judged, seen.target, head, classes=self.bench.classes
                    )
                else:
                    figure = detection_figure.sketch(
                        seen.scene.image, shown, head, values["score"], classes=self.bench.classes,
                        target=seen.target if known else None,
                    )  # fmt: skip
                words, color = colors.head_title(head), colors.head_color(head)
                panels.append(Panel(f"{name}/{head}", words, figure, note, color, seen.backdrop))
        changes: dict[Component, Any] = {self.grid: panels_json(panels)}
        if fresh:
            changes[self.controls["nms_iou"]] = gr.Slider(visible=values["nms"] == "all")
        return changes

    def measured(self, models: list[str], images: float, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        """AP of every head of the chosen models on the first images, as a table."""
        rows, images = [], min(int(images), len(self.bench.dataset))
        chosen = [name for name in self.bench.models if name in models]
        for done, name in enumerate(chosen):
            progress((done, len(chosen)), desc=f"{self.bench.titles[name]} on {images} images")
            for head, numbers in self.bench.metrics(name, images).items():
                cells = [style.number(numbers[key]) for key in ("AP", "AP50", "AP75", "AR100")]
                rows.append([self.bench.titles[name], colors.head_title(head), *cells])
        if not rows:
            return style.hint("Choose a model first.")
        columns = ["model", "head", "AP", "AP50", "AP75", "AR100"]
        return style.plain_table(f"On the first {images} images of {self.bench.dataset.name}", columns, rows)
