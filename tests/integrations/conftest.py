"""A FiftyOne with a database of its own, three lab-size images, and the models that come with the package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mongo_server import Server

import codetr_lab
from codetr_lab.data.shapes import Shapes
from codetr_lab.models.codetr import CoDETR


@pytest.fixture(scope="session")
def models() -> dict[str, CoDETR]:
    return {name: codetr_lab.load(name) for name in ("lab_co_k2", "lab_baseline")}


@pytest.fixture(scope="session")
def shapes() -> Shapes:
    return Shapes("val", images=4)


@pytest.fixture(scope="session")
def fiftyone(mongod: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """FiftyOne on a database of its own in a temporary folder."""
    folder = tmp_path_factory.mktemp("fiftyone")
    server = Server(folder)
    settings = {
        "FIFTYONE_DATABASE_URI": server.address, "FIFTYONE_DEFAULT_DATASET_DIR": folder / "data",
        "FIFTYONE_PLUGINS_DIR": folder / "plugins", "FIFTYONE_MODEL_ZOO_DIR": folder / "zoo",
        "FIFTYONE_DO_NOT_TRACK": "true", "FIFTYONE_DATABASE_VALIDATION": "false",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update({name: str(value) for name, value in settings.items()})
    for name in ("plugins", "zoo", "data"):
        Path(folder / name).mkdir()
    import fiftyone

    yield fiftyone
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.kill()
