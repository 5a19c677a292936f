"""Detection in many images, one result after another, and results as plain records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetr_lab.data.class_names import category_ids
from codetr_lab.engine import tta as test_time
from codetr_lab.engine.checkpoint import write_atomically
from codetr_lab.images import ImageError, ImageSource, decoded, prepared_batches
from codetr_lab.structures import Detections

if TYPE_CHECKING:
    from codetr_lab.models.codetr import CoDETR

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""What counts as an image in a folder."""

Failed = Callable[[int, ImageError], None]


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files that `paths` name: files as they are, and all images in and below folders, sorted.

    Raises:
        ImageError: a folder without images.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise ImageError(f"{path}: this folder holds no images ({', '.join(SUFFIXES)})")
            files += inside
        else:
            files.append(path)
    return files


def predictions(
    model: CoDETR,
    images: Iterable[ImageSource],
    heads: Sequence[str] | None = None,
    *,
    batch_size: int = 8,
    tta: test_time.TTA | None = None,
    failed: Failed | None = None,
) -> Iterator[tuple[int, dict[str, Detections]]]:
    """What each head finds per image, with the image's number, as soon as it is known; boxes in the image's pixels.

    Images are decoded as they are needed. Those in a row that are of one size after resizing share a forward pass, so
    no result depends on the other images of its batch.

    Args:
        heads: of the model's `detectors`; by default the main head.
        tta: look at several sizes and mirrored, and merge.
        failed: called with an unreadable image's number and the error; without it the error is raised.

    Raises:
        ImageError: an image cannot be used; names its number, and its file if it has one.
        ConfigError: the model has no such head.
    """
    if tta is not None:
        for number, image in decoded(images, failed):
            yield number, test_time.detect(model, image, heads, tta)
        return
    device = next(model.parameters()).device
    for numbers, batch in prepared_batches(images, model.config.image, batch_size, failed):
        for place, found in enumerate(model.detect(batch.to(device), heads)):
            scale, size = batch.scales[place], batch.original_sizes[place]
            yield numbers[place], {name: d.to_original(scale, size) for name, d in found.items()}


def record(
    image: str | Path, detections: Mapping[str, Detections], classes: Sequence[str], threshold: float = 0.0
) -> dict[str, Any]:
    """One image's detections by head: `box` (xyxy, pixels of the file), `score`, `label`, `class`; best first."""
    heads: dict[str, list[dict[str, Any]]] = {}
    for head, found in detections.items():
        shown = found.select(found.scores >= threshold)
        heads[head] = [
            {"box": [round(side, 2) for side in box], "score": round(score, 5), "label": label}
            | ({"class": classes[label]} if classes else {})
            for box, score, label in zip(
                shown.boxes.tolist(), shown.scores.tolist(), shown.labels.tolist(), strict=True
            )
        ]
    return {"image": str(image), "heads": heads}


def coco_image_ids(files: Sequence[Path]) -> list[int]:
    """The images' ids in COCO results: the numbers that their names are (`000000000139.jpg`), else 1, 2, 3 ..."""
    stems = [file.stem for file in files]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len(set(map(int, stems))) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(files) + 1))


def coco_records(
    image: str | Path, image_id: int, found: Detections, classes: tuple[str, ...], num_classes: int
) -> list[dict[str, Any]]:
    """One head's detections in one image as COCO results (`bbox` xywh), with the file's name beside its id.

    Categories have COCO's own ids where the classes are COCO's, else label + 1 (as in LVIS).
    """
    ids = category_ids(classes or tuple(map(str, range(num_classes))))
    return [{**item, "file_name": str(image)} for item in found.to_coco(image_id, ids)]


def summary(record: Mapping[str, Any]) -> str:
    """One line per head: how many objects of which class."""
    lines = [str(record["image"])]
    for head, found in record["heads"].items():
        counts: dict[str, int] = {}
        for item in found:
            name = str(item.get("class", item["label"]))
            counts[name] = counts.get(name, 0) + 1
        listed = ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda pair: -pair[1]))
        lines.append(f"  {head:<14}{listed or 'nothing'}")
    return "\n".join(lines)


def write_results(path: str | Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as JSON, atomically.

    Raises:
        CheckpointError: the file cannot be written.
    """
    write_atomically(Path(path), (json.dumps(list(records), indent=1) + "\n").encode())
