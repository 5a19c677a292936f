"""Data sets by name or path, as the command line gives them."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from codetr_lab.data.coco import CocoFolder
from codetr_lab.data.dataset import DataError, DetectionDataset
from codetr_lab.data.shapes import DIFFICULTIES, Shapes
from codetr_lab.models.config import unknown

GENERATED = ("shapes", *(f"shapes:{difficulty}" for difficulty in DIFFICULTIES))
"""The names of generated data sets; `shapes` is `shapes:normal`."""


def open_dataset(spec: str | os.PathLike[str], split: str, *, drop_invalid: bool = False) -> DetectionDataset:
    """Open a data set.

    Args:
        spec: `shapes`, `shapes:easy`, `shapes:hard`, or the path of a COCO-format folder or annotation file.
        split: `train` or `val`; a folder may have others.
        drop_invalid: leave invalid annotations of a folder out instead of refusing it.

    Raises:
        ConfigError: no such name; the nearest one is suggested.
        DataError: no such path, or the folder is invalid.
    """
    name = os.fspath(spec)
    if name in GENERATED:
        return Shapes(split, difficulty=name.partition(":")[2] or "normal")
    path = Path(name)
    if path.exists():
        return CocoFolder(path, split=split, drop_invalid=drop_invalid)
    if path.name == name and path.suffix != ".json":
        raise unknown("data set", name, [*GENERATED, *_neighbours(path)])
    near = difflib.get_close_matches(path.name, _neighbours(path), n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else f"generated ones are {', '.join(GENERATED)}"
    raise DataError(f"{path}: no such file or folder; {hint}")


def _neighbours(path: Path) -> list[str]:
    """What lies where a missing path should lie, and could be meant."""
    if not path.parent.is_dir():
        return []
    return sorted(item.name for item in path.parent.iterdir() if item.is_dir() or item.suffix == ".json")
