"""The Makefile's commands, and the one line that says what a machine lacks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

SYSTEM_PATH = "/usr/bin:/bin"
TARGETS = ("demo", "test", "check", "lint", "notebooks", "clean")

pytestmark = pytest.mark.skipif(shutil.which("make") is None or os.name != "posix", reason="needs make and a POSIX sh")


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """A copy of the files that `make demo` reads before there is an environment."""
    folder = tmp_path / "a clone"
    (folder / "tools").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "tools/environment.sh"):
        shutil.copy(repository / name, folder / name)
    return folder


def make(folder: Path, *arguments: str, path: str = SYSTEM_PATH) -> subprocess.CompletedProcess[str]:
    environment: Mapping[str, str] = {"PATH": path, "HOME": str(folder)}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def stub(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def assert_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Make failed with one line of ours and its own "Error 2", and no traceback."""
    ours = [line for line in result.stderr.splitlines() if line.startswith("codetr_lab: ")]
    assert result.returncode == 2, result.stderr
    assert len(ours) == 1, result.stderr
    assert len(result.stderr.splitlines()) == 2, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    for word in words:
        assert word in ours[0]


def test_make_alone_lists_every_command(checkout: Path) -> None:
    result = make(checkout)
    assert result.returncode == 0
    assert all(f"make {target} " in result.stdout for target in TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_every_command_is_known_to_make(checkout: Path, target: str) -> None:
    assert make(checkout, "--dry-run", target).returncode == 0


def test_demo_hands_port_and_smoke_on(checkout: Path) -> None:
    plain = make(checkout, "--dry-run", "demo").stdout
    asked = make(checkout, "--dry-run", "demo", "PORT=7999", "SMOKE=1").stdout
    assert "--port" not in plain and "--smoke" not in plain
    assert "demo --port 7999 --smoke" in asked


def test_an_environment_that_is_there_is_not_made_again(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".demo").touch()
    assert "environment.sh" not in make(checkout, "--dry-run", "demo").stdout
    later = (checkout / ".venv" / ".demo").stat().st_mtime + 10
    os.utime(checkout / "constraints.txt", (later, later))
    assert "environment.sh" in make(checkout, "--dry-run", "demo").stdout


def test_no_python(checkout: Path) -> None:
    assert_one_line(
        make(checkout, "demo", "PYTHON=python3.99"), "no python3.99", "apt-get install python3", "make demo PYTHON="
    )


def test_an_old_python(checkout: Path, tmp_path: Path) -> None:
    script = 'case "$2" in *sys.exit*) exit 1 ;; *) echo 3.8.18 ;; esac'
    old = stub(tmp_path / "bin", "python3.8", script)
    assert_one_line(make(checkout, "demo", f"PYTHON={old}"), "Python 3.8.18", "3.11 or newer")


def test_a_python_that_does_not_run(checkout: Path, tmp_path: Path) -> None:
    broken = stub(tmp_path / "bin", "python3", "echo 'Traceback (most recent call last):' >&2; exit 1")
    assert_one_line(make(checkout, "test", f"PYTHON={broken}"), "does not run", "make test PYTHON=")


def test_neither_venv_nor_pip(checkout: Path, tmp_path: Path) -> None:
    script = 'case "$1" in -m) echo "No module named $2" >&2; exit 1 ;; *) echo 3.11.2 ;; esac'
    bare = stub(tmp_path / "bin", "python3", script)
    assert_one_line(make(checkout, "demo", f"PYTHON={bare}"), "neither venv nor pip", "apt-get install python3-venv")


def test_no_network(checkout: Path, tmp_path: Path) -> None:
    script = """case "$*" in
        "-m venv"*) exit 1 ;;
        "-m pip --version") ;;
        "-m pip"*) echo 'ERROR: No matching distribution found for uv' >&2; exit 1 ;;
        *) echo 3.11.2 ;;
    esac"""
    python = stub(tmp_path / "bin", "python3", script)
    result = make(checkout, "demo", f"PYTHON={python}")
    assert_one_line(result, "pip could not get uv", "No matching distribution")
    assert not (checkout / ".venv" / ".demo").exists()


def test_packages_that_cannot_be_installed(checkout: Path, tmp_path: Path) -> None:
    """uv's own words stay, ours say what to do, and the next `make` tries again."""
    uv = stub(tmp_path / "bin", "uv", 'case "$1" in pip) echo "error: no route to host" >&2; exit 2 ;; esac')
    python = stub(tmp_path / "bin", "python3", "echo 3.11.2")
    result = make(checkout, "demo", f"PYTHON={python}", path=f"{uv.parent}:{SYSTEM_PATH}")
    assert result.returncode == 2
    assert "no route to host" in result.stderr and "run make demo again" in result.stderr
    assert not (checkout / ".venv" / ".demo").exists()


def test_scripts_parse(repository: Path) -> None:
    for shell, script in (("sh", "tools/environment.sh"), ("bash", ".ci/run")):
        subprocess.run([shell, "-n", str(repository / script)], check=True)
    assert os.access(repository / ".ci" / "run", os.X_OK)


def test_documents_name_commands_that_exist(repository: Path) -> None:
    for document in ("README.md", "CONTRIBUTING.md", "notebooks/README.md"):
        named = set(re.findall(r"(?:^|`|&& )make ([a-z]+)", (repository / document).read_text(), re.MULTILINE))
        assert named <= set(TARGETS), document
