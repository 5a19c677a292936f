"""`codetr experiment`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import tyro

from codetr_lab.experiments.run import ExperimentOptions


@dataclass(frozen=True)
class Experiment:
    """Repeat one of the paper's tables or figures at lab scale: `codetr experiment table9 --budget minutes`."""

    name: tyro.conf.Positional[
        Literal[
            "quick", "fig1", "fig2", "fig3", "fig5", "fig6", "fig7", "table7", "table8", "table9", "table10", "table11",
            "supp_table1", "supp_table2", "supp_fig1", "supp_fig2", "tune", "report",
        ]
    ]  # fmt: skip
    """`quick`: no, one and two auxiliary heads in minutes; `tune`: the baseline's learning rate; `report`: the paper
    beside all runs that are finished; else the table or figure (`supp_`: of the supplement)."""
    set: tuple[str, ...] = ()
    """Change every variant: `image.short=320 image.long=320`."""
    options: ExperimentOptions = field(default_factory=ExperimentOptions)

    def run(self) -> int:
        from codetr_lab.commands.common import setting_values
        from codetr_lab.experiments.run import start
        from codetr_lab.models.presets import preset

        start(self.name, self.options, setting_values(preset("lab_co_k2"), self.set))
        return 0
