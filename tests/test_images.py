from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from codetr_lab.images import ImageError, batch_of, load_image, normalise, prepare, resize, resized_size
from codetr_lab.models.config import ImageConfig

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_a_file_a_pillow_image_and_an_array_are_the_same(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOURS)
    for source in (path, str(path), Image.open(path), COLOURS):
        loaded = load_image(source)
        assert loaded.dtype == np.uint8
        assert loaded.flags.c_contiguous
        np.testing.assert_array_equal(loaded, COLOURS)


def test_the_callers_array_is_not_shared() -> None:
    array = COLOURS.copy()
    load_image(array)[:] = 0
    np.testing.assert_array_equal(array, COLOURS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    stored = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: np.rot90(COLOURS, 1),
        7: COLOURS.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(COLOURS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif)
    np.testing.assert_array_equal(load_image(path), COLOURS)


def test_grey_of_one_and_sixteen_bits(tmp_path: Path) -> None:
    grey = COLOURS[:, :, 0]
    three = grey[:, :, None].repeat(3, 2)
    np.testing.assert_array_equal(load_image(save(tmp_path / "grey.png", grey)), three)
    np.testing.assert_array_equal(load_image(grey), three)
    np.testing.assert_array_equal(load_image(grey[:, :, None]), three)
    sixteen = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(load_image(save(tmp_path / "sixteen.png", sixteen)), three)
    np.testing.assert_array_equal(load_image(sixteen), three)
    bits = load_image(save(tmp_path / "bits.png", grey > 100))
    np.testing.assert_array_equal(bits, (three > 100) * np.uint8(255))


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    rgba = np.dstack([COLOURS, np.full((5, 7), 255, np.uint8)])
    rgba[0, 0] = (10, 20, 30, 0)
    expected = COLOURS.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(load_image(save(tmp_path / "a.png", rgba)), expected)
    np.testing.assert_array_equal(load_image(rgba), expected)
    half = np.full((1, 1, 4), 128, np.uint8)
    assert abs(int(load_image(half)[0, 0, 0]) - 191) <= 1


def test_palettes_and_cmyk(tmp_path: Path) -> None:
    flat = np.full((4, 4, 3), (204, 51, 102), np.uint8)  # of the web palette
    np.testing.assert_array_equal(load_image(save(tmp_path / "a.gif", flat, "P")), flat)
    np.testing.assert_array_equal(load_image(Image.fromarray(flat).convert("CMYK")), flat)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "empty (0 bytes)"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "vector drawing (SVG)"),
        (b"<!doctype html><p>404</p>", "web page"),
        (b"some words", "not an image"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "cat.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"cat\.jpg: ") as error:
        load_image(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_truncated_files(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / f"a.{kind}", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageError, match="the file is damaged"):
        load_image(path)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)


def test_too_many_pixels_are_refused_from_the_header(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOURS)
    with pytest.raises(ImageError, match="7 x 5 pixels; the limit is 3e-05 megapixels"):
        load_image(path, max_pixels=30)
    with pytest.raises(ImageError, match="7 x 5 pixels"):
        load_image(COLOURS, max_pixels=30)
    large = tmp_path / "large.pgm"  # a header alone: decoding it would end in another message
    large.write_bytes(b"P5 20000 6000 255\n")
    with pytest.raises(ImageError, match="20000 x 6000 pixels; the limit is 100 megapixels"):
        load_image(large)
    large.write_bytes(b"P5 50000 50000 255\n")
    with pytest.raises(ImageError, match="too large; the limit is 100 megapixels"):
        load_image(large)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 4, 5), np.uint8), "got shape"),
        (np.zeros(4, np.uint8), "got shape"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4, 3), np.float32), "must be uint8"),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load_image(array)


