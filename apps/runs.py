"""Training runs that the page may show: found once by the server, named to the page, never opened by a path from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr_lab.analysis import Look
from codetr_lab.engine.checkpoint import CheckpointError
from codetr_lab.engine.records import METRICS_FILE, read_metrics, read_run

MOST_RUNS = 200


@dataclass(frozen=True)
class Run:
    """What a run's folder tells: its metrics, its looks at the matching (if any were taken), and whether it ended."""

    records: list[dict[str, Any]]
    looks: list[Look]
    finished: bool


def find_runs(root: Path) -> dict[str, Path]:
    """The runs in a folder by name: the folder itself, or those below it that hold a `metrics.jsonl`."""
    if (root / METRICS_FILE).is_file():
        return {root.resolve().name: root}
    found = sorted(path.parent for path in root.rglob(METRICS_FILE))[:MOST_RUNS]
    return {path.relative_to(root).as_posix(): path for path in found}


def read(folder: Path) -> Run:
    """A run as it is now; it may still be going on."""
    try:
        record: Mapping[str, Any] = read_run(folder) or {}
    except CheckpointError:  # written at this very moment
        record = {}
    return Run(read_metrics(folder), _looks(folder), bool(record.get("finished")))


def _looks(folder: Path) -> list[Look]:
    for path in sorted(folder.glob("*.jsonl")):
        if path.name == METRICS_FILE:
            continue
        looks = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                looks.append(Look.from_json(line))
            except (json.JSONDecodeError, KeyError, TypeError, ValueError):  # cut short, or another kind of file
                break
        if looks:
            return looks
    return []
