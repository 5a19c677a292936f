"""From a file to what a model reads: decode, resize as the release does, normalise."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from codetr_lab.models.config import ImageConfig
from codetr_lab.structures import ImageBatch, Size

ImageSource = str | os.PathLike[str] | Image.Image | NDArray[np.generic]
MAX_PIXELS = 100_000_000
SQUARE_GREY = 114

# What Pillow's decoders raise on damaged files, besides OSError.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


class ImageError(ValueError):
    """An image cannot be used; the message names it and says why."""


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """An image as (H,W,3) uint8 RGB, upright.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grey values are scaled to 8 bits, and of
    an animation the first frame is taken.

    Args:
        source: a path, a Pillow image, or an array (H,W), (H,W,1), (H,W,3) or (H,W,4) of uint8 or uint16.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        ImageError: missing, empty, not an image, damaged, too large, or an array of another kind.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _decode(source, "the image", max_pixels)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(f"an image must be a path, a Pillow image or an array, got {type(source).__name__}")
    path = Path(source)
    try:
        if path.is_dir():
            raise ImageError(f"{path}: is a folder; give the path of one image")
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty (0 bytes); fetch or export it again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit has its own message
            image = Image.open(path)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: {_what_it_is(path)}; convert it to JPEG or PNG") from error
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(str(path), None, max_pixels)) from error
    except ImageError:
        raise
    except _DECODER_ERRORS as error:
        raise ImageError(f"{path}: cannot be read ({_first_line(error)})") from error
    with image:
        return _decode(image, str(path), max_pixels)


