"""The records of a data set as a page of plain files, for browsing without a database or a server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from plotly.colors import sample_colorscale, unlabel_rgb
from tqdm.auto import tqdm

from codetr_lab.integrations.records import ImageRecord, Mark, field_prefixes, records
from codetr_lab.viz import colors
from codetr_lab.viz.summary import field_title

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from codetr_lab.data.dataset import DetectionDataset
    from codetr_lab.models.codetr import CoDETR

_VIRIDIS = np.array([unlabel_rgb(c) for c in sample_colorscale("Viridis", [i / 255 for i in range(256)])], np.uint8)


def write_page(
    models: Mapping[str, CoDETR], data: DetectionDataset, folder: str | Path, *, limit: int | None = None,
    min_score: float = 0.2, progress: bool = True,
) -> Path:  # fmt: skip
    """Write `index.html`, images and maps into `folder`; the page opens from the disk and fetches nothing.

    Args:
        models: by name, as for `build_dataset`.
        limit: the first images only.
        min_score: detections with a lower score are left out.

    Returns:
        The page.

    Raises:
        IntegrationError: a model knows other classes than the data set.
        OSError: a file cannot be written.
    """
    from codetr_lab.integrations.fiftyone.build import image_files

    folder = Path(folder)
    count = len(data) if limit is None else min(limit, len(data))
    paths = image_files(data, folder / "images", count)
    rows = []
    made = records(models, data, paths, indices=range(count), min_score=min_score)
    for record in tqdm(made, total=count, desc=f"page of {data.name}", unit="image", disable=not progress):
        rows.append(_row(record, folder))
    others = tuple(prefix for prefix in field_prefixes(list(models)).values() if prefix)
    fields = list(dict.fromkeys(field for row in rows for field in row["boxes"]))
    content = {
        "title": f"{data.name}: {', '.join(models)}",
        "rows": rows,
        "fields": {
            field: {"title": field_title(field), "color": _color(field), "other": field.startswith(others)}
            for field in fields
        },
        "numbers": sorted({name for row in rows for name in row["numbers"]}),
    }
    template = resources.files("codetr_lab.integrations").joinpath("page.html").read_text(encoding="utf-8")
    # "</" would end the script; JSON allows the escape.
    text = template.replace("/*DATA*/null", json.dumps(content).replace("</", "<\\/"))
    page = folder / "index.html"
    page.write_text(text, encoding="utf-8")
    return page


def _color(field: str) -> str:
    for head in sorted(colors.HEAD_COLORS, key=len, reverse=True):
        if field.endswith(head):
            return colors.head_color(head)
    return colors.head_color("original")


def _row(record: ImageRecord, folder: Path) -> dict[str, Any]:
    """One image for the page; files outside the folder are copied into it."""
    picture = folder / "images" / f"{record.image_id}{record.path.suffix}"
    picture.parent.mkdir(parents=True, exist_ok=True)
    if record.path.parent != picture.parent.resolve():
        shutil.copyfile(record.path, picture)
    else:
        picture = record.path
    maps = {}
    for name, score_map in record.maps.items():
        target = folder / "maps" / name / f"{record.image_id}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_colored(score_map)).save(target)
        maps[name] = target.relative_to(folder).as_posix()
    height, width = record.size
    return {
        "id": record.image_id, "image": f"images/{picture.name}", "width": width, "height": height,
        "truth": [_mark(mark) for mark in record.truth],
        "boxes": {field: [_mark(mark) for mark in marks] for field, marks in record.boxes.items()},
        "maps": maps, "numbers": {name: round(value, 4) for name, value in record.numbers.items()},
    }  # fmt: skip


def _mark(mark: Mark) -> dict[str, Any]:
    values = {name: round(v, 3) if isinstance(v, float) else v for name, v in mark.values.items()}
    score = None if mark.score is None else round(mark.score, 3)
    return {"box": [round(side, 4) for side in mark.box], "label": mark.label, "score": score, "values": values}


def _colored(score_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return _VIRIDIS[score_map]
