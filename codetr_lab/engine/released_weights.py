"""The catalogue of released weights: where each file is, what it reached as published, and how it becomes a model here.

`fetch` downloads a file once, converts it to `model.safetensors` and `config.json` (with class names) in the cache
folder, and needs no network afterwards. Facts: the release's README (Sense-X/Co-DETR at 2665352) and MMDetection's
`projects/CO-DETR`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codetr_lab.data.class_names import class_names
from codetr_lab.engine import checkpoint
from codetr_lab.engine.download import download
from codetr_lab.models.config import ConfigError, override

if TYPE_CHECKING:
    from torch import Tensor

    from codetr_lab.models.codetr import CoDETR

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "CODETR_CACHE"
MODEL_ZOO = "https://github.com/Sense-X/Co-DETR#model-zoo"
_OPENMMLAB = "https://download.openmmlab.com/mmdetection/v3.0/codetr"
_HUGGING_FACE = "https://huggingface.co/zongzhuofan"


class WeightsError(OSError):
    """Released weights cannot be had; the message says what to do instead."""


@dataclass(frozen=True)
class ReleasedWeights:
    """One released file.

    Attributes:
        name: `architecture.tag`, whose recipe it was trained with.
        ap: box AP in percent as published (COCO val2017; LVIS v1 val for LVIS classes); None where none is published.
        url: empty where a person has to fetch it (Google Drive, linked from `MODEL_ZOO`).
        licence: of the place that it comes from.
    """

    name: str
    ap: float | None
    url: str = ""
    licence: str = "MIT"

    @property
    def sha256(self) -> str:
        """The hash's first eight digits, where the file name ends in them."""
        match = re.search(r"-([0-9a-f]{8})\.pth$", self.url)
        return match[1] if match else ""

    @property
    def classes(self) -> str:
        """`coco` or `lvis_v1`, whose classes it finds; empty for Objects365, whose order the release does not state."""
        return data_of(self.name)


def data_of(name: str) -> str:
    """The data set that the last word of a tag names, as `class_names` calls it; empty where there is none."""
    return {"coco": "coco", "lvis": "lvis_v1"}.get(name.partition(".")[2].rpartition("_")[2], "")


def _openmmlab(name: str, ap: float | None, file: str) -> ReleasedWeights:
    return ReleasedWeights(name, ap, f"{_OPENMMLAB}/{file}.pth", "Apache-2.0")


def _hugging_face(name: str, ap: float | None, repository: str) -> ReleasedWeights:
    return ReleasedWeights(name, ap, f"{_HUGGING_FACE}/{repository}/resolve/main/pytorch_model.pth", "Apache-2.0")


RELEASED = (
    ReleasedWeights("co_deformable_detr_r50.1x_coco", 49.5),
    ReleasedWeights("co_deformable_detr_swin_tiny.1x_coco", 51.7),
    ReleasedWeights("co_deformable_detr_swin_tiny.3x_coco", 54.1),
    ReleasedWeights("co_deformable_detr_swin_small.1x_coco", 53.4),
    ReleasedWeights("co_deformable_detr_swin_small.3x_coco", 55.3),
    ReleasedWeights("co_deformable_detr_swin_base.1x_coco", 55.5),
    ReleasedWeights("co_deformable_detr_swin_base.3x_coco", 57.5),
    ReleasedWeights("co_deformable_detr_swin_large.1x_coco", 56.9),
    ReleasedWeights("co_deformable_detr_swin_large_900q.3x_coco", 58.5),
    _openmmlab("co_dino_5scale_r50.1x_coco", 52.1, "co_dino_5scale_r50_1x_coco-7481f903"),
    _openmmlab(
        "co_dino_5scale_r50.lsj_1x_coco", 52.0,
        "co_dino_5scale_r50_lsj_8xb2_1x_coco/co_dino_5scale_r50_lsj_8xb2_1x_coco-69a72d67",
    ),
    _openmmlab("co_dino_5scale_r50.lsj_3x_coco", 54.8, "co_dino_5scale_lsj_r50_3x_coco-fe5a6829"),
    ReleasedWeights("co_dino_5scale_9encoder_r50.lsj_1x_coco", 52.6),
    ReleasedWeights("co_dino_5scale_9encoder_r50.lsj_3x_coco", 55.4),
    _openmmlab("co_dino_5scale_swin_large.1x_coco", 58.9, "co_dino_5scale_swin_large_1x_coco-27c13da4"),
    _openmmlab("co_dino_5scale_swin_large.lsj_1x_coco", 59.3, "co_dino_5scale_lsj_swin_large_1x_coco-3af73af2"),
    ReleasedWeights("co_dino_5scale_swin_large.2x_coco", 59.8),
    ReleasedWeights("co_dino_5scale_swin_large.lsj_2x_coco", 60.4),
    _openmmlab("co_dino_5scale_swin_large.3x_coco", 60.0, "co_dino_5scale_swin_large_3x_coco-d7a6d8af"),
    ReleasedWeights("co_dino_5scale_swin_large.lsj_3x_coco", 60.7),
    ReleasedWeights("co_dino_5scale_swin_large.lsj_3x_lvis", 56.9),
    _openmmlab("co_dino_5scale_swin_large.o365", None, "co_dino_5scale_swin_large_22e_o365-0a33e247"),
    _openmmlab("co_dino_5scale_swin_large.o365_coco", 64.1, "co_dino_5scale_swin_large_16e_o365tococo-614254c9"),
    ReleasedWeights("co_dino_5scale_swin_large.o365_lsj_lvis", 64.5),
    _hugging_face("co_dino_5scale_vit_large.o365", None, "co-detr-vit-large-objects365"),
    _hugging_face("co_dino_5scale_vit_large.o365_coco", 65.9, "co-detr-vit-large-coco"),
    _hugging_face("co_dino_5scale_vit_large.lsj_lvis", 68.0, "co-detr-vit-large-lvis"),
)  # fmt: skip