def _first_line(error: BaseException) -> str:
    """The error's words on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def _what_it_is(path: Path) -> str:
    """Say what a file is that Pillow does not know."""
    with path.open("rb") as file:
        start = file.read(256).lstrip().lower()
    if start.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        return "is a vector drawing (SVG), not a pixel image"
    if start.startswith((b"<!doctype html", b"<html")):
        return "is a web page, not an image"
    return "is not an image, or its header is damaged"


def _too_large(name: str, size: tuple[int, int] | None, max_pixels: int) -> str:
    """The message for a picture beyond the limit; `size` is (width, height)."""
    what = f"has {size[0]} x {size[1]} pixels" if size else "is too large"
    return f"{name}: {what}; the limit is {max_pixels / 1e6:g} megapixels: make it smaller first"


def _decode(image: Image.Image, name: str, max_pixels: int) -> NDArray[np.uint8]:
    """A Pillow image, whose pixels may not have been read yet, as (H,W,3) uint8."""
    if image.width * image.height > max_pixels:
        raise ImageError(_too_large(name, image.size, max_pixels))
    if min(image.size) == 0:
        raise ImageError(f"{name}: has no pixels ({image.width} x {image.height})")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ImageError(f"{name}: holds floating-point numbers; convert it to 8 bits first")
        if image.mode.startswith("I"):
            return _from_array(np.asarray(image).clip(0, 65535).astype(np.uint16), max_pixels)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return np.array(image.convert("RGB"))
    except ImageError:
        raise
    except _DECODER_ERRORS as error:
        raise ImageError(f"{name}: the file is damaged ({_first_line(error)}); fetch or export it again") from error


def _from_array(array: NDArray[np.generic], max_pixels: int) -> NDArray[np.uint8]:
    """A uint8 or uint16 array of 1, 3 or 4 channels as (H,W,3) uint8; never the caller's own memory."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"an image array must be (H, W), (H, W, 3) or (H, W, 4), got shape {array.shape}")
    height, width = array.shape[:2]
    if min(height, width) == 0:
        raise ImageError(f"an image array has no pixels, shape {array.shape}")
    if height * width > max_pixels:
        raise ImageError(_too_large("the image array", (width, height), max_pixels))
    if array.dtype == np.uint16:
        values = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 becomes 255, to the nearest grey
    elif array.dtype == np.uint8:
        values = array.astype(np.uint8)
    else:
        raise ImageError(f"an image array must be uint8 (0..255), got {array.dtype}; convert it first")
    if values.ndim == 2:
        values = values[:, :, None]
    if values.shape[2] == 4:
        alpha = values[:, :, 3:].astype(np.float32) / 255
        values = (values[:, :, :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
    if values.shape[2] == 1:
        values = values.repeat(3, 2)
    return np.ascontiguousarray(values)


def resized_size(height: int, width: int, short: int, long: int) -> Size:
    """The size (height, width) that keeps the ratio, with the short side at most `short` and the long at most `long`.

    One of the two is reached. Rounded half up as mmcv 1.5's `rescale_size`, which the release calls; never below 1.
    """
    scale = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """(H,W,3) uint8 to `size` (height, width), bilinear without antialiasing.

    To the bit what OpenCV's `INTER_LINEAR` gives, which the release calls: weights in units of 1/2048, rows before
    columns, four bits dropped in between.
    """
    if image.shape[:2] == size:
        return image
    pixels = torch.from_numpy(np.ascontiguousarray(image))
    left, right, left_weight, right_weight = _taps(image.shape[1], size[1])
    rows = pixels.index_select(1, left).int().mul_(left_weight[:, None])
    rows += pixels.index_select(1, right).int().mul_(right_weight[:, None])
    rows >>= 4
    top, bottom, top_weight, bottom_weight = _taps(image.shape[0], size[0], extend=True)
    result = rows.index_select(0, top).mul_(top_weight[:, None, None]).bitwise_right_shift_(16)
    result += rows.index_select(0, bottom).mul_(bottom_weight[:, None, None]).bitwise_right_shift_(16)
    return result.add_(2).bitwise_right_shift_(2).to(torch.uint8).numpy()


def _taps(old: int, new: int, *, extend: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For every new pixel along a side, its two neighbours' indices and their weights in units of 1/2048.

    `extend` keeps both weights beyond the border, where both neighbours are the last pixel: OpenCV does so for rows
    only, and the rounding differs.
    """
    place = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    index = np.floor(place).astype(np.int64)
    share = place - index.astype(np.float32)
    if not extend:
        share = np.where((index < 0) | (index >= old - 1), np.float32(0), share)
    weights = (np.rint(np.stack([1 - share, share]) * 2048)).astype(np.int32)
    first, second = torch.from_numpy(np.stack([index, index + 1]).clip(0, old - 1))
    first_weight, second_weight = torch.from_numpy(weights)
    return first, second, first_weight, second_weight


def pad_square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H,W,3) uint8 to (side,side,3), grey at the right and bottom, as the release pads for large-scale jitter."""
    padded = np.full((side, side, 3), SQUARE_GREY, np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def normalise(image: NDArray[np.uint8], config: ImageConfig) -> Tensor:
    """(H,W,3) uint8 RGB to (3,H,W) float32, mean subtracted and divided by the standard deviation."""
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy()).float()
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    return pixels.sub_(mean[:, None, None]).div_(std[:, None, None])


@dataclass(frozen=True)
class PreparedImage:
    """An image as the model reads it.

    Attributes:
        pixels: (3,h,w) float32, resized, padded to the square where the configuration says so, normalised.
        original_size: (height, width) before resizing.
        scale: (x, y), resized over original; the two differ by rounding.
    """

    pixels: Tensor
    original_size: Size
    scale: tuple[float, float]


def prepare(image: NDArray[np.uint8], config: ImageConfig) -> PreparedImage:
    """(H,W,3) uint8 RGB, as `load_image` gives it, resized and normalised for evaluation."""
    height, width = image.shape[:2]
    new_height, new_width = resized_size(height, width, config.short, config.long)
    resized = resize(image, (new_height, new_width))
    if config.square:
        resized = pad_square(resized, config.long)
    return PreparedImage(normalise(resized, config), (height, width), (new_width / width, new_height / height))


def as_images(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """A single path, Pillow image or array (H,W) or (H,W,C) as a list of one; several as they are."""
    single = isinstance(images, str | os.PathLike | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4)
    return [images] if single else images  # type: ignore[list-item, return-value]


def decoded(
    sources: Iterable[ImageSource], failed: Callable[[int, ImageError], None] | None = None
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Images one by one, each with its number.

    Args:
        failed: called with an unreadable image's number and the error; without it the error is raised.

    Raises:
        ImageError: as `load_image`; names the number too.
    """
    for number, source in enumerate(sources):
        try:
            image = load_image(source)
        except ImageError as error:
            named = ImageError(f"image {number}: {error}")
            if failed is None:
                raise named from error
            failed(number, named)
        else:
            yield number, image


def batch_of(images: Sequence[PreparedImage], config: ImageConfig) -> ImageBatch:
    """Prepared images padded together."""
    return ImageBatch.from_images(
        [image.pixels for image in images], divisor=config.divisor,
        original_sizes=[image.original_size for image in images], scales=[image.scale for image in images],
    )  # fmt: skip


def prepared_batches(
    sources: Iterable[ImageSource],
    config: ImageConfig,
    batch_size: int,
    failed: Callable[[int, ImageError], None] | None = None,
) -> Iterator[tuple[list[int], ImageBatch]]:
    """Batches of images as a model reads them, each with their numbers.

    Only images in a row that are of one size after resizing share a batch: what is found in an image then does not
    depend on how far others make the batch pad it.
    """
    numbers: list[int] = []
    ready: list[PreparedImage] = []
    for number, image in decoded(sources, failed):
        new = prepare(image, config)
        if ready and (len(ready) == batch_size or new.pixels.shape != ready[-1].pixels.shape):
            yield numbers, batch_of(ready, config)
            numbers, ready = [], []
        numbers.append(number)
        ready.append(new)
    if ready:
        yield numbers, batch_of(ready, config)
