"""Building the operator: when it is done, when it is not, and what is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from codetr_lab import build_ops
from codetr_lab.ops import compiled


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources and a place for the library, both of which the test may spoil."""
    folder = tmp_path / "csrc"
    shutil.copytree(build_ops.sources_folder(), folder)
    monkeypatch.setattr(build_ops, "sources_folder", lambda: folder)
    monkeypatch.setattr(build_ops, "LIBRARY", tmp_path / "ops" / "_ms_deform_attn.so")
    return folder


def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A program in place of the compiler."""
    path = tmp_path / "fake-cxx"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


WRITES = 'for a; do [ "$last" = -o ] && echo "codetr-ops-build:$MARK" | tr "\\n" "\\0" > "$a"; last=$a; done'


def test_up_to_date_is_not_built_again(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(tmp_path, monkeypatch, WRITES)
    library = tmp_path / "ops" / "_ms_deform_attn.so"
    assert build_ops.built_hash(library) is None
    monkeypatch.setenv("MARK", build_ops.sources_hash())
    assert build_ops.build(library)
    assert build_ops.built_hash(library) == build_ops.sources_hash()
    assert [path.name for path in library.parent.iterdir()] == [library.name]
    assert not build_ops.build(library)
    assert build_ops.build(library, force=True)
    (sources / "cpu" / "kernels.inl").write_text("// changed")
    assert build_ops.build(library)


def test_broken_source_leaves_the_old_library(sources: Path, tmp_path: Path) -> None:
    library = tmp_path / "ops" / "_ms_deform_attn.so"
    library.parent.mkdir()
    library.write_bytes(b"old")
    for path in (sources / "cpu").glob("*.cpp"):
        path.write_text("this is not C++;")
    (sources / "ms_deform_attn_cpu.cpp").write_text("nor is this;")
    with pytest.raises(build_ops.BuildError, match=r"failed: .*error") as raised:
        build_ops.build(library)
    assert "\n" not in str(raised.value)
    assert library.read_bytes() == b"old"
    assert [path.name for path in library.parent.iterdir()] == [library.name]


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build_ops.BuildError, match="no C\\+\\+ compiler; Debian"):
        build_ops.find_compiler()


def test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(build_ops.BuildError, match="not built on Windows"):
        build_ops.find_compiler()


def test_no_torch(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(build_ops.BuildError, match="torch is not installed"):
        build_ops.build()


def test_no_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build_ops, "PACKAGE", tmp_path / "codetr_lab")
    with pytest.raises(build_ops.BuildError, match="sources are not there"):
        build_ops.sources_folder()


@pytest.mark.parametrize(
    ("switch", "code", "text"),
    [
        ("0", 0, "not built (CODETR_BUILD_OPS=0)"),
        ("auto", 0, "not built (fake-cxx failed: cannot"),
        ("1", 2, "not built (fake-cxx failed: cannot"),
        ("yes", 2, "set it to auto, 0 or 1"),
    ],
)
def test_command(
    switch: str,
    code: int,
    text: str,
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_compiler(tmp_path, monkeypatch, "echo cannot >&2; exit 3")
    monkeypatch.setenv("CODETR_BUILD_OPS", switch)
    assert build_ops.main([]) == code
    output = capsys.readouterr()
    assert text in output.out + output.err
    assert (output.out + output.err).count("\n") == 1


def test_command_builds(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_compiler(tmp_path, monkeypatch, WRITES)
    monkeypatch.delenv("CODETR_BUILD_OPS", raising=False)
    monkeypatch.setenv("MARK", build_ops.sources_hash())
    assert build_ops.main([]) == 0
    assert build_ops.main([]) == 0
    assert capsys.readouterr().out == "compiled operator: built\ncompiled operator: up to date\n"


def test_loading_says_what_is_wrong(sources: Path) -> None:
    library = build_ops.LIBRARY
    assert "it is not built; run `codetr build-ops`" in compiled._load()
    library.parent.mkdir()
    library.write_bytes(build_ops.MARK + b"0123\0")
    assert "built from other sources" in compiled._load()
    library.write_bytes(build_ops.MARK + build_ops.sources_hash().encode() + b"\0")
    assert "does not load" in compiled._load()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_builds_and_runs(tmp_path: Path, repository: Path) -> None:
    """The whole way: compile into an empty folder, load in a fresh process, compare with the formula."""
    library = tmp_path / "_ms_deform_attn.so"
    assert build_ops.build(library)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from codetr_lab import build_ops\n"
        "build_ops.LIBRARY = Path(sys.argv[1])\n"
        "from codetr_lab.ops import compiled\n"
        "assert not compiled.NOT_LOADED, compiled.NOT_LOADED\n"
        "from tests.ops.test_ms_deform_attn import assert_same\n"
        "from tests.ops.conftest import make_inputs\n"
        "assert_same(make_inputs())\n"
    )
    subprocess.run([sys.executable, "-c", script, str(library)], check=True, cwd=repository, timeout=120)


@pytest.mark.parametrize(("switch", "code"), [("0", 0), ("auto", 0), ("1", 1), ("maybe", 1)])
def test_setup_without_compiler(switch: str, code: int, tmp_path: Path, repository: Path) -> None:
    """`setup.py` alone fails only when it is told to."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, tmp_path / name)
    shutil.copytree(repository / "csrc", tmp_path / "csrc")
    (tmp_path / "codetr_lab").mkdir()
    for name in ("__init__.py", "build_ops.py"):
        shutil.copy(repository / "codetr_lab" / name, tmp_path / "codetr_lab" / name)
    environment = os.environ | {"CODETR_BUILD_OPS": switch, "PATH": "", "CXX": ""}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode != 0) == (code != 0), done.stderr
    if switch == "auto":
        assert "compiled operator: not built (there is no C++ compiler" in done.stderr
    if code == 0:
        assert (tmp_path / "build" / "lib" / "codetr_lab" / "build_ops.py").exists() or switch == "auto"
