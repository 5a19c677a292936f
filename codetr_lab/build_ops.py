"""Build the compiled operator: `codetr build-ops`, `python -m codetr_lab.build_ops`, and `setup.py`.

Only the standard library is imported before something must be compiled, so that `setup.py` can load this file alone.
The library is written beside `codetr_lab/ops`, and built again only when its sources or its compiler flags change.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
LIBRARY = PACKAGE / "ops" / "_ms_deform_attn.so"
"""Where the operator is looked for."""

MARK = b"codetr-ops-build:"
"""Comes before the build's hash inside the library."""

FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
"""No `-ffast-math`: a coordinate that is not a number must stay one. No `-march=native`: the file may travel."""

TORCH_FLAGS = ("-DTORCH_TARGET_VERSION=0x020a000000000000",)
"""The stable interface of torch 2.10: the library loads on that version and on all later ones."""

CPU_SOURCES: dict[str, tuple[str, ...]] = {
    "cpu/generic.cpp": (),
    "cpu/avx2.cpp": ("-mavx2", "-mfma"),
    "cpu/avx512.cpp": (
        "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mprefer-vector-width=512",
    ),
}  # fmt: skip
"""The kernels, once per instruction set; the processor chooses when they run."""

TORCH_SOURCES = ("ms_deform_attn_cpu.cpp",)


class BuildError(OSError):
    """The operator cannot be built here; the message says why and what to do."""


def sources_folder() -> Path:
    """The C++ sources: in the package when it was installed, beside it in a checkout.

    Raises:
        BuildError: there are none.
    """
    for folder in (PACKAGE / "csrc", PACKAGE.parent / "csrc"):
        if folder.is_dir():
            return folder
    raise BuildError("the C++ sources are not there; install codetr-lab from its repository to build the operator")


def sources_hash() -> str:
    """Changes with any source file and any flag.

    Raises:
        BuildError: there are no sources.
    """
    folder = sources_folder()
    digest = hashlib.sha256(repr((FLAGS, TORCH_FLAGS, CPU_SOURCES, TORCH_SOURCES)).encode())
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".cpp", ".h", ".inl", ".cu", ".cuh")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def built_hash(library: Path | None = None) -> str | None:
    """The hash that `library` (default: `LIBRARY`) was built from, or None when there is no such file."""
    library = library or LIBRARY
    if not library.is_file():
        return None
    _, mark, rest = library.read_bytes().partition(MARK)
    return rest.split(b"\0", 1)[0].decode("ascii", "replace") if mark else ""


def find_compiler() -> str:
    """The C++ compiler: `$CXX`, else the first of c++, g++, clang++ on the path.

    Raises:
        BuildError: there is none, or this is Windows, whose own compiler lacks the vector types that the kernels use.
    """
    if sys.platform == "win32":
        raise BuildError("the operator is not built on Windows; the plain PyTorch formula is used there (or use WSL)")
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise BuildError("there is no C++ compiler; Debian/Ubuntu: apt-get install g++, macOS: xcode-select --install")


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        errors = [line for line in error.stderr.splitlines() if "error" in line.lower()] or error.stderr.splitlines()
        raise BuildError(
            f"{Path(command[0]).name} failed: {errors[0] if errors else f'exit {error.returncode}'}"
        ) from error


def compile_library(library: Path) -> None:
    """Compile and link everything into `library`, which appears whole or not at all. About 15 s on two cores.

    Raises:
        BuildError: torch or the compiler is missing, or the compiler fails.
    """
    torch = importlib.util.find_spec("torch")
    if torch is None or not torch.submodule_search_locations:
        raise BuildError("torch is not installed in this environment, so the operator cannot be compiled against it")
    compiler, folder = find_compiler(), sources_folder()
    torch_folder = Path(torch.submodule_search_locations[0])
    include = f"-isystem{torch_folder / 'include'}"
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    torch_flags = (*TORCH_FLAGS, f'-DCODETR_BUILD="{sources_hash()}"', include)
    jobs: list[tuple[str, tuple[str, ...]]] = [(name, torch_flags) for name in TORCH_SOURCES]
    jobs += [(name, flags) for name, flags in CPU_SOURCES.items() if x86 or not flags]
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="_build_") as scratch:
        objects = [str(Path(scratch) / f"{index}.o") for index in range(len(jobs))]
        commands = [
            [compiler, *FLAGS, *flags, "-c", str(folder / name), "-o", target]
            for (name, flags), target in zip(jobs, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(_run, commands))
        linked = Path(scratch) / library.name
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        libraries = [f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
        _run([compiler, "-shared", *undefined, *objects, *libraries, "-o", str(linked)])
        os.replace(linked, library)


def build(library: Path | None = None, force: bool = False) -> bool:
    """Build the operator unless `library` (default: `LIBRARY`) is up to date (and not `force`).

    Returns:
        Whether anything was built.

    Raises:
        BuildError: it cannot be built; an older library is left as it is.
    """
    library = library or LIBRARY
    if not force and built_hash(library) == sources_hash():
        return False
    try:
        compile_library(library)
    except PermissionError as error:
        raise BuildError(f"cannot write to {library.parent}: {error.strerror}") from error
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, or say in one line why not.

    Returns:
        0; with `CODETR_BUILD_OPS=1`, 2 when the operator could not be built. `CODETR_BUILD_OPS=0` builds nothing.
    """
    parser = argparse.ArgumentParser(prog="python -m codetr_lab.build_ops", description="Build the compiled operator.")
    parser.add_argument("--force", action="store_true", help="build even if the library is up to date")
    force = parser.parse_args(arguments).force
    switch = os.environ.get("CODETR_BUILD_OPS", "auto")
    if switch not in ("auto", "0", "1"):
        print(f"codetr: CODETR_BUILD_OPS is {switch!r}; set it to auto, 0 or 1", file=sys.stderr)
        return 2
    if switch == "0":
        print("compiled operator: not built (CODETR_BUILD_OPS=0); the plain PyTorch formula is used")
        return 0
    try:
        print("compiled operator: " + ("built" if build(force=force) else "up to date"))
    except BuildError as error:
        print(f"compiled operator: not built ({error}); the plain PyTorch formula is used", file=sys.stderr)
        return 2 if switch == "1" else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
