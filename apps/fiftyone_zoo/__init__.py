"""What FiftyOne's model zoo calls; the models come with `codetr_lab`, so nothing is downloaded for them.

The source's name is not `codetr_lab`: FiftyOne imports it under its name, which would hide the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def download_model(model_name: str, model_path: str) -> None:
    """Note which model is meant; `load_model` fetches its weights if they are not here."""
    Path(model_path).write_text(model_name.removeprefix("codetr_lab/"))


def load_model(model_name: str, model_path: str, **settings: Any) -> Any:
    """The model, with `head` and `confidence_thresh` as settings."""
    from codetr_lab.integrations.fiftyone.zoo import CodetrModel

    return CodetrModel(Path(model_path).read_text().strip() or model_name, **settings)
