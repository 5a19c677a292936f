"""The nouns of the package: small dataclasses that every other module passes around.

Boxes are xyxy in absolute pixels unless the name ends in ``_cxcywh``; those are normalised by the valid image size.
Labels are ``0..C-1``. Sizes are ``(height, width)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

NEGATIVE = -1
"""`Assignment.gt_index` of a candidate that is background."""
IGNORED = -2
"""`Assignment.gt_index` of a candidate that takes no part in the loss."""

Target = dict[str, Tensor]
"""Torchvision's target of one image: `boxes` (N,4), `labels` (N,), optional `masks` (N,H,W), `iscrowd`, `image_id`."""

Size = tuple[int, int]


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply `function` to every tensor inside dataclasses, mappings, lists and tuples."""
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: _map_tensors(getattr(value, f.name), function) for f in fields(value) if f.init}
        )
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(item, function) for item in value)
    return value


class TensorRecord:
    """Moves every tensor of a dataclass at once."""

    def to(self, device: torch.device | str) -> Self:
        """The same record with all tensors on `device`."""
        return _map_tensors(self, lambda tensor: tensor.to(device))

    def detach(self) -> Self:
        """The same record cut from the graph."""
        return _map_tensors(self, Tensor.detach)


@dataclass(frozen=True)
class ImageBatch(TensorRecord):
    """Images of any sizes, padded at the right and bottom to one size.

    Attributes:
        pixels: (B,3,H,W) float32, normalised; zero where padded.
        pad_mask: (B,H,W) bool, True = padding.
        valid_sizes: per image, the size of its content after resizing. Boxes are normalised by it.
        padded_sizes: per image, its size padded to the divisor, before batching; anchors beyond it are invalid.
        original_sizes: per image, the size of the file.
        scales: per image (x, y), resized over original.
    """

    pixels: Tensor
    pad_mask: Tensor
    valid_sizes: tuple[Size, ...]
    padded_sizes: tuple[Size, ...]
    original_sizes: tuple[Size, ...]
    scales: tuple[tuple[float, float], ...]

    @classmethod
    def from_images(
        cls,
        images: Sequence[Tensor],
        *,
        divisor: int = 1,
        original_sizes: Sequence[Size] | None = None,
        scales: Sequence[tuple[float, float]] | None = None,
    ) -> ImageBatch:
        """Pad normalised (3,H,W) float tensors of any sizes into one batch.

        Raises:
            ValueError: no image, not three channels, a side of zero, or NaN; the message names the image's index.
        """
        if not images:
            raise ValueError("an ImageBatch needs at least one image")
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3:
                raise ValueError(f"image {index}: expected shape (3, H, W), got {tuple(image.shape)}")
            if min(image.shape[1:]) == 0:
                raise ValueError(f"image {index}: has a side of zero pixels, shape {tuple(image.shape)}")
            # The sum alone is thirty times faster, and not finite if any pixel is not.
            if not torch.isfinite(image.sum()) and not torch.isfinite(image).all():
                raise ValueError(f"image {index}: contains NaN or infinite pixels")
        valid = tuple((int(image.shape[1]), int(image.shape[2])) for image in images)
        padded = tuple((-(-h // divisor) * divisor, -(-w // divisor) * divisor) for h, w in valid)
        height, width = max(h for h, _ in padded), max(w for _, w in padded)
        pixels = images[0].new_zeros(len(images), 3, height, width)
        pad_mask = torch.ones(len(images), height, width, dtype=torch.bool, device=pixels.device)
        for index, (image, (h, w)) in enumerate(zip(images, valid, strict=True)):
            pixels[index, :, :h, :w] = image
            pad_mask[index, :h, :w] = False
        return cls(
            pixels, pad_mask, valid, padded,
            tuple(original_sizes) if original_sizes is not None else valid,
            tuple(scales) if scales is not None else ((1.0, 1.0),) * len(images),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.pixels)

    def whwh(self) -> Tensor:
        """(B,4) valid width, height, width, height: the factor between normalised and pixel boxes."""
        return self.pixels.new_tensor([(w, h, w, h) for h, w in self.valid_sizes])


@dataclass(frozen=True)
class Candidates(TensorRecord):
    """What can become positive, for one image: anchors, points, proposals or a decoder layer's predictions.

    Attributes:
        boxes: (M,4) xyxy pixels.
        level: (M,) long, index into the pyramid; -1 where a candidate has no level (decoder predictions).
        stride: (M,) pixels between neighbours on that level; 0 where there is none.
        valid: (M,) bool; invalid candidates (in the padding) are never assigned.
        scores: optional (M,C) logits or (M,) objectness, as the rule needs.
        costs: optional (M,) or (M,N) costs or losses that a rule has been given.
    """

    boxes: Tensor
    level: Tensor
    stride: Tensor
    valid: Tensor
    scores: Tensor | None = None
    costs: Tensor | None = None

    @classmethod
    def of_boxes(cls, boxes: Tensor, level: int = -1, stride: float = 0, **optional: Tensor | None) -> Candidates:
        """Candidates that share one level, all valid."""
        count = len(boxes)
        return cls(
            boxes,
            torch.full((count,), level, device=boxes.device),
            torch.full((count,), float(stride), device=boxes.device),
            torch.ones(count, dtype=torch.bool, device=boxes.device),
            **optional,
        )

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Quality:
    """The number that decided an assignment, for example `Quality("IoU", higher_is_better=True)`."""

    name: str
    higher_is_better: bool


@dataclass(frozen=True)
class Assignment(TensorRecord):
    """What one label assignment decided for one image of M candidates and N objects.

    Attributes:
        candidates: what was assigned.
        target: the image's ground truth.
        gt_index: (M,) long; the matched object, or `NEGATIVE`, or `IGNORED`.
        used: (M,) bool; survived sampling (all assigned candidates where there is no sampling).
        quality: what decided.
        threshold: (N,) the value that separates positive from the rest, per object.
        rule: the rule's name, for people.
        parameters: the rule's parameters, for people and for `explain`.
        explainer: computes the words of `explain` from this record.
    """

    candidates: Candidates
    target: Target
    gt_index: Tensor
    used: Tensor
    quality: Quality
    threshold: Tensor
    rule: str
    parameters: dict[str, Any] = field(default_factory=dict)
    explainer: Callable[[Assignment, int], str] | None = None

    @property
    def positive(self) -> Tensor:
        """(M,) bool."""
        return self.gt_index >= 0

    @property
    def negative(self) -> Tensor:
        """(M,) bool."""
        return self.gt_index == NEGATIVE

    @property
    def ignored(self) -> Tensor:
        """(M,) bool."""
        return self.gt_index == IGNORED

    @property
    def labels(self) -> Tensor:
        """(M,) long; the matched object's label, -1 where there is none."""
        if not len(self.target["labels"]):
            return torch.full_like(self.gt_index, -1)
        return torch.where(self.positive, self.target["labels"][self.gt_index.clamp(min=0)], -1)

    @property
    def target_boxes(self) -> Tensor:
        """(M,4) xyxy pixels; the matched object's box, zeros where there is none."""
        if not len(self.target["boxes"]):
            return torch.zeros_like(self.candidates.boxes)
        boxes = self.target["boxes"][self.gt_index.clamp(min=0)]
        return boxes * self.positive[:, None]

    def count_per_object(self) -> Tensor:
        """(N,) number of used positives of every object."""
        matched = self.gt_index[self.positive & self.used]
        return torch.bincount(matched, minlength=len(self.target["boxes"]))

    def explain(self, index: int) -> str:
        """Say in words why candidate `index` is positive, negative or ignored.

        Raises:
            IndexError: there is no such candidate.
        """
        if not 0 <= index < len(self.candidates):
            raise IndexError(f"candidate {index}: this assignment has candidates 0..{len(self.candidates) - 1}")
        if not self.candidates.valid[index]:
            return f"Candidate {index} lies in the padding of the batch, so {self.rule} leaves it out."
        if self.explainer is None:
            return f"{self.rule} gives no explanation."
        return self.explainer(self, index)


