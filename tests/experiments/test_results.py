"""What is said, drawn and written about records; one real experiment of a few steps, end to end."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from codetr_lab.experiments import kept
from codetr_lab.experiments.catalog import EXPERIMENTS
from codetr_lab.experiments.cell import ExperimentError, Record
from codetr_lab.experiments.figures import FIGURES
from codetr_lab.experiments.kept import between_marks, kept_records, readme_text
from codetr_lab.experiments.report import report_text, write_report
from codetr_lab.experiments.results import csv_text, markdown_table, paragraph, rows
from codetr_lab.experiments.run import ExperimentOptions, run_experiment
from codetr_lab.experiments.variants import VARIANTS


def record(variant: str, seed: int, ap: float, **more: Any) -> Record:
    curve = [1 - n / 50 for n in range(51)]
    heads = list(VARIANTS[variant].config().aux_heads)
    return {
        "variant": variant, "title": VARIANTS[variant].title, "seed": seed, "steps": 1000, "k": len(heads), "ap": ap,
        "ap50": ap + 0.1, "stats": {"AP75": ap - 0.05}, "iof_iob_area": 0.5, "iof_iob_curve": curve,
        "attention": [{"area": 0.9, "curve": curve}], "data": "shapes", "convergence": [{"step": 1000, "ap": ap}],
        "instability": {"keyed_by": "token", "steps": [100, 200], "values": [4.0, 2.0], "most_possible": 8.0,
                        "mean_share": 0.375, "last_share": 0.25},
        "relation": {"original": {"original": 0.0, "atss": 1.0}, "atss": {"original": None, "atss": 0.0}},
        "head_distances": {"atss": 0.5}, "pace": {"ms_per_step": 100.0, "saved_mb": 30.0},
        "distances": {"atss": {"positive": {"original positive": 0.25, "original negative": 2.0}}},
        "positives_per_object": 1.0, "ap_by_head": {"detr": ap} | {head: ap + 0.1 for head in heads}, **more,
    }  # fmt: skip


RECORDS = [
    *(record("k0", seed, ap) for seed, ap in enumerate((0.10, 0.12, 0.14))),
    *(record("k1", seed, ap) for seed, ap in enumerate((0.20, 0.22, 0.25))),
    *(record("head_only", seed, ap) for seed, ap in enumerate((0.09, 0.14, 0.12))),
]
TABLE9 = EXPERIMENTS["table9"]


def test_the_table_has_means_intervals_and_the_paper():
    lines = markdown_table(TABLE9, RECORDS).splitlines()
    assert lines[0].startswith("|  | AP | AP50 | AP75 |") and lines[0].endswith("| seeds | paper |")
    assert (
        lines[2] == "| K = 0 | 12.0 ± 5.0 | 22.0 ± 5.0 | 7.0 ± 5.0 | 0.500 ± 0.000 | 0.900 ± 0.000 | 3 | 37.1 / 43.3 |"
    )
    assert len(lines) == 5  # queries_only has not been run
    assert [row["variant"] for row in rows(TABLE9, RECORDS)] == ["k0", "head_only", "k1"]


def test_every_statement_is_tested_by_the_paired_difference():
    text = paragraph(TABLE9, RECORDS)
    assert "Holds: K = 1 (ATSS) is above K = 0; +10.3 ± 1.4 AP over 3 seeds (paper: +5.2 / +3.5)." in text
    assert "Not settled: auxiliary head alone is above K = 0; -0.3 ± 5.2 AP over 3 seeds" in text
    assert "Not run: customized queries alone is above K = 0" in text
    assert "3 seeds are few" in text
    reverse = [record("k0", s, 0.3 + s / 100) for s in range(3)] + [record("k1", s, 0.1 + s / 100) for s in range(3)]
    assert "The opposite holds: K = 1 (ATSS) is above K = 0; -20.0 ± 0.0 AP" in paragraph(TABLE9, reverse)
    assert "Not tested (one seed): K = 1 (ATSS) is above K = 0" in paragraph(TABLE9, RECORDS[:1] + RECORDS[3:4])


def test_the_csv_holds_every_number_that_stands_alone():
    lines = list(csv.DictReader(csv_text(RECORDS).splitlines()))
    assert len(lines) == 9
    assert lines[3]["variant"] == "k1" and float(lines[3]["ap"]) == 0.2
    assert float(lines[0]["instability.mean_share"]) == 0.375
    assert "iof_iob_curve" not in lines[0]


@pytest.mark.parametrize("name", sorted({e.figure for e in EXPERIMENTS.values()}))
def test_figures_are_drawn_from_records_alone(name: str):
    experiment = next(e for e in EXPERIMENTS.values() if e.figure == name)
    if name in ("relation", "positions"):
        experiment = replace(experiment, variants=("k1",))
    figure = FIGURES[name](experiment, RECORDS, [])
    assert isinstance(figure, go.Figure)
    if name != "maps":  # which needs the runs' models
        assert len(figure.data) > 0


def test_intervals_are_drawn_from_three_seeds_on():
    drawn = {}
    for many in (2, 3):
        figure = FIGURES["dots"](TABLE9, [r for r in RECORDS if r["seed"] < many], [])
        drawn[many] = [trace.error_x.array[0] for trace in figure.data if trace.error_x.array is not None]
        assert ("from 3 seeds on" in figure.layout.xaxis.title.text) == (many == 2)
    assert len(drawn[2]) == len(drawn[3]) == 3
    assert not any(drawn[2]) and all(half > 1 for half in drawn[3])


def test_table_11_shows_every_heads_ap():
    figure = FIGURES["heads"](EXPERIMENTS["table11"], RECORDS, [])
    found = {trace.y[0]: list(trace.x) for trace in figure.data if trace.error_x.array is None}
    assert list(found) == ["ATSS: K = 1 (ATSS)", "DETR decoder: K = 1 (ATSS)", "DETR decoder: K = 0"]
    assert found["ATSS: K = 1 (ATSS)"] == pytest.approx([30, 32, 35])


def test_the_report_names_every_statement():
    text = report_text(RECORDS)
    statements = [claim.statement for e in EXPERIMENTS.values() for claim in e.claims]
    assert all(f"| {statement} |" in text for statement in statements)
    assert "| Table 9 | K = 1 (ATSS) is above K = 0 | +5.2 / +3.5 | +10.3 ± 1.4 AP | 3 | holds |" in text
    assert "not run |" in text
    assert text.startswith("9 runs (shapes, 1,000 steps). Of ")


def test_a_report_does_not_mix_lengths(tmp_path: Path):
    for made in [*RECORDS, *(replace_steps(r, 50) for r in RECORDS)]:
        folder = tmp_path / "cells" / f"{made['variant']}_{made['steps']}_{made['seed']}"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(made))
    assert "9 runs (shapes, 1,000 steps)" in write_report(tmp_path)
    assert (tmp_path / "report.md").read_text().startswith("# The paper and the lab\n\nRuns in ")
    assert [r["steps"] for r in kept.keep(tmp_path, 50, tmp_path / "kept.jsonl")] == [50] * 9
    assert kept_records(tmp_path / "kept.jsonl")[0]["variant"] == "k0"


def test_kept_runs_are_added_to_and_renewed(tmp_path: Path):
    kept_file = tmp_path / "kept.jsonl"
    first, second = RECORDS[0], next(r for r in RECORDS if r["variant"] != RECORDS[0]["variant"])
    for out, made in (("one", [first]), ("two", [first | {"ap": 0.5}, second])):
        for number, record in enumerate(made):
            folder = tmp_path / out / "cells" / str(number)
            folder.mkdir(parents=True)
            (folder / "record.json").write_text(json.dumps(record))
    kept.keep(tmp_path / "two", path=kept_file)
    kept.keep(tmp_path / "one", path=kept_file)
    assert [(r["variant"], r["ap"]) for r in kept_records(kept_file)] == [
        (first["variant"], first["ap"]),
        (second["variant"], second["ap"]),
    ]


def replace_steps(made: Record, steps: int) -> Record:
    return made | {"steps": steps, "ap": 0.0}


def test_text_between_marks_is_renewed():
    text = f"before\n{kept.BEGIN}\nold\n{kept.END}\nafter\n"
    assert between_marks(text, "new") == f"before\n{kept.BEGIN}\nnew\n{kept.END}\nafter\n"
    with pytest.raises(ValueError, match="to write between"):
        between_marks("nothing", "new")


def test_the_documents_tables_are_those_of_the_kept_runs(repository: Path):
    """README.md and the results' own page against the records that come with the package."""
    records = kept_records()
    for file, content in (
        (repository / "README.md", readme_text(records)),
        (kept.RESULTS / "README.md", report_text(records)),
    ):
        text = file.read_text()
        assert between_marks(text, content) == text, f"{file.name}: renew it with python -m codetr_lab.experiments.kept"


