"""The doctor finds what is there and says how to get what is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from codetr_lab import doctor


@pytest.fixture
def nothing_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "MACOS_CHROMIUM", ())
    monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    return tmp_path


def executable(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_report_names_versions_device_extras_and_tools() -> None:
    checks = {check.name: check for check in doctor.report()}
    assert checks["torch"].detail == torch.__version__.partition("+")[0] or checks["torch"].detail == torch.__version__
    assert checks["device"].detail.startswith(("cpu", "cuda", "mps"))
    assert checks["extra dev"].state == "ok"
    assert {"python", "chromium", "mongod", *(f"extra {extra}" for extra in doctor.EXTRAS)} <= set(checks)
    assert all(bool(check.mend) == (check.state != "ok") for check in checks.values())


def test_chromium_is_found_on_the_path(nothing_on_the_path: Path) -> None:
    assert doctor.find_chromium() is None
    browser = executable(nothing_on_the_path, "google-chrome")
    assert doctor.find_chromium() == browser


def test_mongod_on_the_path_or_by_address(nothing_on_the_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.find_mongod() is None
    assert doctor.find_mongod() is None
    own = executable(nothing_on_the_path, "mongod")
    assert doctor.find_mongod() == str(own)
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", "mongodb://127.0.0.1:27017")
    assert doctor.find_mongod() == "mongodb://127.0.0.1:27017"


def test_mongod_that_came_with_fiftyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fiftyone"
    (package / "db" / "bin").mkdir(parents=True)
    (package / "__init__.py").touch()
    own = executable(package / "db" / "bin", "mongod")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fiftyone", raising=False)  # other tests of this process may have imported it
    monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
    assert doctor.find_mongod() == str(own)


def test_what_is_missing_comes_with_its_mend(nothing_on_the_path: Path) -> None:
    chromium, mongod = doctor.check_tools()
    assert (chromium.state, mongod.state) == ("missing", "missing")
    assert "apt-get install" in chromium.mend and "fonts-dejavu-core" in chromium.mend
    assert "FIFTYONE_DATABASE_URI" in mongod.mend
    text = doctor.format_report([chromium])
    assert len(text.splitlines()) == 3 and chromium.mend in text


def test_absent_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"app": ("gradio", "no-such-distribution")})
    monkeypatch.setattr(doctor, "CORE", ("torch", "no-such-core"))
    extra = doctor.check_extra("app")
    assert extra.state == "missing"
    assert extra.detail == "without no-such-distribution"
    assert '".[app]"' in extra.mend
    assert [check.state for check in doctor.check_core()] == ["ok", "broken"]


@pytest.mark.parametrize(("strict", "code"), [("0", 0), ("1", 1)])
def test_before_the_tests_only_what_is_missing_is_shown(
    strict: str,
    code: int,
    nothing_on_the_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CODETR_REQUIRE_ALL", strict)
    assert doctor.main(["--tests"]) == code
    shown = capsys.readouterr().out
    assert "chromium" in shown and "mongod" in shown and "skipped" in shown
    assert "torchvision" not in shown


def test_nothing_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "report", lambda: [doctor.Check("python", "ok", "3.12")])
    assert doctor.main(["--tests"]) == 0
    assert "every test can run" in capsys.readouterr().out
    assert doctor.main([]) == 0
    assert "3.12" in capsys.readouterr().out


def test_something_broken_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "report", lambda: [doctor.Check("torch", "broken", "not installed", "install it")])
    assert doctor.main([]) == 1
    assert "install it" in capsys.readouterr().out


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert doctor.check_device().detail.startswith("cuda (Some GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert doctor.check_device().detail.startswith("mps")


def test_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    check = doctor.check_device()
    assert check.state == "broken" and "cannot be imported" in check.detail


def test_which_operator_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from codetr_lab import build_ops
    from codetr_lab.ops import compiled

    monkeypatch.delenv("CODETR_OPS", raising=False)
    monkeypatch.setattr(compiled, "NOT_LOADED", "it is not built; do this")
    check = doctor.check_operator()
    assert (check.state, check.mend) == ("missing", "codetr build-ops")
    assert check.detail == "the plain PyTorch formula runs: it is not built; do this"
    monkeypatch.setattr(compiled, "NOT_LOADED", "")
    monkeypatch.setattr(compiled, "instruction_set", lambda: "avx2")
    monkeypatch.setattr(compiled, "CUDA_NOT_LOADED", "")
    monkeypatch.setattr(build_ops, "built_architectures", lambda: "8.0;9.0+PTX")
    assert doctor.check_operator().detail == "deformable attention: CPU (avx2), CUDA (8.0;9.0+PTX)"
    monkeypatch.setattr(compiled, "CUDA_NOT_LOADED", "it is not built for GPUs")
    monkeypatch.setattr(doctor, "_has_gpu", lambda: False)
    assert doctor.check_operator().state == "ok"
    assert doctor.check_operator().detail == "deformable attention: CPU (avx2); no GPU, so none of its kernels"
    monkeypatch.setattr(doctor, "_has_gpu", lambda: True)
    monkeypatch.setattr(build_ops.shutil, "which", lambda name: None)
    check = doctor.check_operator()
    assert check.state == "missing" and "on the GPU the plain PyTorch formula runs" in check.detail
    assert check.mend == "install NVIDIA's CUDA toolkit (nvcc), then codetr build-ops"
