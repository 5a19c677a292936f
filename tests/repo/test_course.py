"""What the notebooks and the course page point to is there: files, sections, names of the library, commands, tabs."""

from __future__ import annotations

import functools
import pkgutil
import re
import typing
from pathlib import Path

import nbformat
import pytest

from codetr_lab.cli import Command

COURSE = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(COURSE.glob("*.ipynb"))
PAGES = [COURSE / "README.md", *NOTEBOOKS]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)


@functools.cache
def prose(page: Path) -> str:
    """The text of a page, without its code cells."""
    if page.suffix == ".md":
        return page.read_text(encoding="utf-8")
    cells = nbformat.read(page, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def anchors(page: Path) -> set[str]:
    """What a link may name behind `#`: Jupyter's anchors of headings."""
    return {heading.strip().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)}


@each_page
def test_links_are_relative_and_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\[[^\]]*]\(([^)\s]+)\)", prose(page))
    outside = [link for link in links if "://" in link]
    assert all(link.startswith("https://") for link in outside)
    broken = []
    for link in links:
        if link in outside:
            continue
        name, _, anchor = link.partition("#")
        place = (page.parent / name).resolve() if name else page
        if name.startswith("/") or not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(link)
    assert not broken


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:codetr_lab|tools|apps|docs|notebooks|tests)/[\w/.]+)`", prose(page))
    assert not [name for name in named if not (COURSE.parent / name).exists()]


@each_page
def test_names_of_the_library_exist(page: Path) -> None:
    """`lab.assign.atss`, and what `codetr_lab.` begins with."""
    missing = []
    for name in re.findall(r"`(?:lab|codetr_lab)\.([\w.]+)", prose(page)):
        try:
            pkgutil.resolve_name(f"codetr_lab.{name.rstrip('.')}")
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing


@each_page
def test_commands_exist(page: Path) -> None:
    known = {settings.name for one in typing.get_args(Command) for settings in typing.get_args(one)[1:]}
    assert {"train", "fiftyone"} <= known
    named = re.findall(r"(?:^#? ?|`)codetr ([a-z][\w-]*)", prose(page), re.MULTILINE)
    assert not set(named) - known


@each_page
def test_tabs_of_the_workbench_exist(page: Path) -> None:
    pytest.importorskip("gradio", reason='gradio not found; pip install -e ".[app]" -c constraints.txt')
    import apps.page  # noqa: F401  (brings all tabs)
    from apps.tab import Tab

    assert not set(re.findall(r"\?tab=(\w+)", prose(page))) - {tab.name for tab in Tab.__subclasses__()}
    titles = {tab.title for tab in Tab.__subclasses__()}
    assert {"Assign", "Queries"} <= titles
    named = re.findall(r"\b[Tt]abs?\s+((?:\*\*[^*]+\*\*(?:, | and )?)+)", prose(page))
    assert not {title for group in named for title in re.findall(r"\*\*([^*]+)\*\*", group)} - titles


def test_the_page_lists_every_notebook_with_its_question() -> None:
    listed = re.findall(
        r"^\| \[`([\w.]+)`]\([\w.]+\) \| ([^|]+\?) \|", (COURSE / "README.md").read_text(), re.MULTILINE
    )
    asked = []
    for notebook in NOTEBOOKS:
        found = re.search(r"\*\*The question: (.+?\?)\*\*", prose(notebook), re.DOTALL)
        assert found, notebook.name
        question = " ".join(found[1].split())
        asked.append((notebook.name, question[0].upper() + question[1:]))
    assert listed == asked
