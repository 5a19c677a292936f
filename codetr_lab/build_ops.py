"""Build the compiled operator: `codetr build-ops`, `python -m codetr_lab.build_ops`, and `setup.py`.

Two libraries beside `codetr_lab/ops`: one for the CPU and, where nvcc is, one for NVIDIA GPUs, which needs the first.
Either is built again only when its sources or its compiler flags change. Only the standard library is imported before
something must be compiled, so that `setup.py` can load this file alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
LIBRARY = PACKAGE / "ops" / "_ms_deform_attn.so"
"""Where the operator is looked for."""

CUDA_LIBRARY = PACKAGE / "ops" / "_ms_deform_attn_cuda.so"
"""Where its part for GPUs is looked for."""

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

TORCH_SOURCE = "ms_deform_attn_cpu.cpp"
CUDA_TORCH_SOURCE = "ms_deform_attn_cuda.cpp"
CUDA_SOURCE = "cuda/kernels.cu"
CUDA_FLAGS = ("-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden")

ARCHITECTURES = "8.0;9.0+PTX"
"""GPUs that the CUDA part is compiled for (A100, H100; PTX: all later ones), unless TORCH_CUDA_ARCH_LIST says else."""


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


def _hash(flags: object, pattern: str) -> str:
    """Changes with the flags, with the sources that fit the pattern and with the headers that all share."""
    folder = sources_folder()
    digest = hashlib.sha256(repr(flags).encode())
    for path in sorted({*folder.glob("*.h"), *folder.glob(pattern)}):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def sources_hash() -> str:
    """Changes with any source file and any flag of the CPU's library.

    Raises:
        BuildError: there are no sources.
    """
    return _hash((FLAGS, TORCH_FLAGS, CPU_SOURCES, (sources_folder() / TORCH_SOURCE).read_bytes()), "cpu/*")


def cuda_sources_hash() -> str:
    """Changes with any source file and any flag of the GPUs' library, except the list of architectures."""
    return _hash((FLAGS, CUDA_FLAGS, (sources_folder() / CUDA_TORCH_SOURCE).read_bytes()), "cuda/*")


def built_hash(library: Path | None = None) -> str | None:
    """The hash that `library` (default: `LIBRARY`) was built from, or None when there is no such file."""
    if not (library or LIBRARY).is_file():
        return None
    return _mark(library or LIBRARY).partition(" ")[0]


def built_architectures() -> str:
    """What `CUDA_LIBRARY` was compiled for, in the words of TORCH_CUDA_ARCH_LIST; empty when there is none."""
    return _mark(CUDA_LIBRARY).partition(" ")[2] if CUDA_LIBRARY.is_file() else ""


def _mark(library: Path) -> str:
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


def find_nvcc() -> str:
    """The CUDA compiler: in $CUDA_HOME or $CUDA_PATH, on the path, or where Linux usually has it.

    Raises:
        BuildError: there is none.
    """
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    for name in (*(str(Path(home) / "bin" / "nvcc") for home in homes if home), "nvcc", "/usr/local/cuda/bin/nvcc"):
        if path := shutil.which(name):
            return path
    raise BuildError("there is no nvcc; install NVIDIA's CUDA toolkit and put nvcc on the path, or set CUDA_HOME")


def nvcc_mend() -> str:
    """What must come before GPUs' part can be built, as the beginning of a line; empty when nvcc is there."""
    try:
        find_nvcc()
    except BuildError:
        return "install NVIDIA's CUDA toolkit (nvcc), then "
    return ""


def architectures() -> str:
    """What is compiled for GPUs, as in "8.0;9.0+PTX".

    Raises:
        BuildError: TORCH_CUDA_ARCH_LIST is not of that kind.
    """
    names = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";").strip(";") or ARCHITECTURES
    for name in names.split(";"):
        if not re.fullmatch(r"\d+\.\d[a-z]?(\+PTX)?", name):
            raise BuildError(f"TORCH_CUDA_ARCH_LIST names {name!r}; write architectures as in {ARCHITECTURES!r}")
    return names


def _targets(names: str) -> list[str]:
    """nvcc's options for "8.0;9.0+PTX"."""
    options = []
    for name in names.split(";"):
        number = name.removesuffix("+PTX").replace(".", "")
        for code in (f"sm_{number}", f"compute_{number}")[: 2 if name.endswith("+PTX") else 1]:
            options += ["-gencode", f"arch=compute_{number},code={code}"]
    return options


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        errors = [line for line in error.stderr.splitlines() if "error" in line.lower()] or error.stderr.splitlines()
        raise BuildError(
            f"{Path(command[0]).name} failed: {errors[0] if errors else f'exit {error.returncode}'}"
        ) from error


def _torch_folder() -> Path:
    torch = importlib.util.find_spec("torch")
    if torch is None or not torch.submodule_search_locations:
        raise BuildError("torch is not installed in this environment, so the operator cannot be compiled against it")
    return Path(torch.submodule_search_locations[0])


