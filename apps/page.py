"""The whole page: its head, its tabs, and how they share one image and a URL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from apps import style
from apps.about_tab import AboutTab
from apps.assign_tab import AssignTab
from apps.bench import Bench
from apps.discriminability_tab import DiscriminabilityTab
from apps.heads_tab import HeadsTab
from apps.picture import Picture
from apps.plot import allow_plotly_script
from apps.queries_tab import QueriesTab
from apps.source import DATA_SET, Source
from apps.tab import AT_ONCE, QUIET, TOLD, Tab, restored, url_value
from apps.training_tab import TrainingTab
from codetr_lab.data.dataset import DetectionDataset
from codetr_lab.models.codetr import CoDETR

TITLE = "Co-DETR workbench"
SLOW = 2.0
"""Seconds for an image from which a model is announced as slow."""
KEEP_SECONDS = 3600
"""How long uploaded files stay on the server."""
_REMEMBER = """(image, ...values) => {{
  if (!window.workbenchOpened) return; // the address has not been read yet
  const names = {names}, usual = {usual}, query = new URLSearchParams({{ tab: '{tab}', image }});
  const text = (value) => (Array.isArray(value) ? value.join() : String(value ?? ''));
  names.forEach((name, i) => {{ if (text(values[i]) !== usual[i]) query.set(name, text(values[i])); }});
  history.replaceState(null, '', '?' + query.toString().replaceAll('%2F', '/').replaceAll('%2C', ','));
}}"""
_READY = "(_, ...values) => [window.workbenchOpened === true, ...values]"
_OPENED = "() => { window.workbenchOpened = true; }"


class Page:
    """The page, not yet served.

    Args:
        models: by name, in evaluation mode; the last is shown first, beside the first where two are compared.
        dataset: whose images are shown.
        missing: names of models whose trained weights are missing; the page warns about them.
        notes: other things that the reader must know.
        runs: a run's folder, or a folder of runs.
    """

    def __init__(
        self,
        models: Mapping[str, CoDETR],
        dataset: DetectionDataset,
        missing: Sequence[str] = (),
        notes: Sequence[str] = (),
        runs: Path | None = None,
    ) -> None:
        allow_plotly_script()
        self.bench = bench = Bench(models, dataset)
        self.first = first_image(dataset)
        names = list(bench.models)
        start, beside = names[-1], list(dict.fromkeys([names[0], names[-1]]))
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as self.blocks:
            self.source = Source(bench, self.first, TITLE)
            for words in [*([missing_words(missing)] if missing else []), *notes, *slow_words(bench, self.first)]:
                gr.HTML(style.warning(words), elem_classes="page-note")
            self.tabs: list[Tab] = []
            self.opened: list[gr.Tab] = []
            with gr.Tabs() as self.switch:
                for kind, arguments in (
                    (AssignTab, (start, Picture(self.first))), (DiscriminabilityTab, ((beside[0], beside[-1]),)),
                    (QueriesTab, (start,)), (HeadsTab, (beside,)), (TrainingTab, (start, runs)), (AboutTab, (start,)),
                ):  # fmt: skip
                    with gr.Tab(kind.title, id=kind.name) as opened:
                        self.tabs.append(kind(bench, *arguments))
                    self.opened.append(opened)
            self.active: gr.State = gr.State(self.tabs[0].name)
            self.ready = gr.Checkbox(False, visible=False)
            self._controls = [control for tab in self.tabs for control in tab.controls.values()]
            self._everything = [component for tab in self.tabs for component in tab.everything]
            self._wire()
            gr.api(self.figure, api_name="figure")

    # --- what happens

    def render(
        self, active: str, picture: Picture, flat: Sequence[Any], draw: bool, **more: Any
    ) -> dict[Component, Any]:
        """What the active tab must show; `flat` are the values of all tabs' controls."""
        start = 0
        for tab in self.tabs:
            values = dict(zip(tab.controls, flat[start : start + len(tab.controls)], strict=True))
            start += len(tab.controls)
            if tab.name == active:
                return tab.show(picture, values | {"draw": draw} | more, fresh=True)
        return {}

    def figure(self, model: str, image: int) -> str:
        """The panels of the tab Assign for one model and image of the data set, for `codetr demo --smoke`."""
        tab = self.tabs[0]
        usual = {name: getattr(control, "value", None) for name, control in tab.controls.items()}
        shown = tab.show(Picture(image), usual | {"model": model, "reset": True}, fresh=True)
        return str(shown[tab.grid])

    def restore(self, request: gr.Request) -> dict[Component, Any]:
        """The state that the address names, or a good first image."""
        query = dict(request.query_params)
        tab = next((tab for tab in self.tabs if tab.name == query.get("tab")), self.tabs[0])
        found = restored({"image": self.source.image}, query)
        image = int(found.get("image", self.first))
        values = {name: getattr(control, "value", None) for name, control in tab.controls.items()}
        own = restored(tab.controls, query)
        shown = tab.show(Picture(image), values | own, fresh=True)
        chosen = {tab.controls[name]: value for name, value in own.items() if tab.controls[name] not in shown}
        chosen |= {self.source.image: image, self.active: tab.name, self.switch: gr.Tabs(selected=tab.name)}
        return chosen | shown

    # --- how it is wired

    def _wire(self) -> None:
        source, active = self.source, self.active
        every = [active, *source.inputs, source.draw, *self._controls]
        anything = list(dict.fromkeys([*self._everything, *source.outputs, active, source.image]))

        def shown(active: str, image: float, own: int, album: list[Any], drawn: Any, draw: bool, *flat: Any) -> Any:
            return self.render(active, source.picture(image, own, album, drawn), flat, draw)

        def moved(active: str, image: float, own: int, album: list[Any], drawn: Any, draw: bool, *flat: Any) -> Any:
            picture = source.picture(image, DATA_SET, album, None)
            return source.moved() | self.render(active, picture, flat, draw)

        quiet: dict[str, Any] = {**QUIET, "api_visibility": "private"}
        told = TOLD | {"api_visibility": "private", "show_progress_on": [tab.grid for tab in self.tabs]}
        source.image.input(moved, every, anything, **told)
        source.draw.input(shown, every, anything, **quiet)
        changes = [
            source.own.input(source.chosen, None, source.outputs, **quiet),
            source.files.upload(
                source.receive, [source.files, source.album], source.outputs, api_name="upload", trigger_mode="multiple"
            ),
            source.typed.submit(
                source.add_typed, [*source.inputs, source.typed, source.label], source.outputs, **quiet
            ),
            source.none.click(lambda: {source.drawn: (), source.message: ""}, None, source.outputs, **quiet),
            source.back.click(lambda: {source.drawn: None, source.message: ""}, None, source.outputs, **quiet),
            self._drawn_event(quiet),
        ]
        for change in changes:
            change.then(shown, every, anything, **told)
        for tab, opened in zip(self.tabs, self.opened, strict=True):
            self._wire_tab(tab, opened, every, anything, quiet)
        # Not queued: the first tab's `select` is, and of two that enter an idle queue Gradio may lose an answer.
        self.blocks.load(
            self.restore, None, [*anything, self.switch], **AT_ONCE, api_visibility="private"
        ).then(None, js=_OPENED, show_progress_on=[], api_visibility="private")  # fmt: skip

    def _wire_tab(
        self, tab: Tab, opened: gr.Tab, every: list[Component], anything: list[Component], quiet: dict[str, Any]
    ) -> None:
        source, names = self.source, list(tab.controls)
        own = [*source.inputs, source.draw, *tab.controls.values()]

        def viewer(moved: str) -> Any:
            def view(image: float, own: int, album: list[Any], drawn: Any, draw: bool, *values: Any) -> Any:
                told = dict(zip(names, values, strict=True)) | {"draw": draw, "moved": moved}
                told["reset"] = moved == "model"
                return tab.show(source.picture(image, own, album, drawn), told, moved in tab.renewing)

            return view

        for name, control in tab.controls.items():
            how = AT_ONCE if isinstance(control, gr.Slider) else QUIET
            if name in tab.reading:
                how = TOLD | {"show_progress_on": tab.grid}
            called = f"{tab.name}_{name.replace('/', '_')}"
            changed = tab.everything if name in tab.renewing else tab.outputs  # fewer are sooner shown
            control.input(viewer(name), own, changed, **how, api_name=called)  # type: ignore[attr-defined]
        remember = _REMEMBER.format(
            tab=tab.name, names=json.dumps(names),
            usual=json.dumps([url_value(getattr(control, "value", None)) for control in tab.controls.values()]),
        )  # fmt: skip
        told: list[Component] = [source.image, *tab.controls.values()]
        gr.on(
            [source.image.input, *(control.input for control in tab.controls.values())],  # type: ignore[attr-defined]
            None, told, js=remember, api_visibility="private",
        ) if tab is self.tabs[0] else gr.on(
            [control.input for control in tab.controls.values()], None, told, js=remember,  # type: ignore[attr-defined]
            api_visibility="private",
        )  # fmt: skip

        def select(ready: bool, image: float, own: int, album: list[Any], drawn: Any, draw: bool, *flat: Any) -> Any:
            if not ready:  # the page is still opening: it shows what the address names
                return gr.skip()
            shown = self.render(tab.name, source.picture(image, own, album, drawn), flat, draw)
            return {self.active: tab.name} | shown

        opened.select(
            select,
            [self.ready, *every[1:]],
            anything,
            show_progress="minimal",
            show_progress_on=tab.grid,
            api_visibility="private",
            js=_READY,
        ).then(None, told, js=remember, api_visibility="private")
        self._wire_clicks(tab, own, names, quiet)

    def _wire_clicks(self, tab: Tab, own: list[Component], names: list[str], quiet: dict[str, Any]) -> None:
        source = self.source
        if isinstance(tab, AssignTab):

            def explain(
                event: gr.EventData, image: float, own: int, album: Any, drawn: Any, draw: bool, *values: Any
            ) -> Any:
                head, candidate = str(event.panel), int(event.row[0])
                told = dict(zip(names, values, strict=True)) | {"draw": draw, "head": head, "candidate": candidate}
                shown = tab.show(source.picture(image, own, album, drawn), told, False)
                return {tab.controls["head"]: head, tab.controls["candidate"]: candidate} | shown

            tab.grid.select(explain, own, tab.everything, **quiet)
        if isinstance(tab, QueriesTab):

            def follow(
                event: gr.EventData, image: float, own: int, album: Any, drawn: Any, draw: bool, *values: Any
            ) -> Any:
                told = dict(zip(names, values, strict=True))
                if "group" not in event.meta:
                    return gr.skip()
                chosen = tab.picked(told, str(event.meta["group"]), int(event.row[0]))
                return chosen | tab.show(source.picture(image, own, album, drawn), told, False)

            tab.grid.select(follow, own, tab.everything, **quiet)
        if isinstance(tab, TrainingTab):

            def tick(image: float, own: int, album: Any, drawn: Any, draw: bool, *values: Any) -> Any:
                return tab.show(Picture(), dict(zip(names, values, strict=True)), False)

            tab.timer.tick(tick, own, tab.everything, **quiet)

    def _drawn_event(self, quiet: dict[str, Any]) -> Any:
        """A box drawn in a panel of the tab Assign: from the model's pixels to the file's."""
        source, tab = self.source, self.tabs[0]
        assert isinstance(tab, AssignTab)

        def add(event: gr.EventData, image: float, own: int, album: Any, drawn: Any, label: int, model: str) -> Any:
            picture = source.picture(image, own, album, drawn)
            x, y = self.bench.seen(model, picture).scene.batch.scales[0]
            box = [float(side) / scale for side, scale in zip(event.box, (x, y, x, y), strict=True)]
            return source.add(picture, box, label)

        return tab.grid.edit(add, [*source.inputs, source.label, tab.controls["model"]], source.outputs, **quiet)


def first_image(dataset: DetectionDataset) -> int:
    """A good image to begin with: the first with 4 to 6 objects among the first fifty, or image 0."""
    counts = (len(dataset.target(index, masks=False)["labels"]) for index in range(min(50, len(dataset))))
    return next((index for index, count in enumerate(counts) if 4 <= count <= 6), 0)


def slow_words(bench: Bench, first: int) -> list[str]:
    """What the reader must know of models that take longer than `SLOW` seconds for an image; they look at the first."""
    for name in bench.models:
        bench.seen(name, Picture(first))
    return [
        f"{bench.titles[name]} took {seconds:.0f} s to look at a first image on this machine. Its sliders answer "
        "sooner: what it made of an image is remembered."
        for name, seconds in bench.seconds.items()
        if seconds > SLOW
    ]


def missing_words(missing: Sequence[str]) -> str:
    """What the reader must know of models without trained weights."""
    names = ", ".join(missing)
    return (
        f"Trained weights are missing for {names}: random weights stand in, so detections and the decoder's matching "
        "mean nothing. Train with: codetr experiment quick"
    )
