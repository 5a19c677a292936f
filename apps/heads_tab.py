"""The tab Heads: what every head of every model finds in the same image."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import gradio as gr

from apps import style
from apps.bench import Bench, Upload
from apps.plot import Panel, figure_grid, panels_json
from codetr_lab.images import ImageError, load_image
from codetr_lab.viz import colors, detection_figure

MAX_UPLOAD_PIXELS = 25_000_000
IMAGE_ENDINGS = [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"]
INTRO = (
    "One image, read by every head of every model: baseline and Co-DETR, and Co-DETR's auxiliary heads beside its "
    "decoder. At test time Co-DETR uses the DETR decoder alone, without NMS; the other heads exist for training, and "
    "are run here only to be looked at."
)


class HeadsTab:
    """The tab's controls and what happens when they move.

    Args:
        bench: models and data.
        image: the page's image slider.
        start: the models shown first.
    """

    def __init__(self, bench: Bench, image: gr.Slider, start: list[str]) -> None:
        self.bench = bench
        gr.HTML(style.intro(INTRO))
        with gr.Row():
            with gr.Column(scale=1, min_width=230):
                choices = [(title, name) for name, title in bench.titles.items()]
                self.models = gr.CheckboxGroup(choices, value=start, label="Models", elem_id="heads-models")
                self.score = gr.Slider(0, 1, value=0.3, step=0.01, label="Score at least", elem_id="heads-score")
                self.truth = gr.Checkbox(True, label="Show ground truth", elem_id="heads-truth")
                self.file = gr.UploadButton("Try your own image", file_types=IMAGE_ENDINGS, elem_id="heads-upload")
                self.clear = gr.Button("Back to the data set", visible=False, elem_id="heads-clear")
                self.message = gr.HTML(elem_id="heads-message")
                self.upload = gr.State(None)
            with gr.Column(scale=4, min_width=300):
                self.grid = figure_grid("Detections of every head", elem_id="heads-grid")
        self._inputs = [self.models, image, self.score, self.truth, self.upload]
        self._own = [self.upload, self.clear, self.message, self.grid]
        self._listen(image)

    def _listen(self, image: gr.Slider) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}
        gr.on(
            [self.models.input, self.score.input, self.truth.input], self.view, self._inputs, self.grid,
            api_name="heads", **quiet,
        )  # fmt: skip
        gr.on(
            [image.input, self.clear.click], self.forget, self._inputs[:4], self._own, api_visibility="private", **quiet
        )
        self.file.upload(
            self.receive, [self.file, *self._inputs[:4]], self._own, api_visibility="private", trigger_mode="multiple"
        )

    def view(self, models: list[str], image: int, score: float, truth: bool, upload: Upload | None) -> str:
        """One panel per model and head, above the score."""
        panels = []
        for name in (name for name in self.bench.models if name in models):
            if upload is None:
                seen = self.bench.seen(name, int(image))
                picture, detections, target = seen.scene.image, seen.detections, seen.scene.target if truth else None
            else:
                picture, detections = self.bench.detect(name, upload)
                target = None
            for head, found in detections.items():
                classes = self.bench.models[name].config.classes
                figure = detection_figure(picture, found, head, score, classes=classes, target=target)
                count = int((found.scores >= score).sum())
                note = f"{self.bench.titles[name]}: {count} detection{'' if count == 1 else 's'}"
                title, color = colors.head_title(head), colors.head_color(head)
                panels.append(Panel(f"{name}/{head}", title, figure, note, color))
        return panels_json(panels)

    def forget(self, models: list[str], image: int, score: float, truth: bool) -> list[Any]:
        """Back to the data set's image."""
        return [None, gr.Button(visible=False), "", self.view(models, image, score, truth, None)]

    def receive(self, path: str, models: list[str], image: int, score: float, truth: bool) -> list[Any]:
        """Read an uploaded image and show it, or say what is wrong with it."""
        try:
            pixels = load_image(path, max_pixels=MAX_UPLOAD_PIXELS)
        except ImageError as error:
            # The reader knows the file's name, not the folder it was stored in.
            message = style.warning(str(error).replace(path, Path(path).name))
            return [None, gr.Button(visible=False), message, self.view(models, image, score, truth, None)]
        height, width = pixels.shape[:2]
        words = f"Your image, {width} x {height} pixels. It stays on the machine that serves this page."
        upload = Upload(uuid.uuid4().hex, pixels)
        shown = self.view(models, image, score, truth, upload)
        return [upload, gr.Button(visible=True), f'<p class="hint">{words}</p>', shown]
