"""Detection in many images: batches, numbers, unreadable files, records and COCO results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny

from codetr_lab.engine.predict import coco_image_ids, coco_records, image_files, predictions
from codetr_lab.images import ImageError, prepared_batches
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.config import ImageConfig
from codetr_lab.structures import Detections

RNG = np.random.default_rng(0)


def noise(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> CoDETR:
    torch.manual_seed(0)
    return CoDETR(tiny("lab_co_k2")).eval()


def test_only_images_of_one_size_share_a_batch() -> None:
    config = ImageConfig(short=20, long=40, divisor=8)
    sources = [noise(30, 40), noise(60, 80), noise(30, 40), noise(40, 30), noise(30, 40)]
    found = list(prepared_batches(sources, config, batch_size=2))
    assert [numbers for numbers, _ in found] == [[0, 1], [2], [3], [4]]
    batch = found[0][1]
    assert batch.pixels.shape == (2, 3, 24, 32) and batch.valid_sizes == ((20, 27), (20, 27))
    assert batch.original_sizes == ((30, 40), (60, 80)) and batch.scales[1] == (27 / 80, 20 / 60)
    assert list(prepared_batches([], config, 2)) == []


def test_results_do_not_depend_on_the_other_images(model: CoDETR) -> None:
    sources = [noise(60, 90), noise(90, 60), noise(60, 90), noise(30, 45)]
    alone = [model.predict([source], heads=("detr", "atss", "faster_rcnn"))[0] for source in sources]
    together = model.predict(sources, heads=("detr", "atss", "faster_rcnn"))
    streamed = dict(predictions(model, iter(sources), ("detr", "atss", "faster_rcnn"), batch_size=2))
    for results in (together, [streamed[number] for number in range(4)]):
        for one, other in zip(alone, results, strict=True):
            for head in one:
                torch.testing.assert_close(one[head].scores, other[head].scores, atol=1e-5, rtol=0)


def test_one_image_counts_as_a_list_of_one(model: CoDETR, tmp_path: Path) -> None:
    pixels = noise(40, 50)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = model.predict([pixels])[0]["detr"].boxes
    for image in (pixels, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels)):
        (found,) = model.predict(image)
        assert torch.equal(found["detr"].boxes, expected)
    assert len(model.predict(np.stack([pixels, pixels]))) == 2
    assert model.predict([]) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (700, 3), (64, 64)])
def test_any_size_works_in_its_own_pixels(model: CoDETR, size: tuple[int, int]) -> None:
    (found,) = model.predict([noise(*size)], heads=("detr", "atss", "faster_rcnn"))
    for detections in found.values():
        limit = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
        assert (detections.boxes >= 0).all() and (detections.boxes <= limit).all()


def test_exif_orientation_is_applied(model: CoDETR, tmp_path: Path) -> None:
    pixels = noise(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(tmp_path / "a.png", exif=exif)
    upright, turned = model.predict([pixels, tmp_path / "a.png"])
    assert torch.equal(upright["detr"].boxes, turned["detr"].boxes)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"image 1: .*got shape \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), "image 1: an image array has no pixels"),
        (np.full((4, 4, 3), np.nan, np.float32), "image 1: .*must be uint8"),
        ("nothing.png", r"image 1: nothing\.png: no such file"),
    ],
)
def test_a_bad_image_is_named_with_its_number(model: CoDETR, bad, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        model.predict([noise(8, 8), bad, noise(8, 8)])
    failed: list[tuple[int, str]] = []
    stream = predictions(
        model, [noise(8, 8), bad, noise(8, 8)], failed=lambda number, error: failed.append((number, str(error)))
    )
    assert [number for number, _ in stream] == [0, 2]
    assert [number for number, _ in failed] == [1] and failed[0][1].startswith("image 1: ")


def test_folders_give_their_images_sorted(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "deep/c.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    other = Path("elsewhere/x.dat")
    assert image_files([other, tmp_path]) == [
        other, *(tmp_path / name for name in ("a.jpg", "b.PNG", "deep/c.webp"))
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"empty: this folder holds no images \(\.jpg"):
        image_files([tmp_path / "empty"])


def test_coco_records() -> None:
    from codetr_lab.data.class_names import class_names

    found = Detections(torch.tensor([[1.0, 2, 4, 8]]), torch.tensor([0.5]), torch.tensor([11]), torch.tensor([0]))
    (item,) = coco_records("a.jpg", 139, found, class_names("coco"), 80)
    assert item == {"image_id": 139, "category_id": 13, "bbox": [1, 2, 3, 6], "score": 0.5, "file_name": "a.jpg"}
    assert coco_records("a.jpg", 1, found, (), 20)[0]["category_id"] == 12
    json.dumps(item)
    assert coco_image_ids([Path("000000000139.jpg"), Path("x/7.png")]) == [139, 7]
    assert coco_image_ids([Path("7.jpg"), Path("07.png")]) == [1, 2]
    assert coco_image_ids([Path("7.jpg"), Path("cat.png")]) == [1, 2]
