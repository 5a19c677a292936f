"""`codetr predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from codetr_lab.commands.common import split_names
from codetr_lab.models.config import ConfigError


@dataclass(frozen=True)
class Predict:
    """Detect objects in images: `codetr predict a.jpg b.png --model lab_co_k2 --heads detr,atss`."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files."""
    model: str = "lab_co_k2"
    """A run's folder or the name of a shipped model."""
    heads: str | None = None
    """Comma-separated: `detr,atss,faster_rcnn`. Left out: the decoder, or the first head where there is none."""
    threshold: float = 0.3
    """Leave out detections with a lower score."""
    out: Path | None = None
    """Write the detections to this JSON file."""
    save_images: Path | None = None
    """Write annotated images into this folder."""

    def run(self) -> int:
        from codetr_lab.engine.checkpoint import load
        from codetr_lab.engine.predict import record, summary, write_results
        from codetr_lab.images import load_image
        from codetr_lab.viz.annotate import annotate

        if not self.images:
            raise ConfigError("no image given; write codetr predict IMAGE --model NAME")
        model, heads = load(self.model), split_names(self.heads) if self.heads else None
        classes, records, taken = model.config.classes, list[dict[str, Any]](), set[str]()
        for path in self.images:
            image = load_image(path)
            found = model.predict([image], heads=heads)[0]
            records.append(record(path, found, classes, self.threshold))
            print(summary(records[-1]))
            if self.save_images is not None:
                name = path.stem if path.stem not in taken else f"{path.stem}_{len(taken)}"
                taken.add(name)
                self.save_images.mkdir(parents=True, exist_ok=True)
                annotate(image, found, classes, self.threshold).save(self.save_images / f"{name}.png")
        if self.out is not None:
            write_results(self.out, records)
        return 0
