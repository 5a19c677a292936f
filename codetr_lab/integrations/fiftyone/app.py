"""Opens the App on this machine, with the plugin, and stays until it is stopped."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import codetr_lab
from codetr_lab.integrations.fiftyone.look import WORKSPACE

if TYPE_CHECKING:
    import fiftyone as fo

PLUGIN = Path(codetr_lab.__file__).parents[1] / "apps" / "fiftyone_plugin"


def install_plugin(folder: Path | None = None) -> Path | None:
    """Copy the plugin to where FiftyOne looks for plugins; None where the source tree is not at hand."""
    import fiftyone as fo

    if not PLUGIN.is_dir():
        return None
    target = (folder or Path(fo.config.plugins_dir)) / "@codetr_lab" / "label_assignment"
    shutil.copytree(PLUGIN, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def launch(dataset: fo.Dataset, port: int) -> None:
    """Serve the App on 127.0.0.1 until Ctrl-C."""
    import fiftyone as fo

    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")
    install_plugin()
    spaces = dataset.load_workspace(WORKSPACE) if WORKSPACE in dataset.list_workspaces() else None
    session = fo.launch_app(dataset, spaces=spaces, remote=True, address="127.0.0.1", port=port)
    print(f"FiftyOne is at http://127.0.0.1:{port}/datasets/{dataset.name}   (Ctrl-C stops it)")
    session.wait(-1)
