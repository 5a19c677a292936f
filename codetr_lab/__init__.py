"""codetr_lab: a workbench in which you see how label assignment trains a DETR.

The names below are the public face; everything else is imported from its module. Heavy parts load on first use.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codetr_lab import analysis, assign, data, draws, ops, viz
    from codetr_lab.engine.checkpoint import load
    from codetr_lab.models.codetr import CoDETR
    from codetr_lab.models.config import ConfigError
    from codetr_lab.models.presets import create_model, list_models
    from codetr_lab.models.released import load_released, to_released
    from codetr_lab.structures import Assignment, Candidates, Detections, ImageBatch, Trace

# Torch reads this at its first large tensor: huge pages make a full-size model about a tenth faster on Linux CPUs.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_HOME = {
    "list_models": "codetr_lab.models.presets",
    "create_model": "codetr_lab.models.presets",
    "CoDETR": "codetr_lab.models.codetr",
    "ConfigError": "codetr_lab.models.config",
    "load": "codetr_lab.engine.checkpoint",
    "load_released": "codetr_lab.models.released",
    "to_released": "codetr_lab.models.released",
    "Assignment": "codetr_lab.structures",
    "Candidates": "codetr_lab.structures",
    "Detections": "codetr_lab.structures",
    "ImageBatch": "codetr_lab.structures",
    "Trace": "codetr_lab.structures",
}
_ROOMS = ("analysis", "assign", "data", "draws", "ops", "viz")

__all__ = [
    "Assignment", "Candidates", "CoDETR", "ConfigError", "Detections", "ImageBatch", "Trace", "analysis", "assign",
    "create_model", "data", "draws", "list_models", "load", "load_released", "ops", "to_released", "viz",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"codetr_lab.{name}")
    raise AttributeError(f"module 'codetr_lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
