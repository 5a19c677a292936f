"""pyproject.toml, constraints.txt, environment.yml and the doctor must tell the same story."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from codetr_lab import doctor


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def constraints(repository: Path) -> list[Requirement]:
    lines = (repository / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def requirements(project: dict[str, Any], extra: str | None = None) -> list[Requirement]:
    table = project["project"]
    return [Requirement(text) for text in (table["optional-dependencies"][extra] if extra else table["dependencies"])]


def pinned(constraint: Requirement) -> Version:
    (specifier,) = constraint.specifier
    assert specifier.operator == "=="
    return Version(specifier.version)


def test_extra_all_is_every_other_extra(project: dict[str, Any]) -> None:
    (everything,) = requirements(project, "all")
    assert everything.name == project["project"]["name"]
    assert everything.extras == set(project["project"]["optional-dependencies"]) - {"all"}


def test_constraints_pin_everything_that_the_project_names(
    project: dict[str, Any], constraints: list[Requirement]
) -> None:
    versions: dict[str, list[Version]] = {}
    for constraint in constraints:
        versions.setdefault(canonicalize_name(constraint.name), []).append(pinned(constraint))
    extras = [extra for extra in project["project"]["optional-dependencies"] if extra != "all"]
    for requirement in [*requirements(project), *(r for extra in extras for r in requirements(project, extra))]:
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} has no pin in constraints.txt"
        for version in versions[name]:
            assert version in requirement.specifier, f"{name} {version} is not {requirement.specifier}"


@pytest.mark.parametrize("python", ["3.11.2", "3.11.7", "3.12.1", "3.13.0"])
def test_every_package_has_one_pin_per_python(constraints: list[Requirement], python: str) -> None:
    """Debian 12 has 3.11.2, for which some packages' newest version is too new."""
    machine = {
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
    }
    environment = machine | {
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "platform_python_implementation": "CPython",
    }
    names = [c.name for c in constraints if c.marker is None or c.marker.evaluate(environment)]
    assert len(names) == len(set(names))


def test_constraints_hold_pins_and_nothing_else(repository: Path, constraints: list[Requirement]) -> None:
    text = (repository / "constraints.txt").read_text()
    assert "://" not in text and "--" not in text
    assert all(constraint.url is None for constraint in constraints)
    torch = next(constraint for constraint in constraints if constraint.name == "torch")
    assert pinned(torch) != Version("2.13.0")


def test_opencv_is_for_development_only(project: dict[str, Any]) -> None:
    for extra in (None, "app", "fiftyone", "notebooks"):
        assert not [r.name for r in requirements(project, extra) if "opencv" in r.name]


def test_conda_takes_the_packages_from_pyproject(repository: Path, project: dict[str, Any]) -> None:
    environment = yaml.safe_load((repository / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert python.startswith(f"python{project['project']['requires-python']}")
    assert pip == "pip"
    constraint, editable = packages["pip"]
    assert constraint == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[(.+)]", editable)
    assert extras and set(extras[1].split(",")) <= set(project["project"]["optional-dependencies"])
    assert "app" in extras[1].split(",")  # its first comment says `codetr demo`


def test_the_doctor_looks_for_what_the_project_names(project: dict[str, Any]) -> None:
    assert set(doctor.CORE) <= {requirement.name for requirement in requirements(project)}
    assert set(doctor.EXTRAS) == set(project["project"]["optional-dependencies"]) - {"all"}
    for extra, names in doctor.EXTRAS.items():
        assert set(names) <= {requirement.name for requirement in requirements(project, extra)}


def test_shipped_models_are_package_data(project: dict[str, Any]) -> None:
    patterns = project["tool"]["setuptools"]["package-data"]["codetr_lab"]
    assert {"weights/**/*.safetensors", "weights/**/*.json"} <= set(patterns)


def test_licence_is_the_whole_apache_licence(repository: Path, project: dict[str, Any]) -> None:
    text = (repository / "LICENSE").read_text()
    assert project["project"]["license"] == "Apache-2.0"
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert all(f"\n   {number}. " in text for number in range(1, 10))
