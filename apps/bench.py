"""What the workbench shows, computed once and remembered: no page state lives here, so that people are not mixed up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from apps.memory import Memory
from apps.parts import PARTS
from apps.picture import Picture
from codetr_lab.analysis import (
    AnalysisError,
    IofIobCurve,
    RelationMatrix,
    class_activation_maps,
    cross_attention,
    discriminability,
    foreground,
    iof_iob_curve,
)
from codetr_lab.analysis.rules import assign_again, sampling_of, trace_assignments
from codetr_lab.analysis.scene import Scene, make_scene
from codetr_lab.data.dataset import DetectionDataset
from codetr_lab.engine.evaluate import CocoMetrics, evaluate
from codetr_lab.images import resize
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.detection import detections as decoder_detections
from codetr_lab.models.heads import AuxHead, FasterRCNNHead, MaskRCNNHead, build_heads
from codetr_lab.structures import Assignment, Detections, Target, Trace
from codetr_lab.viz.sketch import jpeg_uri

SHOWN_SIDE = 900
"""Pixels of the longer side to which a picture is reduced for the page; models read it as it came."""
REMEMBERED = 1_000_000_000
"""Bytes of traces that are kept."""
Nms = Literal["own", "none", "all"]
T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """What one model made of one picture. `target` is the trace's: empty where the objects are not known."""

    scene: Scene
    trace: Trace
    assignments: dict[str, Assignment]
    backdrop: str

    @property
    def target(self) -> Target:
        """The objects in the scene's pixels, none if they are not known."""
        return self.trace.targets[0] if self.trace.targets else {}


def titles(models: Mapping[str, CoDETR]) -> dict[str, str]:
    """What people call the models: "Co-DETR, K = 2"; with its name where two would be called the same."""
    plain = {}
    for name, model in models.items():
        k = len(model.config.aux_heads)
        plain[name] = f"{'Dense' if model.decoder is None else 'Co-DETR' if k else 'Baseline'}, K = {k}"
    counts = Counter(plain.values())
    return {name: title if counts[title] == 1 else f"{title} ({name})" for name, title in plain.items()}


def without_nms(config: CoDETRConfig) -> CoDETRConfig:
    """The same detector, whose heads hand out what they would put into their NMS (at most 3,000 boxes each)."""
    changed: dict[str, Any] = {"soft_nms_iou": None, "max_detections": 300}
    for field in fields(config):
        part = getattr(config, field.name)
        if is_dataclass(part) and hasattr(part, "nms_iou"):
            changed[field.name] = replace(part, nms_iou=1.0, max_detections=3000)  # type: ignore[type-var]
    return replace(config, **changed)


def same_heads(model: CoDETR, config: CoDETRConfig) -> dict[str, AuxHead]:
    """The auxiliary heads of `model` with the settings of `config`; the parameters are shared."""
    with torch.random.fork_rng(devices=[]):
        heads = build_heads(config, model.strides)
    heads.load_state_dict(model.heads.state_dict(), assign=True)
    return cast("dict[str, AuxHead]", dict(heads.eval().items()))


def whole_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N,h,w) bool masks that fill the boxes (N,4): Mask R-CNN's loss asks for masks, which the page does not show."""
    y, x = torch.arange(size[0])[:, None] + 0.5, torch.arange(size[1]) + 0.5
    x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
    return (x > x0) & (x < x1) & (y > y0) & (y < y1)


