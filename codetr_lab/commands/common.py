"""What several commands read from their arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from codetr_lab.models.config import CoDETRConfig, ConfigError, override

if TYPE_CHECKING:
    from codetr_lab.data.dataset import DetectionDataset


def settings(config: CoDETRConfig, assignments: Sequence[str]) -> CoDETRConfig:
    """`config` with the settings of `setting_values`.

    Raises:
        ConfigError: as there; no such field, or a value of the wrong kind.
    """
    return override(config, **setting_values(config, assignments))


def setting_values(config: CoDETRConfig, assignments: Sequence[str]) -> dict[str, Any]:
    """Values by dotted name: `transformer.heads=4`, `aux_heads=atss,faster_rcnn`, `backbone.weights=f`.

    Values are read as JSON where they are JSON, else as text; a field that holds several takes commas too.

    Raises:
        ConfigError: no `=`.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: write it as name=value, for example transformer.heads=4")
        present: Any = config
        for part in name.split("."):
            present = getattr(present, part, None)  # `override` names an unknown field
        value = _value(text)
        if isinstance(present, tuple) and not isinstance(value, list):
            value = [_value(item) for item in text.split(",") if item]
        values[name] = text if isinstance(present, str) else value
    return values


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def open_data(spec: str, split: str, drop_invalid: bool = False) -> DetectionDataset:
    """`open_dataset`, and `fiftyone:NAME` for a dataset in FiftyOne."""
    if spec.startswith("fiftyone:"):
        from codetr_lab.integrations.fiftyone import FiftyOneData

        return FiftyOneData(spec.removeprefix("fiftyone:"), split)
    from codetr_lab.data.catalog import open_dataset

    return open_dataset(spec, split, drop_invalid=drop_invalid)


def open_datasets(data: str, val_data: str | None, drop_invalid: bool) -> tuple[DetectionDataset, DetectionDataset]:
    """What to train on, and what to evaluate on."""
    return open_data(data, "train", drop_invalid), open_data(val_data or data, "val", drop_invalid)


def split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def place(device: str) -> str:
    """The device that `auto` means here: a GPU where there is one."""
    import torch

    return "cuda" if device == "auto" and torch.cuda.is_available() else "cpu"
