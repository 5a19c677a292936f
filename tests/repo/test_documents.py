"""Links that lead somewhere, and files that tell nothing about the machine they were written on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "notebooks/README.md")
FOLDERS = ("apps", "codetr_lab", "csrc", "docs", "notebooks", "tests", "tools", ".ci")
TEXT = {
    ".cpp",
    ".cu",
    ".css",
    ".h",
    ".html",
    ".ipynb",
    ".js",
    ".json",
    ".md",
    ".py",
    ".sh",
    ".toml",
    ".txt",
    ".yml",
    "",
}
# Written in two pieces, so that this file does not find itself.
FORBIDDEN = ["/" + "work/", "/" + "root/", "/" + "home/", "pypi" + ".org", "python" + "hosted"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_files_lead_somewhere(repository: Path, document: str) -> None:
    text = (repository / document).read_text()
    links = re.findall(r"(?<!!)\[[^\]]*]\(([^)#]+)\)", text)
    places = [link for link in links if "://" not in link]
    missing = [place for place in places if not (repository / document).parent.joinpath(place).exists()]
    assert not missing


@pytest.mark.parametrize("document", [*DOCUMENTS, "notebooks/01_quickstart.py"])
def test_files_that_are_named_exist(repository: Path, document: str) -> None:
    """`codetr_lab/...`, `tools/...`, in backticks."""
    named = re.findall(r"`((?:codetr_lab|tools|apps|notebooks|tests)/[\w/.]+)`", (repository / document).read_text())
    assert not [name for name in named if not (repository / name).exists()]


def test_nothing_about_the_machine(repository: Path) -> None:
    files = [path for path in repository.iterdir() if path.is_file()]
    for folder in FOLDERS:
        files += [
            path for path in (repository / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts
        ]
    found = [
        f"{path.relative_to(repository)}: {word}"
        for path in files
        if path.suffix in TEXT and path.name not in (".coverage", ".git")
        for word in FORBIDDEN
        if word in path.read_text(errors="replace")
    ]
    assert not found


def test_the_results_in_the_readme_are_those_of_the_shipped_models(repository: Path) -> None:
    """Each row of the table against the record that the experiment wrote beside the weights."""
    rows = [line for line in (repository / "README.md").read_text().splitlines() if line.startswith("| `lab_")]
    assert len(rows) == 3
    for row in rows:
        name, _, *numbers = (cell.strip(" `") for cell in row.strip("|").split("|"))
        record = json.loads((repository / "codetr_lab" / "weights" / name / "metrics.json").read_text())["record"]
        keys = ("ap", "ap50", "positives_per_object", "iof_iob_area")
        digits = (3, 3, 1, 3)
        assert numbers == [f"{record[key]:.{n}f}" for key, n in zip(keys, digits, strict=True)], name
