"""A notebook and its source agree; what is committed was executed, is small, and says nothing about the machine."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pytest
from PIL import Image

from codetr_lab.viz.image import image_figure

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("*.py"))
each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)

SMALL = """\
# %% [markdown]
# # A question?

# %%
print(6 * 7)
"""

EXERCISE = """\

# %%
answer_1 = None

# %% tags=["solution"]
solution_1 = 42
if answer_1 is None:
    print("Your turn.")
else:
    print("Right." if answer_1 == solution_1 else "Not yet.")
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/notebooks.py."""
    spec = importlib.util.spec_from_file_location("notebooks_tool", NOTEBOOKS.parent / "tools" / "notebooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(source: Path) -> nbformat.NotebookNode:
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def test_there_are_notebooks_and_each_has_its_pair() -> None:
    assert SOURCES
    assert [path.stem for path in SOURCES] == [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]


@each
def test_notebook_and_source_agree(source: Path, tool: ModuleType) -> None:
    expected, written = tool.from_source(source), read(source)
    assert written.metadata == expected.metadata
    assert len(written.cells) == len(expected.cells)
    for ours, theirs in zip(written.cells, expected.cells, strict=True):
        assert (ours.id, ours.cell_type, ours.source, ours.metadata) == (
            theirs.id, theirs.cell_type, theirs.source, theirs.metadata,
        )  # fmt: skip


@each
def test_every_cell_was_executed_in_order_without_errors(source: Path) -> None:
    code = [cell for cell in read(source).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert kinds <= {"stream", "execute_result", "display_data"}
    assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]


@each
def test_outputs_are_small(source: Path, tool: ModuleType) -> None:
    assert 0 < tool.output_bytes(read(source)) < tool.LARGEST_OUTPUTS


@each
def test_figures_are_pictures_that_github_shows(source: Path, tool: ModuleType) -> None:
    bundles = [output.data for cell in read(source).cells for output in cell.get("outputs", []) if "data" in output]
    assert not [bundle for bundle in bundles if tool.FIGURE in bundle]
    assert any({"image/png", "image/jpeg"} & set(bundle) for bundle in bundles)


@each
def test_the_first_code_cell_is_for_colab(source: Path) -> None:
    """The same in every notebook; it says that it is not tested."""
    first = next(cell for cell in read(source).cells if cell.cell_type == "code")
    assert "google.colab" in first.source and "not tested here" in first.source
    assert first.source in (NOTEBOOKS / "01_quickstart.py").read_text()
    assert not first.outputs


@each
def test_it_asks_one_question_and_ends_in_three_exercises(source: Path) -> None:
    cells = read(source).cells
    assert cells[0].source.startswith("# ") and "?" in cells[0].source
    solutions = [cell for cell in cells if "solution" in cell.metadata.get("tags", [])]
    assert len(solutions) == 3
    assert all(cell.metadata["jupyter"]["source_hidden"] and "assert" in cell.source for cell in solutions)
    assert "Where to go next" in cells[-1].source


@pytest.mark.notebook
def test_writing_a_notebook(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "small.py"
    source.write_text(SMALL + EXERCISE)
    assert tool.main([str(source)]) == 0
    first = source.with_suffix(".ipynb").read_bytes()
    assert b"42" in first and str(tmp_path).encode() not in first
    assert tool.main([str(source)]) == 0
    assert source.with_suffix(".ipynb").read_bytes() == first
    assert "small.ipynb: 4 cells" in capsys.readouterr().out
    assert [cell.execution_count for cell in read(source).cells[1:]] == [1, 2, 3]
    assert "Your turn" in first.decode() and "Right." not in read(source).cells[-1].outputs[0].text


@pytest.mark.browser
@pytest.mark.usefixtures("chromium")
def test_a_figure_is_kept_as_a_picture_that_fits(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    shown = json.loads(image_figure(noise, "noise").to_json())
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", {tool.FIGURE: shown})])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    small = tool.encoded(Image.new("RGB", (200, 100), "white"), 1.0, 80)[0]
    assert set(small) == {"image/png", "text/plain"}  # flat colours: smaller than as JPEG
    monkeypatch.setattr(tool, "LARGEST_OUTPUTS", 150_000)
    tool.keep_pictures(notebook)
    (kind,) = set(cell.outputs[0].data) - {"text/plain"}
    picture = Image.open(io.BytesIO(base64.b64decode(cell.outputs[0].data[kind])))
    size = cell.outputs[0].metadata[kind]
    assert (size["width"], size["height"]) == (shown["layout"]["width"], shown["layout"]["height"])
    assert tool.output_bytes(notebook) < tool.LARGEST_OUTPUTS
    assert picture.width in [round(scale * size["width"]) for scale, _ in tool.KEPT]
    assert np.asarray(picture.convert("RGB")).std() > 20  # noise was drawn, not an empty page


@pytest.mark.notebook
def test_a_notebook_that_fails_is_not_written(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing, large, wrong = (tmp_path / f"{name}.py" for name in ("failing", "large", "wrong"))
    failing.write_text(SMALL + "assert 1 == 2\n")
    large.write_text(SMALL + f"print('x' * {tool.LARGEST_OUTPUTS})\n")
    wrong.write_text(SMALL + EXERCISE.replace("== solution_1", "== 43"))
    assert tool.main([str(failing), str(large), str(wrong)]) == 1
    shown = capsys.readouterr().err
    assert "failing.py" in shown and "AssertionError" in shown
    assert "large.py" in shown and "show less" in shown
    assert "wrong.py: the exercise does not accept its own solution" in shown
    assert not list(tmp_path.glob("*.ipynb"))


def test_dead_widgets_are_left_out(tool: ModuleType) -> None:
    notebook = tool.from_source(SOURCES[0])
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    still = nbformat.v4.new_output("display_data", {"application/vnd.plotly.v1+json": {}})
    code.outputs = [still, nbformat.v4.new_output("display_data", {tool.WIDGET: {}})]
    notebook.metadata["widgets"] = {"state": {}}
    tool.drop_widgets(notebook)
    assert code.outputs == [still]
    assert "widgets" not in notebook.metadata