def test_other_sources_and_modes() -> None:
    with pytest.raises(ImageError, match="got list"):
        load_image([1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="floating-point"):
        load_image(Image.new("F", (2, 2)))
    with pytest.raises(ImageError, match="no pixels"):
        load_image(Image.new("RGB", (0, 2)))


@pytest.mark.parametrize(
    ("height", "width", "short", "long", "expected"),
    [
        (480, 640, 800, 1333, (800, 1067)),
        (427, 640, 800, 1333, (800, 1199)),
        (300, 1000, 800, 1333, (400, 1333)),
        (128, 128, 128, 128, (128, 128)),
        (480, 640, 128, 128, (96, 128)),
        (1, 5000, 128, 128, (1, 128)),
    ],
)
def test_resized_size(height: int, width: int, short: int, long: int, expected: tuple[int, int]) -> None:
    assert resized_size(height, width, short, long) == expected
    assert resized_size(width, height, short, long) == expected[::-1]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(16, 1000), st.integers(0, 1000))
def test_resized_size_stays_within_the_limits(height: int, width: int, short: int, extra: int) -> None:
    new = resized_size(height, width, short, short + extra)
    assert min(new) <= short
    assert max(new) <= short + extra
    assert min(new) == max(1, short) or max(new) == short + extra


def test_resize_equals_opencv_to_the_bit() -> None:
    cv2 = pytest.importorskip("cv2")
    sizes = [((48, 64), (80, 107)), ((60, 80), (30, 40)), ((5, 7), (5, 7)), ((1, 5), (4, 9)), ((427, 640), (800, 1199))]
    random = [tuple(map(tuple, RNG.integers(1, 130, (2, 2)).tolist())) for _ in range(100)]
    for size, new in [*sizes, *random]:
        image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
        expected = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(resize(image, new), expected, err_msg=f"{size} to {new}")


def test_prepare_normalises_and_keeps_both_scales() -> None:
    config = ImageConfig(short=40, long=60)
    image = np.full((30, 41, 3), (200, 100, 50), np.uint8)
    prepared = prepare(image, config)
    assert prepared.pixels.shape == (3, 40, 55)
    assert prepared.pixels.dtype == torch.float32
    assert prepared.original_size == (30, 41)
    assert prepared.scale == (55 / 41, 40 / 30)
    expected = (torch.tensor([200.0, 100, 50]) - torch.tensor(config.mean)) / torch.tensor(config.std)
    torch.testing.assert_close(prepared.pixels, expected[:, None, None].expand(3, 40, 55))
    torch.testing.assert_close(prepared.pixels[:, :30, :41], normalise(image, config))


@pytest.mark.parametrize(
    ("config", "size", "new"),
    [
        (ImageConfig(), (427, 640), (800, 1199)),
        (ImageConfig(short=1280, long=2048, divisor=32), (480, 640), (1280, 1707)),
        (ImageConfig(short=1024, long=1024, square=True), (333, 500), (682, 1024)),
    ],
)
def test_prepare_equals_the_releases_steps_done_with_opencv(
    config: ImageConfig, size: tuple[int, int], new: tuple[int, int]
) -> None:
    """Resize, pad the square with grey 114, then normalise: subtract, and multiply by the inverse, in float32."""
    cv2 = pytest.importorskip("cv2")
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
    if config.square:
        below, right = config.long - new[0], config.long - new[1]
        expected = cv2.copyMakeBorder(expected, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    expected = expected.astype(np.float32)
    cv2.subtract(expected, np.float64([config.mean]), expected)
    cv2.multiply(expected, 1 / np.float64([config.std]), expected)
    prepared = prepare(image, config)
    torch.testing.assert_close(prepared.pixels, torch.from_numpy(expected).permute(2, 0, 1), atol=1e-6, rtol=1e-6)
    assert prepared.scale == (new[1] / size[1], new[0] / size[0])
    batch = batch_of([prepared], config)
    assert batch.pixels.shape[2:] == tuple(-(-side // config.divisor) * config.divisor for side in expected.shape[:2])
    assert bool(batch.pad_mask.any()) == (config.divisor > 1 and any(side % 32 for side in new))