class Bench:
    """The loaded models and data set, and everything that has been computed with them.

    Args:
        models: by name, in evaluation mode, all with the data set's classes.
        dataset: whose images are shown.
    """

    def __init__(self, models: Mapping[str, CoDETR], dataset: DetectionDataset) -> None:
        if not models:
            raise ValueError("the workbench needs at least one model")
        if not len(dataset):
            raise ValueError(f"the workbench needs at least one image, but {dataset.name} is empty")
        self.models, self.dataset = dict(models), dataset
        self.titles = titles(self.models)
        self.seconds: dict[str, float] = {}
        """How long each model took for the image that it looked at last."""
        self._memory = Memory(REMEMBERED)

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return next(iter(self.models.values())).config.num_classes

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels."""
        return self.dataset.classes

    def heads(self, model: str) -> list[str]:
        """The heads of a model, the DETR decoder (`original`) first where there is one."""
        own = self.models[model]
        return [*(["original"] if own.decoder is not None else []), *own.heads]

    def seen(self, model: str, picture: Picture) -> Seen:
        """The traced flow of `model` on a picture."""
        return self._memory.get((model, picture.key), lambda: self._look(model, picture))

    def _look(self, model: str, picture: Picture) -> Seen:
        start = time.monotonic()
        image = picture.image(self.dataset)
        scene = make_scene(image, picture.target(self.dataset), self.models[model].config.image)
        target = scene.target
        if target is None:
            target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        if any(isinstance(head, MaskRCNNHead) for head in self.models[model].heads.values()):
            target = target | {"masks": whole_boxes(target["boxes"], scene.size)}
        trace = self.models[model].trace(scene.batch, [target])
        self.seconds[model] = time.monotonic() - start
        return Seen(scene, trace, trace_assignments(trace), _backdrop(image))

    def remembered(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What a page computed before under `key`, or what `compute` gives."""
        return self._memory.get(("page", key), compute)

    def assignments(
        self, model: str, picture: Picture, values: Mapping[str, Mapping[str, float]]
    ) -> dict[str, Assignment]:
        """Every assignment of the same candidates by name, under the parameters in `values` (by head and knob).

        Where nothing was turned, it is the one that the trace holds.
        """
        config = self.models[model].config
        return {
            name: assign_again(own, values.get(name, {}), sampling_of(config, name))
            for name, own in self.seen(model, picture).assignments.items()
        }

    def detections(self, model: str, picture: Picture, nms: Nms = "own", iou: float = 0.5) -> dict[str, Detections]:
        """Every head's detections: after its own NMS (the decoder has none), without any, or all after one at `iou`."""
        if nms == "own":
            return found_by_heads(self.seen(model, picture).trace)
        raw = self._memory.get((model, picture.key, "raw"), lambda: self._raw(model, picture))
        if nms == "none":
            return raw
        return {
            head: d.select(batched_nms(d.boxes, d.scores, d.labels, iou)) if len(d) else d for head, d in raw.items()
        }

    def _raw(self, model: str, picture: Picture) -> dict[str, Detections]:
        own, trace = self.models[model], self.seen(model, picture).trace
        config = without_nms(own.config)
        heads = self._memory.get((model, "heads without NMS"), lambda: same_heads(own, config))
        found = {}
        if own.decoder is not None:
            found["original"] = decoder_detections(trace.groups["original"], trace.batch, config)[0]
        names = [name for name in own.detectors if name in heads]
        return found | {name: found_boxes(heads[name], trace) for name in names}

    def score_map(self, model: str, picture: Picture, what: str, part: int) -> Tensor:
        """(h,w) scores in the scene's pixels.

        Args:
            what: `encoder` for D(F) of Eq. 7; `matched` or `all` for the decoder's attention from these queries.
            part: which level of the memory, -1 for all together; which decoder layer, -1 for the last.
        """

        def compute() -> Tensor:
            seen = self.seen(model, picture)
            if what == "encoder":
                levels = seen.trace.memory if part < 0 else [seen.trace.memory[part]]
                scores = discriminability(levels, seen.scene.padded, seen.trace.batch.pad_mask)
            else:
                scores = cross_attention(seen.trace, layer=part, queries="all" if what == "all" else "matched")
            height, width = seen.scene.size
            return scores[0, 0, :height, :width].contiguous()

        return self._memory.get((model, picture.key, what, part), compute)

    def curve(self, model: str, picture: Picture, what: str, part: int) -> IofIobCurve | None:
        """The IoF-IoB curve of a score map; None where there is no foreground or no background."""

        def compute() -> IofIobCurve | None:
            try:
                return iof_iob_curve(self.score_map(model, picture, what, part), self.foreground(model, picture))
            except AnalysisError:
                return None

        return self._memory.get((model, picture.key, what, part, "curve"), compute)

    def foreground(self, model: str, picture: Picture) -> Tensor:
        """(h,w) bool: the pixels of all objects."""
        seen = self.seen(model, picture)
        return foreground(seen.target, seen.scene.size)

    def relation(self, model: str, pictures: list[Picture], progress: Callable[[float], None]) -> RelationMatrix:
        """How far a model's heads are apart (Eq. 9), over some pictures."""
        matrix = RelationMatrix()
        for done, picture in enumerate(pictures, 1):
            seen = self.seen(model, picture)
            trace = self.models[model].trace(seen.scene.batch, [seen.target], grad=True)
            matrix.add(class_activation_maps(trace))
            progress(done / len(pictures))
        return matrix

    def metrics(self, model: str, images: int) -> dict[str, CocoMetrics]:
        """COCO's numbers of every head on the first `images` images of the data set."""
        own = self.models[model]
        return self._memory.get(
            (model, "metrics", images),
            lambda: evaluate(own, self.dataset, heads=own.detectors, limit=images, progress=False, batch_size=4),
        )


def found_boxes(head: AuxHead, trace: Trace) -> Detections:
    """What a head finds in the first image, without masks: 3,000 of them take gigabytes, and the page shows boxes."""
    if isinstance(head, MaskRCNNHead):
        return FasterRCNNHead.predict(head, trace.pyramid, trace.batch)[0]
    return head.predict(trace.pyramid, trace.batch)[0]


def found_by_heads(trace: Trace) -> dict[str, Detections]:
    """Detections of the first image by head, `original` being the decoder's last layer."""
    found = {"original": trace.detections[0]} if "original" in trace.groups else {}
    return found | {name: head.detections[0] for name, head in trace.heads.items() if head.detections}


def _backdrop(image: np.ndarray) -> str:
    """The address at which the page finds the picture, finer than the model reads it."""
    height, width = image.shape[:2]
    ratio = min(1.0, SHOWN_SIDE / max(height, width))
    small = resize(image, (max(1, round(height * ratio)), max(1, round(width * ratio))))
    return PARTS.address(jpeg_uri(small))