# What a query is (`QueryGroup.kind`).
PLAIN, POSITIVE, GROUND_TRUTH, PADDING_NEGATIVE, DENOISING, EMPTY = range(6)
QUERY_KINDS = ("plain", "positive", "ground-truth box", "padding negative", "denoising", "empty")


@dataclass(frozen=True)
class Positives(TensorRecord):
    """The positives of one head in one image that become customized queries: B_i^pos and P_i^pos of Eq. 2-4.

    Attributes:
        boxes: (P,4) xyxy pixels, where the query starts (proposal, anchor or point).
        labels: (P,) long.
        target_boxes: (P,4) xyxy pixels.
        gt_index: (P,) long.
        level: (P,) long.
        features: (P,D) E(.) of Eq. 4: what the pyramid holds there.
        kind: (P,) long, `POSITIVE` or `GROUND_TRUTH` (an object's own box that the sampler put among the proposals).
        negative_boxes: (R,4) negatives of the same head, from which an image with fewer positives is filled up
            (paper vs. release: the paper speaks of positives only).
        negative_features: (R,D)
    """

    boxes: Tensor
    labels: Tensor
    target_boxes: Tensor
    gt_index: Tensor
    level: Tensor
    features: Tensor
    kind: Tensor
    negative_boxes: Tensor
    negative_features: Tensor

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Detections(TensorRecord):
    """What one head found in one image, best first.

    Attributes:
        boxes: (D,4) xyxy pixels. `scores`: (D,) in [0,1]. `labels`: (D,) long.
        source_index: (D,) long; the query or candidate that a detection came from.
        masks: optional (D,H,W) bool.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    source_index: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, index: Tensor) -> Detections:
        """The detections at `index` (long or bool)."""
        return _map_tensors(self, lambda tensor: tensor[index])

    def to_original(self, scale: tuple[float, float], size: Size) -> Detections:
        """The same detections in the pixels of the file that the image came from."""
        factor = self.boxes.new_tensor([*scale, *scale])
        limit = self.boxes.new_tensor([size[1], size[0]] * 2)
        masks = self.masks
        if masks is not None and tuple(masks.shape[1:]) != size:
            masks = F.interpolate(masks[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0.5
        return replace(self, boxes=torch.minimum((self.boxes / factor).clamp(min=0), limit), masks=masks)

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO result records (`bbox` is xywh); `category_ids` maps labels back to the data set's own ids."""
        xywh = torch.cat([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], 1).double().tolist()
        return [
            {"image_id": image_id, "category_id": category_ids[label] if category_ids else label, "bbox": box,
             "score": score}
            for box, score, label in zip(xywh, self.scores.double().tolist(), self.labels.tolist(), strict=True)
        ]  # fmt: skip

    def to_supervision(self) -> Any:
        """A `supervision.Detections`."""
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.cpu().numpy(), confidence=self.scores.cpu().numpy(), class_id=self.labels.cpu().numpy(),
            mask=None if self.masks is None else self.masks.cpu().numpy(),
        )  # fmt: skip


