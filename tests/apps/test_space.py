"""The files that make the workbench a Space of Hugging Face fit the repository, and the Space's app starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from apps import workbench
from apps.workbench import WorkbenchError

PARTS = ("apps", "codetr_lab", "notebooks")
"""What CONTRIBUTING.md copies into the Space beside the files of `apps/space/`."""


def front_matter(repository: Path) -> dict[str, Any]:
    return yaml.safe_load((repository / "apps" / "space" / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def versions(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(" ;")[0].split("==") for line in lines if "==" in line)
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_front_matter_names_what_exists_and_the_version_in_use(repository: Path) -> None:
    told, pinned = front_matter(repository), versions(repository / "constraints.txt")
    assert (told["sdk"], told["sdk_version"]) == ("gradio", pinned["gradio"])
    assert (repository / "apps" / "space" / told["app_file"]).is_file()
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert tuple(map(int, told["python_version"].split("."))) >= tuple(
        map(int, project["requires-python"].removeprefix(">=").split("."))
    )
    assert told["license"].lower() == project["license"].lower()
    assert len(told["short_description"]) <= 60
    how = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"git archive HEAD {' '.join(PARTS)} LICENSE" in how


def test_requirements_are_the_packages_in_their_pinned_versions(repository: Path) -> None:
    asked = versions(repository / "apps" / "space" / "requirements.txt")
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[<>=]", line)[0].lower().replace("_", "-") for line in project["dependencies"]}
    assert set(asked) == names
    pinned = versions(repository / "constraints.txt")
    assert asked == {name: pinned[name] for name in names}


@pytest.mark.slow
def test_the_app_file_starts(repository: Path, tmp_path: Path) -> None:
    for part in PARTS:
        (tmp_path / part).symlink_to(repository / part)
    app = front_matter(repository)["app_file"]
    (tmp_path / app).write_bytes((repository / "apps" / "space" / app).read_bytes())
    port = workbench.free_port()
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SPACE_ID")}
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(
            [sys.executable, app], cwd=tmp_path, stdout=log, stderr=log,
            env=environment | {"GRADIO_SERVER_PORT": str(port)},
        )  # fmt: skip
    try:
        end = time.monotonic() + 240
        while True:
            try:
                drawn = workbench.check(f"http://{workbench.HOST}:{port}", "lab_co_k2")
                break
            except (OSError, WorkbenchError):
                assert running.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(1)
        assert drawn > 340
    finally:
        running.kill()
        running.wait()