@pytest.mark.slow
def test_an_experiment_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One variant, two steps, in a worker process; then the same again from what is finished."""
    options = ExperimentOptions(steps=2, seeds=(0,), out=tmp_path, train_images=8, val_images=4, workers=1)
    assert run_experiment("supp_fig1", replace(options, plan=True), progress=False) == []
    plan = capsys.readouterr().out
    assert "1 run of 2 steps, 1 to train: about 0 minutes on 1 free core" in plan
    with pytest.raises(ExperimentError, match="no run is finished"):
        run_experiment("supp_fig1", replace(options, finished=True), progress=False)
    records = run_experiment("supp_fig1", options, progress=False)
    assert [r["variant"] for r in records] == ["k2"]
    assert records[0]["instability"]["keyed_by"] == "token"
    assert records[0]["distances"]["atss"]["positive"]["original negative"] > 0
    assert set(records[0]["relation"]) == {"original", "atss", "faster_rcnn"}
    assert records[0]["pace"]["saved_mb"] > 1
    content = json.loads((tmp_path / "supp_fig1.json").read_text())
    assert content["schema"] == 1 and content["records"] == records
    for ending in ("csv", "md", "html"):
        assert (tmp_path / f"supp_fig1.{ending}").stat().st_size > 100
    capsys.readouterr()
    assert run_experiment("supp_fig1", replace(options, finished=True), progress=False) == records
    assert "| K = 2 (ATSS + Faster R-CNN) |" in capsys.readouterr().out