@dataclass(frozen=True)
class QueryGroup(TensorRecord):
    """One group of queries through all L decoder layers.

    Attributes:
        name: `original`, `denoising`, an auxiliary head's name, `group_2`, ... (Group-DETR) or `one_to_many` (H-DETR).
        reference_boxes: (L,B,Q,4) normalised; what layer l reads. A point is a box without size.
        logits: (L,B,Q,C).
        boxes_cxcywh: (L,B,Q,4) normalised by the valid size.
        kind: (B,Q) long, one of the kinds above.
        assignments: `[layer][image]`; empty without targets.
        sampling_locations: when traced, (L,B,Q,heads,levels,points,2), normalised by the padded batch.
        attention_weights: when traced, (L,B,Q,heads,levels,points), sum one over levels and points.
    """

    name: str
    reference_boxes: Tensor
    logits: Tensor
    boxes_cxcywh: Tensor
    kind: Tensor
    assignments: list[list[Assignment]] = field(default_factory=list)
    sampling_locations: Tensor | None = None
    attention_weights: Tensor | None = None


@dataclass(frozen=True)
class HeadOutput(TensorRecord):
    """What one auxiliary head did with a batch. What was not asked for is empty.

    Attributes:
        name: `atss`, `faster_rcnn`, `atss_2`, ...
        assignments: per image, the assignment whose positives become queries.
        stages: other assignments by stage, per image (Faster R-CNN: `rpn`).
        positives: per image.
        losses: unweighted names without the head's prefix, already multiplied by their weights.
        detections: per image, after the head's own NMS.
        positive_logits: per image, (P,) the logit of its object's class at every used positive of `assignments`, in
            their order (for Grad-CAM).
    """

    name: str
    assignments: list[Assignment] = field(default_factory=list)
    stages: dict[str, list[Assignment]] = field(default_factory=dict)
    positives: list[Positives] = field(default_factory=list)
    losses: dict[str, Tensor] = field(default_factory=dict)
    detections: list[Detections] = field(default_factory=list)
    positive_logits: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Proposals(TensorRecord):
    """The encoder's own predictions, one per token, and the ones that became queries (two-stage selection).

    Attributes:
        logits: (B,S,C). `boxes_cxcywh`: (B,S,4) normalised.
        index: (B,Q) long, the selected tokens, best first.
        valid: (B,S) bool; False where padded or too near the border, whose box is (1,1,1,1).
        assignments: per image, what the encoder's loss matched (all tokens or the selected ones, as the model's
            `decoder.encoder_loss` says); empty without targets.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    index: Tensor
    valid: Tensor
    assignments: list[Assignment] = field(default_factory=list)

    def selected(self) -> tuple[Tensor, Tensor]:
        """(B,Q,C) logits and (B,Q,4) boxes of the tokens at `index`."""
        rows = torch.arange(len(self.index), device=self.index.device)[:, None]
        return self.logits[rows, self.index], self.boxes_cxcywh[rows, self.index]


@dataclass(frozen=True)
class Trace(TensorRecord):
    """The whole flow of one batch, by name: the forward pass's own intermediate results.

    Attributes:
        batch, targets: what went in.
        memory: encoder output F, list of (B,D,H_l,W_l), finest first.
        pyramid: what the auxiliary heads read, likewise, one coarser level more; empty if no head was run.
        strides: pixels per cell of every pyramid level.
        proposals: two-stage selection; None for learned queries.
        groups: by name, `original` first.
        heads: by name.
        losses: as `model(batch, targets)` in training mode gives them; empty without targets.
        detections: of the decoder, or of the first head where there is none, per image; empty in training mode.
    """

    batch: ImageBatch
    targets: list[Target] | None
    memory: list[Tensor]
    pyramid: list[Tensor]
    strides: tuple[int, ...]
    proposals: Proposals | None
    groups: dict[str, QueryGroup]
    heads: dict[str, HeadOutput]
    losses: dict[str, Tensor]
    detections: list[Detections]
