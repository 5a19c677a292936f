"""Reading the reference numbers in `tests/golden` (see FORMAT.md there)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.meta import meta_model
from codetr_lab.models.presets import preset as make_preset
from codetr_lab.models.released import load_released
from codetr_lab.structures import ImageBatch, Target

FOLDER = Path(__file__).parents[1] / "golden"
SIZES = {"one": [(256, 320)], "two": [(256, 320), (200, 288)]}


def generator() -> ModuleType:
    """The module that makes weights and images from names."""
    spec = importlib.util.spec_from_file_location("detweights", FOLDER / "detweights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Golden:
    """One file of reference numbers."""

    def __init__(self, name: str) -> None:
        self.data = np.load(FOLDER / f"{name}.npz")
        notes = FOLDER / f"{name}.json"
        self.notes = json.loads(notes.read_text()) if notes.exists() else {}

    def __getitem__(self, name: str) -> np.ndarray:
        """A stored array; only those that are kept whole."""
        assert f"{name}//step" not in self.data or self.data[f"{name}//step"] == 1, f"{name} is kept in part only"
        array = self.data[name]
        return array.reshape(self.data[f"{name}//shape"]) if f"{name}//shape" in self.data else array

    def error(self, name: str, ours: Tensor) -> float:
        """Largest difference over the largest magnitude, on what is kept of the tensor."""
        expected = self.data[name]
        full = ours.detach().numpy()
        assert list(full.shape) == list(self.data[f"{name}//shape"]), (name, full.shape, self.data[f"{name}//shape"])
        step = int(self.data[f"{name}//step"]) if f"{name}//step" in self.data else 1
        kept = full.reshape(-1)[::step]
        finite = np.isfinite(expected.reshape(-1))
        difference = np.abs(kept[finite] - expected.reshape(-1)[finite])
        return float(difference.max() / np.abs(expected.reshape(-1)[finite]).max())


def released_model(preset: str, manifest: str, **overrides: int) -> CoDETR:
    """A model whose weights the generator makes from the released key names."""
    weights = generator()
    keys = json.loads((FOLDER / f"manifest_{manifest}.json").read_text())["keys"]
    model = meta_model(make_preset(preset, **overrides)).to_empty(device="cpu")  # initial values would take longer
    for module in model.modules():
        if hasattr(module, "init_non_persistent_buffers"):  # timm's windows
            module.init_non_persistent_buffers()
        if hasattr(module, "num_batches_tracked"):
            module.num_batches_tracked.zero_()
    if "num_queries" in overrides:
        keys = {k: [overrides["num_queries"], s[1]] if "query_embed" in k else s for k, s in keys.items()}
    return load_released(model, {name: torch.from_numpy(np.asarray(weights.make(name, s))) for name, s in keys.items()})


def batch(case: str) -> ImageBatch:
    """The case's images, already normalised."""
    make = generator().image
    images = [make(f"input/{case}/{i}", (1, 3, h, w))[0] for i, (h, w) in enumerate(SIZES[case])]
    return ImageBatch.from_images([torch.from_numpy(image) for image in images])


def targets(golden: Golden, case: str) -> list[Target]:
    """The ground truth of a training case."""
    return [
        {"boxes": torch.from_numpy(golden[f"gt/{i}/bboxes"]), "labels": torch.from_numpy(golden[f"gt/{i}/labels"])}
        for i in range(len(SIZES[case]))
    ]