def _compile_and_link(commands: Sequence[Sequence[str]], link: Sequence[str], library: Path) -> None:
    """Run `commands`, each with `-o` and an object's name, side by side, then `link` on the objects.

    `library` appears whole or not at all.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="_build_") as scratch:
        objects = [str(Path(scratch) / f"{index}.o") for index in range(len(commands))]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(_run, ([*c, "-o", target] for c, target in zip(commands, objects, strict=True))))
        linked = Path(scratch) / library.name
        _run([link[0], *objects, *link[1:], "-o", str(linked)])
        os.replace(linked, library)


def compile_library(library: Path) -> None:
    """Compile and link everything for the CPU into `library`. About 15 s on two cores.

    Raises:
        BuildError: torch or the compiler is missing, or the compiler fails.
    """
    torch, compiler, folder = _torch_folder(), find_compiler(), sources_folder()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    build = (*TORCH_FLAGS, f'-DCODETR_BUILD="{sources_hash()}"', f"-isystem{torch / 'include'}")
    jobs = {TORCH_SOURCE: build} | {name: flags for name, flags in CPU_SOURCES.items() if x86 or not flags}
    undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    _compile_and_link(
        [[compiler, *FLAGS, *flags, "-c", str(folder / name)] for name, flags in jobs.items()],
        [compiler, "-shared", *undefined, f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"],
        library,
    )


def compile_cuda_library(library: Path) -> None:
    """Compile and link everything for GPUs into `library`. About 20 s on two cores; needs no GPU.

    CUDA's runtime is linked in, so that the library does not depend on which one torch brings along.

    Raises:
        BuildError: torch, its CUDA part or a compiler is missing, or a compiler fails.
    """
    torch, compiler, nvcc, folder, names = (
        _torch_folder(),
        find_compiler(),
        find_nvcc(),
        sources_folder(),
        architectures(),
    )
    if not list((torch / "lib").glob("libtorch_cuda.*")):
        raise BuildError("this torch has no CUDA part; install one that has (pytorch.org says which)")
    build = f'-DCODETR_BUILD="{cuda_sources_hash()} {names}"'
    torch_flags = (*FLAGS, *TORCH_FLAGS, "-DUSE_CUDA", build, f"-isystem{torch / 'include'}")
    _compile_and_link(
        [
            [nvcc, *CUDA_FLAGS, "-ccbin", compiler, *_targets(names), "-c", str(folder / CUDA_SOURCE)],
            [compiler, *torch_flags, "-c", str(folder / CUDA_TORCH_SOURCE)],
        ],
        [nvcc, "-shared", f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-lc10"],
        library,
    )


def build(library: Path | None = None, force: bool = False) -> bool:
    """Build the operator for the CPU unless `library` (default: `LIBRARY`) is up to date (and not `force`).

    Returns:
        Whether anything was built.

    Raises:
        BuildError: it cannot be built; an older library is left as it is.
    """
    library = library or LIBRARY
    if not force and built_hash(library) == sources_hash():
        return False
    _writing(library, compile_library)
    return True


def build_cuda(library: Path | None = None, force: bool = False) -> bool:
    """Build the operator for GPUs, as `build` does for the CPU."""
    library = library or CUDA_LIBRARY
    if not force and library.is_file() and _mark(library) == f"{cuda_sources_hash()} {architectures()}":
        return False
    _writing(library, compile_cuda_library)
    return True


def _writing(library: Path, compile_it: Callable[[Path], None]) -> None:
    try:
        compile_it(library)
    except PermissionError as error:
        raise BuildError(f"cannot write to {library.parent}: {error.strerror}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, or say in one line why not; GPUs' part is passed over in silence where there is no nvcc.

    Returns:
        0; with `CODETR_BUILD_OPS=1`, 2 when the operator could not be built. `CODETR_BUILD_OPS=0` builds nothing.
    """
    parser = argparse.ArgumentParser(prog="python -m codetr_lab.build_ops", description="Build the compiled operator.")
    parser.add_argument("--force", action="store_true", help="build even what is up to date")
    parser.add_argument("--no-cuda", action="store_true", help="only for the CPU")
    options = parser.parse_args(arguments)
    switch = os.environ.get("CODETR_BUILD_OPS", "auto")
    if switch not in ("auto", "0", "1"):
        print(f"codetr: CODETR_BUILD_OPS is {switch!r}; set it to auto, 0 or 1", file=sys.stderr)
        return 2
    if switch == "0":
        print("compiled operator: not built (CODETR_BUILD_OPS=0); the plain PyTorch formula is used")
        return 0
    try:
        print("compiled operator: " + ("built" if build(force=options.force) else "up to date"), flush=True)
    except BuildError as error:
        print(f"compiled operator: not built ({error}); the plain PyTorch formula is used", file=sys.stderr)
        return 2 if switch == "1" else 0
    try:
        find_nvcc()
    except BuildError:
        return 0
    if options.no_cuda:
        return 0
    try:
        done = "built" if build_cuda(force=options.force) else "up to date"
        print(f"compiled operator for GPUs: {done} ({architectures()})")
    except BuildError as error:
        print(f"compiled operator for GPUs: not built ({error}); the plain PyTorch formula is used", file=sys.stderr)
        return 2 if switch == "1" else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
