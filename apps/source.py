"""The head of the page: which image is looked at, the reader's own images, and objects that the reader draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from apps import style
from apps.bench import Bench
from apps.picture import Picture, Upload
from apps.uploads import ENDINGS, MAX_IMAGES, UploadError, read_uploads

DATA_SET = -1
"""The choice of own images that means none of them."""


class Source:
    """The page's image and everything that changes it.

    Attributes:
        inputs: what `picture` needs, in its order; all of it belongs to one session.
        outputs: what may change when the image does.
    """

    def __init__(self, bench: Bench, first: int, title: str) -> None:
        self.bench = bench
        with gr.Row(elem_classes="page-head", equal_height=False):
            gr.HTML(f"<h1>{title}</h1><p>How label assignment trains a DETR</p>", min_width=240)
            self.image = gr.Slider(
                0, max(1, len(bench.dataset) - 1), value=first, step=1, label=f"Image of {bench.dataset.name}",
                elem_id="image", min_width=280,
            )  # fmt: skip
        with gr.Accordion("Your own image, your own objects", open=False, elem_id="own"), gr.Row():
            with gr.Column(min_width=240):
                self.files = gr.UploadButton(
                    "Choose images, with a COCO file if you have one", file_types=ENDINGS, file_count="multiple",
                    elem_id="own-files", size="md",
                )  # fmt: skip
                self.own = gr.Dropdown(
                    [("the data set", DATA_SET)], value=DATA_SET, label="Look at", visible=False, elem_id="own-image"
                )
            with gr.Column(min_width=240):
                words = bench.classes or tuple(f"class {i}" for i in range(bench.num_classes))
                self.label = gr.Dropdown(
                    [(name, i) for i, name in enumerate(words)], value=0, label="Class of the objects that you add",
                    elem_id="own-class",
                )  # fmt: skip
                self.draw = gr.Checkbox(False, label="Draw them with the mouse, in the tab Assign", elem_id="own-draw")
            with gr.Column(min_width=240):
                self.typed = gr.Textbox(
                    label="Or type left, top, right, bottom (pixels), and Enter", placeholder="10, 20, 60, 80",
                    max_lines=1, elem_id="own-box",
                )  # fmt: skip
                with gr.Row():
                    self.none = gr.Button("Remove all objects", size="sm", min_width=90, elem_id="own-none")
                    self.back = gr.Button("The image's own", size="sm", min_width=90, elem_id="own-back")
        self.message = gr.HTML(elem_id="own-message")
        self.album: gr.State = gr.State([])
        self.drawn: gr.State = gr.State(None)
        self.inputs: list[Component] = [self.image, self.own, self.album, self.drawn]
        self.outputs: list[Component] = [self.own, self.album, self.drawn, self.message, self.typed]

    def picture(self, image: float, own: int, album: Sequence[Upload], drawn: Any) -> Picture:
        """What is looked at."""
        upload = album[own] if album and 0 <= own < len(album) else None
        return Picture(min(max(int(image), 0), len(self.bench.dataset) - 1), upload, drawn)

    def moved(self) -> dict[Component, Any]:
        """The slider moved: the data set's image, with its own objects."""
        return {self.own: DATA_SET, self.drawn: None, self.message: ""}

    def chosen(self) -> dict[Component, Any]:
        """Another own image was chosen."""
        return {self.drawn: None, self.message: ""}

    def receive(self, paths: list[str] | None, album: list[Upload]) -> dict[Component, Any]:
        """Read uploaded files and look at the first of them, or say what is wrong with them."""
        if not paths:
            return {self.message: ""}
        try:
            uploads, told = read_uploads(paths, self.bench.classes)
        except UploadError as error:
            return {self.message: style.warning(str(error))}
        kept = [*album, *uploads][-MAX_IMAGES:]
        choices = [("the data set", DATA_SET), *((upload.name, i) for i, upload in enumerate(kept))]
        return {
            self.album: kept, self.drawn: None, self.message: style.hint(told),
            self.own: gr.Dropdown(choices, value=len(kept) - len(uploads), visible=True),
        }  # fmt: skip

    def add(self, picture: Picture, box: Sequence[float], label: int) -> dict[Component, Any]:
        """Add an object, xyxy in pixels of the image's file."""
        x0, y0, x1, y1 = box
        changed = picture.with_box((x0, y0, x1, y1, label), self.bench.dataset)
        if changed is picture:
            height, width = picture.image(self.bench.dataset).shape[:2]
            return {
                self.message: style.warning(f"This box lies outside the image, which has {width} x {height} pixels.")
            }
        return {self.drawn: changed.drawn, self.message: "", self.typed: ""}

    def add_typed(
        self, image: float, own: int, album: list[Upload], drawn: Any, typed: str, label: int
    ) -> dict[Component, Any]:
        """Add the object that was typed."""
        picture = self.picture(image, own, album, drawn)
        try:
            box = [float(part) for part in typed.replace(",", " ").split()]
        except ValueError:
            box = []
        if len(box) != 4 or not all(abs(side) < 1e6 for side in box):
            return {self.message: style.warning(f"“{typed[:40]}” is not four numbers: left, top, right, bottom.")}
        return self.add(picture, box, label)
