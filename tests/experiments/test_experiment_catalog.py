"""The declared experiments name variants, columns and figures that exist; cells are shared and addressed by content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from codetr_lab.commands.experiment import Experiment as Command
from codetr_lab.experiments.catalog import EXPERIMENTS
from codetr_lab.experiments.cell import Cell, Setting
from codetr_lab.experiments.figures import FIGURES
from codetr_lab.experiments.run import NAMES, ExperimentOptions, plan_cells
from codetr_lab.experiments.variants import RECIPE, VARIANTS, Variant
from codetr_lab.models.config import ConfigError

SETTING = Setting(Path("cells"), 100)


def test_every_experiment_is_complete():
    assert set(NAMES) == set(EXPERIMENTS)
    assert set(get_args(get_type_hints(Command)["name"])) == {"quick", "report", *NAMES}
    for experiment in EXPERIMENTS.values():
        assert experiment.figure in FIGURES
        assert set(experiment.variants) <= set(VARIANTS)
        assert set(experiment.paper) <= set(experiment.variants)
        for claim in experiment.claims:
            assert {claim.above[0], claim.below[0]} <= set(experiment.variants), (experiment.name, claim.statement)


@pytest.mark.parametrize("name", ["k0", "k1", "k2", "head_only", "queries_only", "dense_atss", "atss_atss", "k0_x3"])
def test_variants_can_be_built(name: str):
    assert VARIANTS[name].missing() is None
    assert VARIANTS[name].config().recipe.schedule == RECIPE["recipe.schedule"]


def test_what_is_missing_says_why():
    lacking = Variant("x", "x", "lab_baseline", {"aux_heads": ("nothing_like_it",)})
    assert "nothing_like_it" in str(lacking.missing())
    assert "no_such_setting" in str(Variant("x", "x", "lab_baseline", {"no_such_setting": 1}).missing())


def test_table_9_differs_in_its_two_switches_alone():
    whole = VARIANTS["k1"].config()
    assert VARIANTS["head_only"].config() == replace(whole, customized_queries=False)
    assert VARIANTS["queries_only"].config() == replace(whole, aux_losses=False)


def test_tables_share_their_cells():
    options = ExperimentOptions(seeds=(0,), out=Path("somewhere"))
    folders = {
        name: {cell.variant.name: cell.folder for cell in plan_cells(name, options)[0]} for name in ("fig1", "table9")
    }
    assert folders["fig1"]["k0"] == folders["table9"]["k0"]
    assert folders["fig1"]["k1"] == folders["table9"]["k1"]
    assert len(set(folders["table9"].values())) == 4


def test_cells_come_seed_by_seed_within_the_budget():
    cells, missing = plan_cells("fig1", ExperimentOptions())
    assert not missing
    assert [c.seed for c in cells] == [0] * 5 + [1] * 5
    assert [c.steps for c in cells[:5]] == [1000, 1000, 1000, 1500, 2500]
    assert {c.seed for c in plan_cells("tune", ExperimentOptions())[0]} == {100, 101}
    assert {c.steps for c in plan_cells("fig5", ExperimentOptions(budget="hour"))[0]} == {3000}
    with pytest.raises(ConfigError, match="did you mean 'table9'"):
        plan_cells("table99", ExperimentOptions())


def test_a_folder_changes_with_what_decides_the_numbers_and_with_nothing_else():
    cell = Cell(VARIANTS["k1"], 0, SETTING)
    for same in (replace(SETTING, out=Path("elsewhere")), replace(SETTING, keep_models=False)):
        assert Cell(VARIANTS["k1"], 0, same).folder.name == cell.folder.name
    renamed = replace(VARIANTS["k1"], title="another", color="gfl")
    assert Cell(renamed, 0, SETTING).folder == cell.folder
    others = [
        Cell(VARIANTS["k0"], 0, SETTING), Cell(VARIANTS["head_only"], 0, SETTING), Cell(VARIANTS["k1"], 1, SETTING),
        *(
            Cell(VARIANTS["k1"], 0, replace(SETTING, **change))
            for change in (
                {"steps": 101}, {"data": "shapes:easy"}, {"train_images": 13}, {"val_images": 7},
                {"changes": (("num_queries", 20),)},
            )
        ),
    ]  # fmt: skip
    assert len({cell.fingerprint(), *(c.fingerprint() for c in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"steps": 0}, "steps must be at least 1, got 0"), ({"workers": 0}, "workers must"), ({"seeds": ()}, "different"),
     ({"seeds": (1, 1)}, "different"), ({"seeds": (-1,)}, r"got \(-1,\)"), ({"val_images": 0}, "val_images must")],
)  # fmt: skip
def test_wrong_options_are_named(wrong: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        ExperimentOptions(**wrong)
