"""Builds the compiled operator along with the package, where that is possible; all else is in pyproject.toml.

`CODETR_BUILD_OPS`: `auto` (default) builds if torch and a compiler are there and says in one line if not, `0` never
builds, `1` fails if it cannot. With build isolation torch is not there: `pip install --no-build-isolation -e .` builds
the operator at once, `python -m codetr_lab.build_ops` later.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SWITCH = os.environ.get("CODETR_BUILD_OPS", "auto")
NAME = "codetr_lab.ops._ms_deform_attn"

if SWITCH not in ("auto", "0", "1"):
    sys.exit(f"CODETR_BUILD_OPS is {SWITCH!r}; set it to auto, 0 or 1")


def load_build_ops():
    """`codetr_lab/build_ops.py` alone: the package itself needs torch, which may be absent here."""
    spec = importlib.util.spec_from_file_location("codetr_build_ops", ROOT / "codetr_lab" / "build_ops.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildOps(build_ext):
    """Hands the one extension over to `codetr_lab.build_ops`."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext):
        build_ops = load_build_ops()
        try:
            build_ops.build(Path(self.get_ext_fullpath(ext.name)).resolve())
        except Exception as error:  # whatever goes wrong, the package works without the operator
            if SWITCH == "1":
                raise
            print(f"compiled operator: not built ({error}); the plain PyTorch formula is used", file=sys.stderr)


class BuildPython(build_py):
    """Takes the C++ sources along, so that `codetr build-ops` works after a plain install."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "codetr_lab" / "csrc"
            shutil.copytree(ROOT / "csrc", target, dirs_exist_ok=True)


def can_build():
    """Whether trying makes sense; the same questions are asked again, with answers, by `build_ops`."""
    return SWITCH == "1" or (SWITCH == "auto" and importlib.util.find_spec("torch") is not None)


setup(
    ext_modules=[Extension(NAME, sources=[], optional=SWITCH != "1")] if can_build() else [],
    cmdclass={"build_ext": BuildOps, "build_py": BuildPython},
)
