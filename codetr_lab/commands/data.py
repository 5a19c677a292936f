"""`codetr data`: check and export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class DataCheck:
    """Check a COCO-format folder or file and say what is in it."""

    path: tyro.conf.Positional[Path]
    """The folder, or the annotation file."""
    split: str = "train"
    """Which annotation file of a folder."""

    def run(self) -> int:
        from codetr_lab.data.coco import check

        report = check(self.path, split=self.split)
        print(report)
        return 0 if report.ok else 2


@dataclass(frozen=True)
class DataExport:
    """Write a data set as a COCO-format folder."""

    out: Path
    data: str = "shapes"
    split: str = "val"

    def run(self) -> int:
        from codetr_lab.data.catalog import open_dataset
        from codetr_lab.data.dataset import export

        print(export(open_dataset(self.data, self.split), self.out))
        return 0


@dataclass(frozen=True)
class Data:
    """Check or export data sets."""

    command: Annotated[DataCheck, tyro.conf.subcommand("check")] | Annotated[DataExport, tyro.conf.subcommand("export")]

    def run(self) -> int:
        return self.command.run()
