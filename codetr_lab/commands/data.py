"""`codetr data`: check, export and assign-stats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm.auto import tqdm


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
class DataAssignStats:
    """How many positives every label assignment gives an object of a data set, by the object's size."""

    data: tyro.conf.Positional[str] = "shapes"
    """`shapes`, `shapes:easy`, `shapes:hard`, or a COCO-format folder or file."""
    split: str = "val"
    preset: str | None = None
    """Whose pyramid, anchors and image size; by default `lab_co_k2` for shapes, else `co_deformable_detr_r50`."""
    limit: int | None = None
    """Look at so many images only."""
    drop_invalid: bool = False

    def run(self) -> int:
        from codetr_lab.analysis.positives import PositivesCounter
        from codetr_lab.analysis.rule_stats import UntrainedRules
        from codetr_lab.data.catalog import GENERATED, open_dataset
        from codetr_lab.data.transforms import collate, evaluation_sample
        from codetr_lab.models.presets import preset

        dataset = open_dataset(self.data, self.split, drop_invalid=self.drop_invalid)
        name = self.preset or ("lab_co_k2" if self.data in GENERATED else "co_deformable_detr_r50")
        config, counter = preset(name), PositivesCounter()
        rules, count = UntrainedRules(config), min(len(dataset), self.limit or len(dataset))
        for index in tqdm(range(count), desc=f"assign {dataset.name}", unit="image"):
            batch, targets = collate([evaluation_sample(dataset, index, config.image)], config.image.divisor)
            for rule, assignments in rules.assign(batch, targets).items():
                counter.add_assignment(rule, assignments[0], batch.scales[0])
        sizes = counter.objects()
        print(f"{dataset.name}, {count} images at {config.image.short} pixels, candidates of {name}")
        print(f"{'positives per object':<22}" + "".join(f"{size:>9}" for size in (*sizes, "all")))
        for rule, by_size in counter.by_size().items():
            row = [*by_size.values(), counter.result()[rule]]
            print(f"{rule:<22}" + "".join(f"{'-' if value != value else f'{value:.1f}':>9}" for value in row))
        print(f"{'objects':<22}" + "".join(f"{n:>9}" for n in (*sizes.values(), sum(sizes.values()))))
        return 0


@dataclass(frozen=True)
class Data:
    """Check or export data sets, or count what label assignments make of them."""

    command: (
        Annotated[DataCheck, tyro.conf.subcommand("check")]
        | Annotated[DataExport, tyro.conf.subcommand("export")]
        | Annotated[DataAssignStats, tyro.conf.subcommand("assign-stats")]
    )

    def run(self) -> int:
        return self.command.run()
