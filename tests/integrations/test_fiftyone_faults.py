"""What goes wrong while a dataset is built: it says so in one line, and the next build goes on where it stopped."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

import codetr_lab
from codetr_lab.data.shapes import Shapes
from codetr_lab.integrations.fiftyone import build_dataset

pytestmark = [pytest.mark.fiftyone, pytest.mark.slow]


def test_a_file_that_cannot_be_written(fiftyone: Any, tmp_path: Path) -> None:
    model = {"lab_baseline": codetr_lab.load("lab_baseline")}
    data = Shapes("val", images=2)
    build_dataset(model, data, "full", media=tmp_path, limit=1, progress=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # as on a full disk: the write itself fails
    try:
        with pytest.raises(OSError, match="File too large"):
            build_dataset(model, data, "full", media=tmp_path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert fiftyone.load_dataset("full").values("image_id") == [0]
    assert len(build_dataset(model, data, "full", media=tmp_path, progress=False)) == 2
    assert not list((tmp_path / "images").glob("*.part"))
    fiftyone.delete_dataset("full")
