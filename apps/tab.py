"""What all tabs are: controls with names that a URL can carry, and what is shown for their values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from apps.bench import Bench
from apps.picture import Picture

QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "trigger_mode": "always_last"}
"""Without `show_progress_on` Gradio's page goes through the properties of every component for every event."""
TOLD: dict[str, Any] = QUIET | {"show_progress": "minimal"}
"""For what may make a model read an image: the page counts the seconds, on a figure grid to be named."""
AT_ONCE: dict[str, Any] = QUIET | {"queue": False}
"""One request, where the queue needs two: for sliders, whose moves find everything remembered."""


class Tab:
    """One tab of the page.

    Attributes:
        name: in the URL. `title`: on the page.
        controls: by their names in the URL, in the order in which `show` gets their values.
        renewing: names of controls that change what others offer (another model has other heads).
        reading: names of controls after which a model may have to read the image.
        grid: its first figures.
        outputs: everything else that `show` may change.
    """

    grid: gr.HTML

    name = ""
    title = ""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.controls: dict[str, Component] = {}
        self.renewing: tuple[str, ...] = ()
        self.reading: tuple[str, ...] = ("model",)
        self.outputs: list[Component] = []

    @property
    def everything(self) -> list[Component]:
        """All that `show` may change."""
        return list(dict.fromkeys([*self.controls.values(), *self.outputs]))

    def show(self, picture: Picture, values: dict[str, Any], fresh: bool) -> dict[Component, Any]:
        """What the components must become.

        Args:
            picture: what is looked at.
            values: of the controls, by name.
            fresh: another model or picture: what controls offer is set anew, too.
        """
        raise NotImplementedError


def models_choice(bench: Bench) -> list[tuple[str, str]]:
    """The loaded models for a choice: what people call them, and their names."""
    return [(title, name) for name, title in bench.titles.items()]


def restored(controls: Mapping[str, Component], query: Mapping[str, str]) -> dict[str, Any]:
    """The values that a URL gives to controls, by name; what a control could not have is passed over."""
    values = {}
    for name, control in controls.items():
        if name in query:
            value = _parsed(control, query[name])
            if value is not None:
                values[name] = value
    return values


def _parsed(control: Component, text: str) -> Any:
    """The value that a control could have and that `text` stands for, or None."""
    if isinstance(control, gr.CheckboxGroup):
        known = {str(value): value for _, value in control.choices}
        return [known[part] for part in text.split(",") if part in known]
    if isinstance(control, gr.Dropdown | gr.Radio):
        if control.elem_classes and "open-choice" in control.elem_classes:  # its choices depend on the picture
            return int(text) if text.lstrip("-").isdecimal() and len(text) < 6 else None
        return {str(value): value for _, value in control.choices}.get(text)
    if isinstance(control, gr.Checkbox):
        return {"true": True, "false": False}.get(text)
    try:
        number = float(text)
    except ValueError:
        return None
    least, most = control.minimum, control.maximum  # type: ignore[attr-defined]
    if not math.isfinite(number) or (least is not None and number < least) or (most is not None and number > most):
        return None
    return int(number) if number.is_integer() else number


def url_value(value: Any) -> str:
    """How the page writes a control's value into the URL; the opposite of `restored`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)
