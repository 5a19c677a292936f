"""Building the operator: when it is done, when it is not, and what is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from codetr_lab import build_ops
from codetr_lab.ops import compiled


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources and a place for the library, both of which the test may spoil."""
    folder = tmp_path / "csrc"
    shutil.copytree(build_ops.sources_folder(), folder)
    monkeypatch.setattr(build_ops, "sources_folder", lambda: folder)
    monkeypatch.setattr(build_ops, "LIBRARY", tmp_path / "ops" / "_ms_deform_attn.so")
    monkeypatch.setattr(build_ops, "CUDA_LIBRARY", tmp_path / "ops" / "_ms_deform_attn_cuda.so")
    monkeypatch.setattr(build_ops, "find_nvcc", no_nvcc)
    return folder


def no_nvcc() -> str:
    raise build_ops.BuildError("there is no nvcc")


@pytest.fixture
def nvcc(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of nvcc that writes down its arguments and makes empty files."""
    path = tmp_path / "nvcc"
    path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n' + WRITES.replace("$MARK", "$CUDA_MARK") + "\n")
    path.chmod(0o755)
    monkeypatch.setattr(build_ops, "find_nvcc", lambda: str(path))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.delenv("CODETR_BUILD_OPS", raising=False)
    monkeypatch.setenv("MARK", build_ops.sources_hash())
    monkeypatch.setenv("CUDA_MARK", f"{build_ops.cuda_sources_hash()} {build_ops.ARCHITECTURES}")
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "lib" / "libtorch_cuda.so").touch()
    monkeypatch.setattr(build_ops, "_torch_folder", lambda: tmp_path / "torch")
    fake_compiler(tmp_path, monkeypatch, WRITES)
    return tmp_path / "calls"


def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A program in place of the compiler."""
    path = tmp_path / "fake-cxx"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def has_nvcc() -> bool:
    try:
        build_ops.find_nvcc()
    except build_ops.BuildError:
        return False
    return torch.version.cuda is not None


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


def test_command_builds_for_gpus_where_nvcc_is(
    nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_ops.main(["--no-cuda"]) == 0
    assert not nvcc.exists() and build_ops.built_architectures() == ""
    assert build_ops.main([]) == 0
    assert build_ops.main([]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "compiled operator for GPUs: built (8.0;9.0+PTX)",
        "compiled operator: up to date",
        "compiled operator for GPUs: up to date (8.0;9.0+PTX)",
    ]
    assert build_ops.built_architectures() == "8.0;9.0+PTX"
    compile_, link = nvcc.read_text().splitlines()
    for target in ("arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"):
        assert f"-gencode {target}" in compile_
    assert "code=compute_80" not in compile_ and "-shared" in link
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a 12.0")
    assert build_ops.main([]) == 0
    assert "-gencode arch=compute_90a,code=sm_90a -gencode arch=compute_120,code=sm_120 -c" in nvcc.read_text()


@pytest.mark.parametrize(
    ("architectures", "gpu_torch", "message"),
    [("Hopper", True, "names 'Hopper'; write architectures as in '8.0;9.0+PTX'"), ("8.6", False, "has no CUDA part")],
)
@pytest.mark.parametrize(("switch", "code"), [("auto", 0), ("1", 2)])
def test_command_says_why_not_for_gpus(
    architectures: str,
    gpu_torch: bool,
    message: str,
    switch: str,
    code: int,
    nvcc: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is built for the CPU stays."""
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", architectures)
    monkeypatch.setenv("CODETR_BUILD_OPS", switch)
    if not gpu_torch:
        (tmp_path / "torch" / "lib" / "libtorch_cuda.so").unlink()
    assert build_ops.main([]) == code
    output = capsys.readouterr()
    assert output.out == "compiled operator: built\n"
    assert message in output.err and output.err.count("\n") == 1
    assert build_ops.built_hash() == build_ops.sources_hash()


def test_where_nvcc_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    (tmp_path / "home" / "bin").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "home" / "bin"):
        (folder / "nvcc").write_text("#!/bin/sh\n")
        (folder / "nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert build_ops.find_nvcc() == str(tmp_path / "home" / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert build_ops.find_nvcc() == str(tmp_path / "nvcc")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(build_ops.BuildError, match="no nvcc; install NVIDIA's CUDA toolkit"):
        build_ops.find_nvcc()


def test_sources_of_one_part_leave_the_other_alone(sources: Path) -> None:
    cpu, cuda = build_ops.sources_hash(), build_ops.cuda_sources_hash()
    (sources / "cuda" / "kernels.cuh").write_text("// changed")
    assert build_ops.sources_hash() == cpu != build_ops.cuda_sources_hash() != cuda
    (sources / "arguments.h").write_text("// changed")
    assert build_ops.sources_hash() != cpu


def test_loading_says_what_is_wrong(sources: Path) -> None:
    library = build_ops.LIBRARY
    assert "it is not built; run `codetr build-ops`" in compiled._load()
    library.parent.mkdir()
    library.write_bytes(build_ops.MARK + b"0123\0")
    assert "built from other sources" in compiled._load()
    library.write_bytes(build_ops.MARK + build_ops.sources_hash().encode() + b"\0")
    assert "does not load" in compiled._load()
    assert "it is not built for GPUs; run `codetr build-ops`" in compiled._load_cuda()
    build_ops.CUDA_LIBRARY.write_bytes(build_ops.MARK + b"0123 8.0\0")
    assert "built for GPUs from other sources" in compiled._load_cuda()
    build_ops.CUDA_LIBRARY.write_bytes(build_ops.MARK + build_ops.cuda_sources_hash().encode() + b" 8.0\0")
    assert "does not load for GPUs" in compiled._load_cuda()


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


@pytest.mark.slow
@pytest.mark.skipif(not has_nvcc(), reason="no nvcc, or a torch without CUDA")
def test_cuda_compiles_and_loads(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an A100 and an H100; it loads where there is no GPU, and says so when it is asked to work."""
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    library = tmp_path / "_ms_deform_attn_cuda.so"
    assert build_ops.build_cuda(library)
    assert not build_ops.build_cuda(library)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from codetr_lab import build_ops\n"
        "build_ops.CUDA_LIBRARY = Path(sys.argv[1])\n"
        "from codetr_lab.ops import compiled\n"
        "assert compiled.NOT_LOADED or not compiled.CUDA_NOT_LOADED, compiled.CUDA_NOT_LOADED\n"
        "assert build_ops.built_architectures() == '8.0;9.0+PTX'\n"
    )
    subprocess.run([sys.executable, "-c", script, str(library)], check=True, cwd=repository, timeout=240)


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
