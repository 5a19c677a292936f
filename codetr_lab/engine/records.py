"""What a run writes down beside its weights: `run.json` (how it was made) and `metrics.jsonl` (how it went)."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import codetr_lab
from codetr_lab.engine.checkpoint import STATE_FILE, CheckpointError, TrainingState, load_state, write_atomically
from codetr_lab.engine.options import TrainOptions
from codetr_lab.models.config import CoDETRConfig, ConfigError, to_json

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"


class TrainingError(ValueError):
    """A run cannot start or go on; one line that says what to do."""


def commit() -> str | None:
    """The commit of the source tree, with `-dirty` where tracked files differ; None outside a git checkout."""
    root = Path(codetr_lab.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):  # no git on this machine
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Python and the packages that numbers depend on."""
    packages = ("codetr-lab", "torch", "torchvision", "timm", "accelerate", "numpy", "scipy", "faster-coco-eval")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a source tree on the path, not installed
            found[package] = "not installed"
    return found


def write_run(folder: Path, record: dict[str, Any]) -> None:
    """Write `run.json`.

    Raises:
        CheckpointError: the folder cannot be written to.
    """
    write_atomically(folder / RUN_FILE, (json.dumps(record, indent=2) + "\n").encode())


def read_run(folder: Path) -> dict[str, Any] | None:
    """What `write_run` wrote; None if there is no run in the folder.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / RUN_FILE
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); choose another folder") from error


def resumed_state(folder: Path, config: CoDETRConfig, *, resume: bool) -> TrainingState | None:
    """The state to go on from; None for a new run, or one that was killed before its first checkpoint.

    Raises:
        TrainingError: the folder holds a run and `resume` is False, or the other way round.
        ConfigError: the run was started with another configuration.
        CheckpointError: the state is damaged.
    """
    record = read_run(folder)
    if record is None:
        if resume:
            raise TrainingError(f"{folder} holds no run to resume; leave --resume out to start one")
        return None
    if not resume:
        raise TrainingError(
            f"{folder} already holds a run (started {record.get('started')}); add --resume to go on with it or choose "
            "another --out"
        )
    for name, was, now in _changes(record["config"], json.loads(to_json(config))):
        raise ConfigError(f"{folder} was started with {name} = {was}, not {now}; give the same or choose another --out")
    return load_state(folder) if (folder / STATE_FILE).exists() else None


def _changes(was: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(was.keys() | now.keys()):
        a, b = was.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _changes(a, b, f"{prefix}{name}.")
        elif a != b:
            yield prefix + name, a, b


def run_record(config: CoDETRConfig, options: TrainOptions, **more: Any) -> dict[str, Any]:
    """The content of a new `run.json`."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": commit(),
        "versions": versions(),
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "config": dataclasses.asdict(config),
        "options": dataclasses.asdict(options),
        **more,
    }


def plain(value: Any) -> Any:
    """The same numbers ready for JSON, which has no NaN and no infinity: they become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class MetricsLog:
    """`metrics.jsonl`: one JSON record a line, also kept in `history`.

    Args:
        folder: the run's folder.
        step: records after this step are dropped (a resumed run repeats them); 0 starts a new file.

    Raises:
        CheckpointError: the file cannot be written.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.path = folder / METRICS_FILE
        self.history = [record for record in read_metrics(folder) if record["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in self.history).encode())

    def add(self, record: dict[str, Any]) -> None:
        """Append one record; NaN is written as null."""
        record = plain(record)
        self.history.append(record)
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror}; free some space") from error


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The records in a run's `metrics.jsonl`; a last line that was cut short is left out. Empty if there is no file."""
    path = Path(folder) / METRICS_FILE
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # the line that was being written when the process died
            break
    return records
