"""Builds a persistent FiftyOne dataset from records, and brings it up to date without touching what people added."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from PIL import Image
from tqdm.auto import tqdm

from codetr_lab.analysis.instability import per_image, read_looks
from codetr_lab.images import ImageError
from codetr_lab.integrations.fiftyone.database import answering, open_fiftyone
from codetr_lab.integrations.fiftyone.judge import judge
from codetr_lab.integrations.fiftyone.look import dress
from codetr_lab.integrations.records import ImageRecord, IntegrationError, Mark, field_prefixes, fingerprint, records

if TYPE_CHECKING:
    import fiftyone as fo

    from codetr_lab.data.dataset import DetectionDataset
    from codetr_lab.models.codetr import CoDETR

logger = logging.getLogger(__name__)

CHUNK = 16
"""Images between two writes: what a killed build loses at most."""
TRUTH = "ground_truth"
JUDGED = ("_right", "_false", "_missed")
"""Ends of the numbers that are left out: FiftyOne's own evaluation says so here."""


def build_dataset(
    models: Mapping[str, CoDETR],
    data: DetectionDataset,
    name: str,
    *,
    media: str | Path | None = None,
    limit: int | None = None,
    min_score: float = 0.2,
    looks: Mapping[str, Path] | None = None,
    progress: bool = True,
) -> fo.Dataset:
    """A persistent dataset with ground truth, every head's detections and queries, maps and numbers per image.

    Building again brings a dataset up to date: images whose models and settings have not changed are left as they are,
    the others get new fields; tags, saved views and objects' ids stay. A killed build goes on where it was.

    Args:
        models: by name. The first one's fields carry no prefix (`detr`, `atss`, `queries_atss`, `encoder_map`), the
            others' begin with their name.
        data: where images and objects come from.
        name: the dataset's name in FiftyOne.
        media: folder for maps and for images that are not files yet; `runs/fiftyone/<name>` if left out.
        limit: the first images only.
        min_score: detections with a lower score are left out.
        looks: by model, the file in which an `InstabilityRecorder` kept its looks at the first images of `data`.

    Raises:
        IntegrationError: no FiftyOne or database, a foreign dataset of that name, other classes, another build at
            work, or the database stopped answering.
        OSError: a file cannot be written.
    """
    folder = Path(media) if media is not None else Path("runs") / "fiftyone" / name
    folder.mkdir(parents=True, exist_ok=True)
    open_fiftyone()
    with answering(f"the database stopped answering while {name} was built; run the same command to go on"):
        lock = build_lock(name)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise IntegrationError(f"another build of {name} is at work; wait for it or stop it") from error
        with lock:
            try:
                return _build(models, data, name, folder, limit, min_score, looks or {}, progress)
            except OSError as error:
                if error.errno and not error.filename:  # a full disk does not say where
                    error.filename = str(folder)
                raise


def build_lock(name: str) -> FileLock:
    """What one build of a dataset holds, whatever folder it writes to; the system frees it when the build is killed.

    Its file is on this machine: builds on two machines that share a database do not see each other's.
    """
    from fiftyone.core.odm import get_db_conn

    server = get_db_conn().client.admin.command("hello")["topologyVersion"]["processId"]
    key = hashlib.sha256(f"{server} {get_db_conn().name} {name}".encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"codetr_lab_build_{key}.lock", mode=0o666)


def _build(
    models: Mapping[str, CoDETR], data: DetectionDataset, name: str, folder: Path, limit: int | None,
    min_score: float, looks: Mapping[str, Path], progress: bool,
) -> fo.Dataset:  # fmt: skip
    dataset = _open(name, data, list(models))
    count = len(data) if limit is None else min(limit, len(data))
    # not `if len(dataset)`: a server that was killed remembers a wrong length
    known = dataset.has_field("built_from")
    present = dict(zip(*dataset.values(["image_id", "built_from"]), strict=True)) if known else {}
    current = fingerprint(models, min_score)
    ids = {index: int(data.target(index, masks=False)["image_id"]) for index in range(count)}
    waiting = [index for index in range(count) if present.get(ids[index]) != current]
    if waiting:
        _note(dataset, complete=False)
    paths = image_files(data, folder / "images", count)
    made = _readable(models, data, paths, waiting, min_score, progress, name, current)
    _write(dataset, made, folder / "maps")
    for model, file in looks.items():
        _write_instability(dataset, f"{field_prefixes(list(models))[model]}instability", file, data)
    complete = dataset.info["codetr_lab"].get("complete")
    if not complete:
        judge(dataset, list(models), progress=progress)
        dataset.add_dynamic_sample_fields()  # once for all: each addition rewrites the whole schema
    if not complete or looks:
        dress(dataset, list(models), data.classes)
        _note(dataset, complete=True, min_score=min_score)
    return dataset


