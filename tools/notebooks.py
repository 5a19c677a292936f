"""Write every notebooks/*.ipynb from the .py source beside it, executed: `make notebooks`, or with names of sources.

The same source gives the same file, apart from what the cells print: cells are numbered instead of carrying random
ids, and nothing about the machine or the time is kept.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"
CELL_SECONDS = 180
WIDGET = "application/vnd.jupyter.widget-view+json"
LARGEST_OUTPUTS = 300_000
"""Bytes of all outputs of one notebook; pictures belong in small figures."""


def from_source(source: Path) -> NotebookNode:
    """The notebook of a py:percent source, without outputs."""
    notebook = jupytext.read(source, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
    notebook.metadata = {
        "jupytext": {"formats": "ipynb,py:percent"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "execution": {"timeout": CELL_SECONDS},  # for nbmake
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells in place.

    Raises:
        CellExecutionError: a cell failed.
        CellTimeoutError: a cell took longer than `CELL_SECONDS`.
    """
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"  # figures as data; the other renderer adds plotly.js, 4 MB
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    notebook.metadata["language_info"] = {"name": "python"}  # the kernel wrote its version
    drop_widgets(notebook)


def drop_widgets(notebook: NotebookNode) -> None:
    """Leave widgets out: in a saved notebook they are dead, and the still figure beside them is what is read."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]


def output_bytes(notebook: NotebookNode) -> int:
    """Size of all outputs as JSON."""
    return sum(len(json.dumps(cell.outputs)) for cell in notebook.cells if cell.cell_type == "code")


def main(arguments: Sequence[str]) -> int:
    """Write the notebooks of the named sources, or of all; 0 if all of them ran."""
    sources = [Path(name).resolve() for name in arguments] or sorted(FOLDER.glob("*.py"))
    failed = 0
    for source in sources:
        notebook = from_source(source)
        try:
            execute(notebook, source.parent)
        except (CellExecutionError, CellTimeoutError) as error:
            print(f"{source.name}: {error}", file=sys.stderr)
            failed += 1
            continue
        if output_bytes(notebook) > LARGEST_OUTPUTS:
            print(
                f"{source.name}: {output_bytes(notebook)} bytes of outputs, more than {LARGEST_OUTPUTS}; show less",
                file=sys.stderr,
            )
            failed += 1
            continue
        target = source.with_suffix(".ipynb")
        nbformat.write(notebook, target)
        print(f"{target.name}: {len(notebook.cells)} cells, {target.stat().st_size / 1000:.0f} kB")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
