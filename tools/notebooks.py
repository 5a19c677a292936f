"""Write every notebooks/*.ipynb from the .py source beside it, executed: `make notebooks`, or with names of sources.

Each exercise is tried as well: its solution, given as the answer, must be found right.

The same source gives the same file, apart from what the cells print: cells are numbered instead of carrying random
ids, and nothing about the machine or the time is kept. Figures are kept as pictures, which GitHub shows as well as
JupyterLab does; run the cell, and the figure is live. (Drawing the pictures needs Chromium or Chrome.)
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
import plotly.graph_objects as go
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode
from PIL import Image

from codetr_lab.viz.export import ExportError, save_png

FOLDER = Path(__file__).parents[1] / "notebooks"
CELL_SECONDS = 180
WIDGET = "application/vnd.jupyter.widget-view+json"
FIGURE = "application/vnd.plotly.v1+json"
LARGEST_OUTPUTS = 300_000
"""Bytes of all outputs of one notebook; pictures belong in small figures."""
DRAWN = 2.0
"""Pixels of a drawn picture per pixel of its figure."""
KEPT = ((DRAWN, 80), (1.5, 80), (1.25, 80), (1.0, 80), (1.0, 60))
"""Pixels of a kept picture per pixel of its figure, and JPEG quality: the first that keeps the outputs small enough."""


class ExerciseError(Exception):
    """A solution that does not accept itself as the answer."""


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
        ExerciseError: an exercise finds its own solution wrong.
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
    client.reset_execution_trackers()
    with client.setup_kernel():
        executed = 0
        for index, cell in enumerate(notebook.cells):
            executed += cell.cell_type == "code"
            client.execute_cell(cell, index, execution_count=executed)
            if "solution" in cell.metadata.get("tags", []):
                answered = nbformat.v4.new_code_cell(with_right_answer(cell.source))
                client.execute_cell(answered, index, store_history=False)
                notebook.cells[index] = cell
                printed = "\n".join(output.get("text", "") for output in answered.outputs)
                if not re.search("^Right", printed, re.MULTILINE):
                    raise ExerciseError(f"the exercise does not accept its own solution:\n{cell.source}")
    drop_widgets(notebook)


def with_right_answer(source: str) -> str:
    """A solution's code with the solution as the answer; of a list of solutions, the first."""
    (number,) = set(re.findall(r"\banswer_(\d)\b", source))
    solution = f"solution_{number}"
    answer = f"answer_{number} = {solution}[0] if isinstance({solution}, list) else {solution}"
    return source.replace(f"if answer_{number} is None:", f"{answer}\nif answer_{number} is None:")


def drop_widgets(notebook: NotebookNode) -> None:
    """Leave widgets out: in a saved notebook they are dead, and the still figure beside them is what is read."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]


def keep_pictures(notebook: NotebookNode) -> None:
    """Put a picture in the place of every Plotly figure.

    Raises:
        ExportError: no browser to draw with.
    """
    drawn: list[tuple[NotebookNode, Image.Image]] = []
    with tempfile.TemporaryDirectory() as folder:
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if FIGURE in output.get("data", {}):
                    shown = output.data.pop(FIGURE)
                    figure = go.Figure(data=shown["data"], layout=shown["layout"])
                    path = save_png(figure, Path(folder) / "figure.png", scale=DRAWN)
                    drawn.append((output, Image.open(path).convert("RGB")))
    for scale, quality in KEPT:
        for output, picture in drawn:
            output.data, output.metadata = encoded(picture, scale, quality)
        if output_bytes(notebook) < LARGEST_OUTPUTS:
            return


def encoded(picture: Image.Image, scale: float, quality: int) -> tuple[NotebookNode, NotebookNode]:
    """Data and metadata of an output: the picture, drawn at scale `DRAWN`, as PNG or JPEG, whichever is smaller."""
    width, height = (round(side / DRAWN) for side in picture.size)
    small = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    files = {}
    for kind, image, options in (
        ("image/png", small.quantize(256, dither=Image.Dither.NONE), {"optimize": True}),
        ("image/jpeg", small, {"quality": quality, "optimize": True}),
    ):
        file = io.BytesIO()
        image.save(file, kind.partition("/")[2], **options)
        files[kind] = file.getvalue()
    kind = min(files, key=lambda name: len(files[name]))
    data = {kind: base64.b64encode(files[kind]).decode(), "text/plain": "a figure; run the cell to make it live"}
    return NotebookNode(data), NotebookNode({kind: {"width": width, "height": height}})


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
            keep_pictures(notebook)
        except (CellExecutionError, CellTimeoutError, ExerciseError, ExportError) as error:
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