def _note(dataset: fo.Dataset, **facts: Any) -> None:
    """Keep what a later build must know."""
    dataset.info["codetr_lab"] = {**dataset.info["codetr_lab"], **facts}
    dataset.save()


def _write(dataset: fo.Dataset, made: Iterator[ImageRecord], maps: Path) -> None:
    """Images in chunks, as plain documents in one request each: FiftyOne's objects take twenty times as long.

    No sample outlives this function: FiftyOne would reload each at every later change.
    """
    from bson import ObjectId
    from pymongo import UpdateOne

    while chunk := list(islice(made, CHUNK)):
        known = _known(dataset, [record.image_id for record in chunk])
        documents = {r.image_id: _document(r, known[r.image_id][1] if r.image_id in known else (), maps) for r in chunk}
        if known:
            _declare(dataset[next(iter(known.values()))[0]], chunk)
        fresh = [record for record in chunk if record.image_id not in known]
        added = dataset.add_samples([_blank(record) for record in fresh], progress=False)
        ids = {image: sample for image, (sample, _) in known.items()}
        ids |= zip([record.image_id for record in fresh], added, strict=True)
        requests = [UpdateOne({"_id": ObjectId(ids[image])}, {"$set": written}) for image, written in documents.items()]
        dataset._bulk_write(requests, ids=list(ids.values()))


def _known(dataset: fo.Dataset, images: Sequence[int]) -> dict[int, tuple[str, Sequence[fo.Detection]]]:
    """Of the images that the dataset has: the sample's id and its ground truth."""
    if not dataset.has_field(TRUTH):
        return {}
    view = dataset.match({"image_id": {"$in": list(images)}})
    numbers, ids, truth = view.values(["image_id", "id", f"{TRUTH}.detections"])
    return {image: (sample, found or ()) for image, sample, found in zip(numbers, ids, truth, strict=True)}


def _write_instability(dataset: fo.Dataset, field: str, file: Path, data: DetectionDataset) -> None:
    """What a run recorded of its probe images, unless they are other images than this data set's first ones."""
    import fiftyone as fo

    recorded = read_looks(file)
    values = per_image(recorded)
    targets = [data.target(index, masks=False) for index in range(min(len(values), len(data)))]
    objects = [set(range(len(target["boxes"]))) for target in targets]
    if len(targets) < len(values) or any(
        not {*found.values()} <= own for look in recorded for found, own in zip(look.matches, objects, strict=False)
    ):
        logger.warning("%s: its probe images are not the first of %s; instability is left out", file, data.name)
        return
    dataset.add_sample_field(field, fo.FloatField)
    present = set(dataset.values("image_id"))
    by_image = {int(target["image_id"]): value for target, value in zip(targets, values, strict=True)}
    kept = {image: value for image, value in by_image.items() if image in present}
    dataset.set_values(field, kept, key_field="image_id", progress=False)


def _open(name: str, data: DetectionDataset, models: list[str]) -> fo.Dataset:
    """The dataset of that name, new or one of ours.

    Raises:
        IntegrationError: it is somebody else's, or was built from other data.
    """
    import fiftyone as fo

    if not fo.dataset_exists(name):
        dataset = fo.Dataset(name, persistent=True)
        dataset.default_classes = list(data.classes)
        dataset.info["codetr_lab"] = {"data": data.name, "models": models}
        dataset.save()
        return dataset
    dataset = fo.load_dataset(name)
    ours = dataset.info.get("codetr_lab")
    if ours is None:
        raise IntegrationError(f"a dataset {name} exists already and was not built here; choose another name")
    if ours["data"] != data.name:
        raise IntegrationError(f"{name} was built from {ours['data']}, not from {data.name}; choose another name")
    for gone in set(ours["models"]) - set(models):
        prefix = field_prefixes(ours["models"])[gone]
        if prefix:
            dataset.delete_sample_fields([field for field in dataset.get_field_schema() if field.startswith(prefix)])
    if ours["models"] != models:
        _note(dataset, models=models, complete=False)
    return dataset


def image_files(data: DetectionDataset, folder: Path, count: int) -> list[Path]:
    """The files of a data set's first images; generated ones are written into `folder` as PNG."""
    stored = getattr(data, "images_dir", None)
    paths = [Path(stored or folder).resolve() / data.file_name(index) for index in range(count)]
    if stored is None:
        folder.mkdir(parents=True, exist_ok=True)
        for index, path in enumerate(paths):
            if not path.is_file():
                partial = path.with_suffix(".part")
                Image.fromarray(data.image(index)).save(partial, "PNG")
                partial.replace(path)
    return paths


