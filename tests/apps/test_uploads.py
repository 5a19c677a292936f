"""A reader's files: what is read, and what is refused with a message that says nothing about the server."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apps.page import Page
from apps.picture import Picture
from apps.source import DATA_SET
from apps.uploads import UploadError, read_uploads

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be this large, and is a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def coco(folder: Path, **changes: Any) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "somewhere/mine.png", "width": 64, "height": 48}],
        "categories": [{"id": 5, "name": "star"}, {"id": 6, "name": "horse"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "bbox": [4, 6, 20, 30]},
            {"id": 2, "image_id": 1, "category_id": 6, "bbox": [1, 1, 5, 5]},
        ],
    } | changes  # fmt: skip
    path = folder / "annotations.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "mine.png")
    return tmp_path / "mine.png"


def test_an_image_alone(mine: Path) -> None:
    (upload,), told = read_uploads([str(mine)], CLASSES)
    assert (upload.name, upload.image.shape, upload.target) == ("mine.png", (48, 64, 3), None)
    assert told == "Your image, 64 x 48 pixels. It stays on the machine that serves this page."


def test_images_with_their_coco_file(mine: Path) -> None:
    Image.new("RGB", (30, 30)).save(mine.parent / "other.png")
    paths = [str(mine.parent / "other.png"), str(mine), str(coco(mine.parent))]
    uploads, told = read_uploads(paths, CLASSES)
    target = next(upload for upload in uploads if upload.name == "mine.png").target
    assert target is not None
    assert target["boxes"].tolist() == [[4, 6, 24, 36]] and target["labels"].tolist() == [3]
    assert "annotations.json says nothing about 1 of 2 images" in told
    assert "1 objects are of classes that the models do not know" in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is a vector drawing (SVG)"),
        (b"\x89PNG\r\n\x1a\n junk", "not an image"),
        (b"GIF89a" + b"\0" * 20, "broken.jpg"),
        (png_header(30_000, 30_000), "900"),
    ],
    ids=["0 bytes", "SVG", "junk", "cut short", "30,000 x 30,000"],
)
def test_images_that_cannot_be_used(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UploadError) as caught:
        read_uploads([str(path)], CLASSES)
    message = str(caught.value)
    assert "broken.jpg" in message and str(tmp_path) not in message
    assert words in message or "megapixels" in message
    if content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 40:
        assert "megapixels" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"annotations": None}, "has no 'annotations'"),
        ({"images": [{"id": 1, "file_name": "mine.png"}]}, "width must be a number of pixels"),
        ({"images": [{"id": 1, "file_name": "else.png", "width": 64, "height": 48}]}, "is not about any of the images"),
        ({"images": [{"id": 1, "file_name": "mine.png", "width": 65, "height": 48}]}, "says 65 x 48"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 9, "bbox": [0, 0, 5, 5]}]}, "there is no category 9"),
        ({"images": []}, "its first image is missing: it holds none"),
    ],
)  # fmt: skip
def test_coco_files_that_cannot_be_used(mine: Path, changes: dict[str, Any], words: str) -> None:
    if changes.get("images") == []:
        changes = changes | {"annotations": []}
    with pytest.raises(UploadError, match=words) as caught:
        read_uploads([str(mine), str(coco(mine.parent, **changes))], CLASSES)
    assert str(mine.parent) not in str(caught.value)


def test_other_combinations(mine: Path) -> None:
    path = coco(mine.parent)
    (mine.parent / "deep.json").write_text("[" * 100_000)
    for paths, words in (
        ([path], "no image; choose the images together"),
        ([mine, path, mine.parent / "deep.json"], "2 annotation files"),
        ([mine, mine.parent / "deep.json"], "nested too deeply"),
        ([mine] * 6, "at most 5"),
    ):
        with pytest.raises(UploadError, match=words):
            read_uploads([str(path) for path in paths], CLASSES)


def test_a_file_name_inside_a_coco_file_is_no_path(mine: Path, tmp_path: Path) -> None:
    """It is compared with the uploads' names; nothing is opened by it."""
    secret = tmp_path / "secret"
    secret.mkdir()
    Image.new("RGB", (64, 48)).save(secret / "hidden.png")
    images = [{"id": 1, "file_name": str(secret / "hidden.png"), "width": 64, "height": 48}]
    with pytest.raises(UploadError, match="is not about any of the images"):
        read_uploads([str(mine), str(coco(mine.parent, images=images))], CLASSES)


def test_the_page_keeps_a_few_own_images_and_says_what_is_wrong(page_of_tests: Page, mine: Path) -> None:
    source = page_of_tests.source
    album: list[Any] = []
    for _ in range(7):
        made = source.receive([str(mine)], album)
        album = made[source.album]
    assert len(album) == 5 and made[source.own].value == 4 and made[source.own].visible
    assert source.picture(3, 4, album, None).upload is album[4]
    assert source.picture(3, DATA_SET, album, None) == Picture(3)
    mine.write_bytes(b"")
    made = source.receive([str(mine)], album)
    assert "warning" in made[source.message] and source.album not in made
    assert source.receive(None, album) == {source.message: ""}


def test_typed_objects(page_of_tests: Page) -> None:
    source = page_of_tests.source
    made = source.add_typed(1, DATA_SET, [], (), "10, 20 60,80", 2)
    assert made[source.drawn] == ((10, 20, 60, 80, 2),) and made[source.typed] == ""
    for typed, words in (("1, 2, 3", "four numbers"), ("a, b, c, d", "four numbers"), ("200 200 300 300", "outside"),
                         ("nan 1 2 3", "four numbers")):  # fmt: skip
        assert words in source.add_typed(1, DATA_SET, [], (), typed, 2)[source.message]
    image = np.asarray(Picture(1).image(page_of_tests.bench.dataset))
    assert image.shape == (128, 128, 3)
