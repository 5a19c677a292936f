"""`codetr fiftyone`: a data set and what label assignment did in it, to browse, sort and filter."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from codetr_lab.commands.common import open_data
from codetr_lab.models.config import ConfigError


@dataclass(frozen=True)
class FiftyOne:
    """Build (or bring up to date) a FiftyOne dataset and open the App; without a database, a page to browse."""

    model: str = "lab_co_k2"
    """A run's folder, the name of a shipped model, or a preset with weights."""
    compare: tuple[str, ...] = ("lab_baseline",)
    """Models to compare with."""
    data: str = "shapes"
    """`shapes`, `shapes:easy`, `shapes:hard`, or a COCO-format folder or file."""
    split: str = "val"
    """`train` or `val`; a folder may have others."""
    name: str | None = None
    """The dataset's name in FiftyOne; made from model and data if left out."""
    limit: int | None = None
    """The first images only."""
    min_score: float = 0.2
    """Leave out detections with a lower score."""
    media: Path | None = None
    """Folder for maps and generated images; runs/fiftyone/NAME if left out."""
    page: Path | None = None
    """Write a static page into this folder instead; it needs no database."""
    port: int = 5151
    """Port of the App on 127.0.0.1."""
    open: bool = True
    """Open the App after building."""

    def run(self) -> int:
        from codetr_lab.engine.checkpoint import load
        from codetr_lab.integrations.fiftyone import describe_database
        from codetr_lab.integrations.fiftyone.app import launch
        from codetr_lab.integrations.records import IntegrationError

        names = list(dict.fromkeys((self.model, *self.compare)))
        models = {Path(name).name.replace(".", "_"): load(name) for name in names}
        if len(models) < len(names):
            raise ConfigError("two models have the same name; rename one run's folder")
        data = open_data(self.data, self.split)
        title = self.name or f"{next(iter(models))}_{data.name.replace(':', '_')}_{self.split}"
        os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")
        if self.page is None:
            try:
                print(describe_database())
            except IntegrationError as error:
                print(f"{error}\nwriting a page instead, which needs no database")
                return self._write_page(models, data, Path("runs") / "fiftyone" / title / "page")
            from codetr_lab.integrations.fiftyone import build_dataset

            looks = {model: Path(name) / "looks.jsonl" for model, name in zip(models, names, strict=True)}
            built = build_dataset(
                models, data, title, media=self.media, limit=self.limit, min_score=self.min_score,
                looks={model: path for model, path in looks.items() if path.is_file()},
            )  # fmt: skip
            print(f"{title}: {built.count('image_id')} images; saved views: {', '.join(built.list_saved_views())}")
            if self.open:
                launch(built, self.port)
            return 0
        return self._write_page(models, data, self.page)

    def _write_page(self, models: dict, data: object, folder: Path) -> int:
        from codetr_lab.integrations.page import write_page

        print(write_page(models, data, folder, limit=self.limit, min_score=self.min_score))  # type: ignore[arg-type]
        return 0
