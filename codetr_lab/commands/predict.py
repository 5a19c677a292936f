"""`codetr predict`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from codetr_lab.commands.common import place, split_names
from codetr_lab.models.config import ConfigError

if TYPE_CHECKING:
    from codetr_lab.images import ImageError
    from codetr_lab.structures import Detections


SHOWN = 20
"""With more images, only the totals are printed."""


@dataclass(frozen=True)
class Predict:
    """Detect objects in images: `codetr predict a.jpg folder/ --model lab_co_k2 --heads detr,atss`."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, and folders of them."""
    model: str = "lab_co_k2"
    """A run's folder, the name of a shipped model, or of released weights; `codetr models` lists both."""
    weights: Path | None = None
    """A released .pth file that you fetched yourself; --model then names its preset."""
    heads: str | None = None
    """Comma-separated: `detr,atss,faster_rcnn`. Left out: the decoder, or the first head where there is none."""
    threshold: float | None = None
    """Leave out detections with a lower score. Left out: 0.3, but COCO results keep all."""
    out: Path | None = None
    """Write the detections to this JSON file."""
    format: Literal["records", "coco"] = "records"
    """`records`: per image and head, with class names. `coco`: COCO results, a file per head (OUT_HEAD.json)."""
    save_images: Path | None = None
    """Write annotated images into this folder."""
    batch_size: int = 4
    """Images of one size that share a forward pass."""
    tta: bool = False
    """Look at each image at three sizes and mirrored, and merge by soft-NMS: six times the work."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` takes a GPU where there is one."""

    def run(self) -> int:
        from tqdm.auto import tqdm

        from codetr_lab.engine.checkpoint import load
        from codetr_lab.engine.predict import image_files, predictions
        from codetr_lab.engine.tta import TTA
        from codetr_lab.images import ImageError

        if not self.images:
            raise ConfigError("no image given; write codetr predict IMAGE --model NAME")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, got {self.batch_size}")
        files = image_files(self.images)
        model = load(self.model, self.weights).to(place(self.device))
        heads = split_names(self.heads) if self.heads else model.detectors[:1]
        results = _Results(self, files, heads, model.config.classes, model.config.num_classes)
        bar = tqdm(total=len(files), desc="detect", unit="image", disable=None if len(files) > 1 else True)

        def failed(number: int, error: ImageError) -> None:
            results.failed.append(error)
            bar.update()
            if len(files) > 1:
                bar.write(f"left out: {error}", file=sys.stderr)

        stream = predictions(
            model, files, heads, batch_size=self.batch_size, tta=TTA() if self.tta else None, failed=failed
        )
        try:
            with bar:
                for number, found in stream:
                    summary = results.add(number, found)
                    if len(files) <= SHOWN:
                        bar.write(summary, file=sys.stdout)
                    bar.update()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped after {len(results)} of {len(files)} images{results.write()}") from None
        written = results.write()
        if len(files) > SHOWN:
            print(results.total())
        if results.failed:
            count = f"{len(results.failed)} of {len(files)} images could not be used{written}; the first: "
            raise ImageError(f"{count if len(files) > 1 else ''}{results.failed[0]}")
        return 0


@dataclass
class _Results:
    """What was found so far, and how it is written."""

    options: Predict
    files: list[Path]
    heads: Sequence[str]
    classes: tuple[str, ...]
    num_classes: int
    records: list[dict[str, Any]] = field(default_factory=list)
    coco: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failed: list[ImageError] = field(default_factory=list)
    pictures: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        from codetr_lab.engine.predict import coco_image_ids

        self.threshold = 0.3 if self.options.threshold is None else self.options.threshold
        self.ids = coco_image_ids(self.files)
        self.coco = {head: [] for head in self.heads}

    def __len__(self) -> int:
        return len(self.records)

    def add(self, number: int, found: dict[str, Detections]) -> str:
        """Keep an image's detections; returns their summary."""
        from codetr_lab.engine.predict import coco_records, record, summary

        file = self.files[number]
        self.records.append(record(file, found, self.classes, self.threshold))
        if self.options.format == "coco":
            for head, detections in found.items():
                kept = detections.select(detections.scores >= (self.options.threshold or 0.0))
                self.coco[head] += coco_records(file, self.ids[number], kept, self.classes, self.num_classes)
        if self.options.save_images is not None:
            self._draw(self.options.save_images, file, found)
        return summary(self.records[-1])

    def total(self) -> str:
        """One line per head: how many objects in how many images."""
        counts = {head: sum(len(record["heads"][head]) for record in self.records) for head in self.heads}
        return "\n".join(f"{head:<14}{count} objects in {len(self)} images" for head, count in counts.items())

    def _draw(self, folder: Path, file: Path, found: dict[str, Detections]) -> None:
        from codetr_lab.images import load_image
        from codetr_lab.viz.annotate import annotate

        name = file.stem if file.stem not in self.pictures else f"{file.stem}_{len(self.pictures)}"
        self.pictures.add(name)
        folder.mkdir(parents=True, exist_ok=True)
        annotate(load_image(file), found, self.classes, self.threshold).save(folder / f"{name}.png")

    def write(self) -> str:
        """Write the results, if a file was asked for; says where, for the end of a sentence."""
        from codetr_lab.engine.predict import write_results

        out = self.options.out
        if out is None:
            return ""
        if self.options.format == "records":
            write_results(out, self.records)
            return f"; the results of the others are in {out}" if self.failed else f"; their results are in {out}"
        paths = [out if len(self.heads) == 1 else out.with_stem(f"{out.stem}_{head}") for head in self.heads]
        for path, head in zip(paths, self.heads, strict=True):
            write_results(path, self.coco[head])
        return f"; results are in {', '.join(map(str, paths))}"