def _readable(
    models: Mapping[str, CoDETR], data: DetectionDataset, paths: Sequence[Path], waiting: Sequence[int],
    min_score: float, progress: bool, name: str, built_from: str,
) -> Iterator[ImageRecord]:  # fmt: skip
    """The records of images that can be read; the others are named in one warning at the end."""
    missing: list[str] = []
    for index in tqdm(waiting, desc=f"build {name}", unit="image", disable=not progress or not waiting):
        try:
            yield from records(models, data, paths, indices=[index], min_score=min_score, built_from=built_from)
        except ImageError as error:
            missing.append(str(error))
    if missing:
        logger.warning("%s: %d images are left out, the first: %s", name, len(missing), missing[0])
    if missing and len(missing) == len(paths):
        raise IntegrationError(f"no image of {data.name} can be read; the first: {missing[0]}")


def _is_keypoints(field: str) -> bool:
    """Whether a field of marks holds points: original queries are too many for boxes."""
    return field.endswith("queries") and not field.endswith("matched_queries")


def _empty_fields(record: ImageRecord) -> dict[str, Any]:
    """A value of the right kind for every field, from which FiftyOne learns what a dataset holds."""
    import fiftyone as fo

    return {
        TRUTH: fo.Detections(),
        **{field: fo.Keypoints() if _is_keypoints(field) else fo.Detections() for field in record.boxes},
        **{field: fo.Heatmap() for field in record.maps},
        **{field: 0.0 for field in record.numbers if not field.endswith(JUDGED)},
        **{field: [0.0] for field in record.curves},
        "number": record.number,
        "built_from": "",
    }


def _blank(record: ImageRecord) -> fo.Sample:
    """A sample that is still to be filled."""
    import fiftyone as fo

    height, width = record.size
    metadata = fo.ImageMetadata(width=width, height=height, num_channels=3)
    return fo.Sample(
        filepath=str(record.path), image_id=record.image_id, metadata=metadata, **_empty_fields(record)
    )  # fmt: skip


def _declare(sample: fo.Sample, chunk: Sequence[ImageRecord]) -> None:
    """Add fields that a dataset of an earlier build lacks, by one of its samples; new samples bring their own."""
    lacking = {k: v for record in chunk for k, v in _empty_fields(record).items() if not sample.has_field(k)}
    for field, value in lacking.items():
        sample[field] = value
    if lacking:
        sample.save()


def _document(record: ImageRecord, before: Sequence[fo.Detection], maps: Path) -> dict[str, Any]:
    """A record as the database keeps it; `built_from` tells a later build that it is complete.

    Args:
        before: the ground truth that is there, whose ids and tags stay.
    """
    from bson import ObjectId

    old = {item["object"]: {"_id": ObjectId(item.id), "tags": list(item.tags)} for item in before}
    truth = [{**_detection(mark), **old.get(mark.values["object"], {})} for mark in record.truth]
    ids = {item["object"]: str(item["_id"]) for item in truth}
    document: dict[str, Any] = {TRUTH: {"_cls": "Detections", "detections": truth}}
    for field, marks in record.boxes.items():
        if _is_keypoints(field):
            document[field] = {"_cls": "Keypoints", "keypoints": [_keypoint(mark, ids) for mark in marks]}
        else:
            document[field] = {"_cls": "Detections", "detections": [_detection(mark, ids) for mark in marks]}
    for field, score_map in record.maps.items():
        path = (maps / field / f"{record.image_id}.png").resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(score_map).save(path)
        document[field] = {
            "_id": ObjectId(), "_cls": "Heatmap", "tags": [], "map_path": str(path), "range": [0.0, 255.0],
        }  # fmt: skip
    document |= {field: value for field, value in record.numbers.items() if not field.endswith(JUDGED)}
    now = datetime.now(UTC)
    return document | record.curves | {
        "number": record.number, "built_from": record.built_from, "last_modified_at": now,
    }  # fmt: skip


def _label(kind: str, mark: Mark, ids: Mapping[int, str], **values: Any) -> dict[str, Any]:
    """A mark with all its values, and the id of the ground truth it was matched to."""
    from bson import ObjectId

    matched = ids.get(mark.values.get("object", -1))
    whole = values | mark.values | ({} if matched is None else {"matched": matched})
    return {
        "_id": ObjectId(), "_cls": kind, "attributes": {}, "tags": [], "label": mark.label,
        **{name: value for name, value in whole.items() if value is not None},
    }  # fmt: skip


def _detection(mark: Mark, ids: Mapping[int, str] = MappingProxyType({})) -> dict[str, Any]:
    return _label("Detection", mark, ids, bounding_box=list(mark.box), confidence=mark.score)


def _keypoint(mark: Mark, ids: Mapping[int, str]) -> dict[str, Any]:
    x, y, width, height = mark.box
    return _label("Keypoint", mark, ids, points=[[x + width / 2, y + height / 2]], score=mark.score, width=width,
                  height=height)  # fmt: skip