def released(name: str) -> ReleasedWeights | None:
    """The catalogue's entry of that name."""
    return next((weights for weights in RELEASED if weights.name == name), None)


def cache_folder() -> Path:
    """Where downloads are kept: `$CODETR_CACHE`, else `codetr_lab` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "codetr_lab"


def fetch(weights: ReleasedWeights, *, progress: bool = True) -> Path:
    """The folder with the converted weights; downloads and converts them the first time.

    Raises:
        DownloadError: no network, a damaged file. WeightsError: they have to be fetched by hand.
        CheckpointError: the file does not fit, or the cache folder cannot be written.
    """
    folder = cache_folder() / "weights" / weights.name
    if (folder / checkpoint.WEIGHTS_FILE).is_file() and (folder / checkpoint.CONFIG_FILE).is_file():
        return folder
    if not weights.url:
        raise WeightsError(
            f"{weights.name} lies in a Google Drive folder: fetch it by hand from {MODEL_ZOO} and pass the file, "
            f'lab.load("{weights.name}", weights="FILE.pth") or --model {weights.name} --weights FILE.pth'
        )
    file = cache_folder() / "downloads" / f"{weights.name}.pth"
    download(weights.url, file, sha256=weights.sha256, progress=progress)
    model = from_file(weights.name, file)
    work = Path(tempfile.mkdtemp(prefix=f".{weights.name}-", dir=_made(folder.parent)))
    try:
        checkpoint.save_model(model, work)
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete one
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    file.unlink()
    return folder


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(
            f"cannot make {folder}: {error.strerror}; set {CACHE_VARIABLE} to a folder of yours"
        ) from error
    return folder


def from_file(name: str, file: str | Path) -> CoDETR:
    """A model of preset `name` (or `architecture.tag`) with the weights of a released file, in evaluation mode.

    Auxiliary heads that the file lacks, or has in another shape (LVIS's Faster R-CNN), are left out with a warning:
    detection by the decoder does not need them.

    Raises:
        ConfigError: no such preset. CheckpointError (of `models.foreign`): not a checkpoint, or another model's.
    """
    from codetr_lab.models.foreign import CheckpointError, read_checkpoint, released_names
    from codetr_lab.models.nearest import nearest_preset
    from codetr_lab.models.presets import preset
    from codetr_lab.models.released import fitting, released_key

    config = preset(name)
    content = read_checkpoint(file)
    if data := data_of(name):
        config = override(config, classes=class_names(data))
    model = checkpoint.build_model(override(config, **{"backbone.pretrained": False, "backbone.weights": None}))
    try:
        names = {key: released_key(key, model) for key in model.state_dict()}
    except KeyError:
        raise ConfigError(f"{name} has no counterpart in the release, so no released file fits it") from None
    state = released_names(content, names.values())
    lost = _lost_heads(model, state, names)
    fresh = [key for key in names if key.startswith(tuple(f"{part}.{head}." for head in lost for part in _HEAD_PARTS))]
    if len(lost) == len(model.heads):
        fresh += [key for key in names if key.startswith("pyramid.")]
    found, misfits = fitting(model, _without(state, names, fresh), names, fresh)
    if misfits:
        raise CheckpointError(f"{file} does not fit {name}: {misfits}; {nearest_preset(state)}")
    model.load_state_dict(found, strict=False)
    if lost:
        logger.warning("%s: no fitting %s in the file; loaded without", name, " and ".join(lost))
        kept = tuple(head for head in model.heads if head not in lost)
        smaller = checkpoint.build_model(override(model.config, aux_heads=kept))
        smaller.load_state_dict({key: model.state_dict()[key] for key in smaller.state_dict()})
        model = smaller
    return model.eval()


_HEAD_PARTS = ("heads", "customizers")


def _lost_heads(model: CoDETR, state: Mapping[str, Tensor], names: Mapping[str, str]) -> list[str]:
    """The auxiliary heads of `model` that a released `state` lacks or has in another shape."""
    own = model.state_dict()
    lost = []
    for head in model.heads:
        keys = [key for key in own if key.startswith(tuple(f"{part}.{head}." for part in _HEAD_PARTS))]
        if not all(names[key] in state and _fits(state[names[key]], own[key], names[key]) for key in keys):
            lost.append(head)
    return lost


def _without(state: Mapping[str, Tensor], names: Mapping[str, str], fresh: list[str]) -> dict[str, Tensor]:
    """`state` without what belongs to our keys `fresh` alone, and without anything else of lost heads."""
    used = {name for key, name in names.items() if key not in fresh}
    gone = {names[key] for key in fresh}
    parts = {names[key].partition(".")[0] for key in fresh if key.startswith("heads.")}
    return {
        name: value
        for name, value in state.items()
        if name in used or not (name in gone or name.partition(".")[0] in parts)
    }


def _fits(found: Tensor, own: Tensor, name: str) -> bool:
    """Whether the shapes are the same; all heads share one `head_pos_embed`, a row for each."""
    return found.shape[1:] == own.shape if name.endswith("head_pos_embed.weight") else found.shape == own.shape
