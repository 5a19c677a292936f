"""`codetr demo`."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from codetr_lab.models.config import ConfigError


@dataclass(frozen=True)
class Demo:
    """Start the workbench in the browser."""

    model: tuple[str, ...] = ()
    """Run folders, shipped models or released weights to show; left out, the shipped lab models."""
    weights: Path | None = None
    """A released .pth file that you fetched yourself; --model then names its preset."""
    data: str | None = None
    """A COCO-format folder with the models' classes, or a generated data set; left out, generated images."""
    runs: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """A training run whose curves are shown, or a folder of runs."""
    port: int | None = None
    """Port on 127.0.0.1; left out, the first free one from 7860."""
    smoke: bool = False
    """Start, check that the page answers and that its figure holds data, and stop."""

    def run(self) -> int:
        import codetr_lab

        path = Path(codetr_lab.__file__).parents[1] / "apps" / "workbench.py"
        if not path.is_file():
            raise ConfigError(f"the workbench is not at {path}: it comes with the source tree; clone the repository")
        sys.path.insert(0, str(path.parents[1]))
        try:
            workbench = importlib.import_module("apps.workbench")
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ConfigError('the workbench needs gradio; install it with pip install -e ".[app]"') from error
        return int(workbench.main(self.port, self.smoke, self.model, self.weights, self.data, self.runs))
