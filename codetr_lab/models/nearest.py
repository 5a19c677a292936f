"""Which preset a released checkpoint fits, found by comparing key names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.meta import Shapes, meta_model
from codetr_lab.models.presets import list_models, preset
from codetr_lab.models.released import STRUCTURAL, released_key

_ROWS = {
    "num_classes": ("query_head.cls_branches.0.bias",),
    "num_queries": ("query_head.query_embedding.weight", "query_head.transformer.query_embed.weight"),
}
"""Settings that differ between files of one preset, and the released tensors whose first side tells them."""


@dataclass(frozen=True)
class Nearest:
    """The preset that differs least from a file.

    Attributes:
        name: the preset. `changes`: the settings of it that the file has otherwise.
        differing: how many keys are missing, left over or of another shape. `total`: how many the file has.
    """

    name: str
    differing: int
    total: int
    changes: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """Advice in words."""
        call = ", ".join([repr(self.name), *(f"{name}={value}" for name, value in self.changes.items())])
        if not self.differing:
            return f"it fits create_model({call})"
        if self.differing < self.total / 2:
            return f"the nearest is create_model({call}), from which {self.differing} keys differ"
        return "no preset is near it, so it is another kind of model's"


def nearest_preset(state: Mapping[str, Tensor]) -> Nearest:
    """The preset that a `state_dict` under released names fits best. Presets that the release lacks are left out."""
    shapes = {name: tuple(value.shape) for name, value in state.items() if not STRUCTURAL.search(name)}
    rows = {setting: shapes[name][0] for setting, names in _ROWS.items() for name in names if shapes.get(name)}
    found = []
    for name in list_models():
        plain = preset(name)
        changes = {setting: value for setting, value in rows.items() if getattr(plain, setting) != value}
        try:
            expected = released_shapes(preset(name, **changes))
        except KeyError:
            continue
        differing = sum(shapes.get(key) != expected.get(key) for key in shapes.keys() | expected.keys())
        found.append(Nearest(name, differing, len(shapes), changes))
    return min(found, key=lambda nearest: nearest.differing)


def released_shapes(config: CoDETRConfig) -> Shapes:
    """Shape by released key of a configuration, structural buffers left out.

    Raises:
        KeyError: the release lacks one of its parts.
    """
    model = meta_model(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for key, value in model.state_dict().items():
        name = released_key(key, model)
        if name.endswith("head_pos_embed.weight"):  # all heads share it
            shapes[name] = (len(model.heads), *value.shape)
        elif not STRUCTURAL.search(name):
            shapes[name] = tuple(value.shape)
    return shapes
