"""Customized positive queries: an auxiliary head's positives become queries (Eq. 4). One class per `decoder.scheme`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codetr_lab import boxes as box_ops
from codetr_lab.draws import choose
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.decoder import QueryInput
from codetr_lab.models.positional import box_encoding
from codetr_lab.structures import EMPTY, NEGATIVE, PADDING_NEGATIVE, Positives


@dataclass(frozen=True)
class AssignedGroup:
    """A group whose queries know beforehand what each must become: a head's customized queries, or denoising.

    Attributes:
        query: the group, ready for the decoder.
        gt_index: (B,Q) long; the object that a query must find, `NEGATIVE` for none.
        boxes: (B,Q,4) xyxy pixels where the queries start.
        weight: (B,Q) float; zero for empty slots.
        count: number of positives in the batch, before any cap: the normaliser of the losses.
        factor: on its losses; lambda_1 for a head's queries.
    """

    query: QueryInput
    gt_index: Tensor
    boxes: Tensor
    weight: Tensor
    count: int
    factor: float = 1.0


class QueryCustomizer(nn.Module):
    """Q_i = Linear(PE(B_i^pos)) + Linear(E({F_*}, {pos})) of Eq. 4, for one head. Schemes differ in `embed`."""

    def __init__(self, config: CoDETRConfig, encoded: int) -> None:
        """`encoded`: channels of a query's encoded box."""
        super().__init__()
        self.config = config
        dim = config.transformer.hidden_dim
        self.aux_pos_trans = nn.Linear(2 * dim, encoded)
        self.aux_pos_trans_norm = nn.LayerNorm(encoded)
        if config.queries.features:
            self.pos_feats_trans = nn.Linear(dim, dim)
            self.pos_feats_norm = nn.LayerNorm(dim)

    def embed(self, encoded: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B,Q,encoded) box encodings to content (B,Q,D), still without E(.), and position (B,Q,D) or None."""
        raise NotImplementedError

    def forward(
        self, name: str, positives: Sequence[Positives], whwh: Tensor, generator: torch.Generator | None = None
    ) -> AssignedGroup:
        """One head's positives per image to a group of equal size for all images.

        The size is the largest number of positives in the batch, kept within `queries.minimum` and `queries.maximum`;
        who has more is sampled, who has fewer is filled up as `queries.padding` says.
        """
        limits = self.config.queries
        slots = max(limits.minimum, min(limits.maximum, max(len(p) for p in positives)))
        rows = [self._fill(p, slots, generator) for p in positives]
        boxes, features, gt_index, kind = (torch.stack(column) for column in zip(*rows, strict=True))
        cxcywh = box_ops.xyxy_to_cxcywh(boxes / whwh[:, None])
        # The encoding reads the box clamped to the image; the decoder starts from the box as it is.
        encoded = box_encoding(box_ops.inverse_sigmoid(cxcywh).sigmoid(), self.config.transformer.hidden_dim)
        content, position = self.embed(self.aux_pos_trans_norm(self.aux_pos_trans(encoded)))
        if limits.features:
            content = content + self.pos_feats_norm(self.pos_feats_trans(features))
        query = QueryInput(name, content, position, cxcywh, kind, gaps=True)
        weight, count = (kind != EMPTY).float(), sum(len(p) for p in positives)
        return AssignedGroup(query, gt_index, boxes, weight, count, self.config.lambda_1)

    def _fill(
        self, positives: Positives, slots: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(slots,4) boxes, (slots,D) features, (slots,) gt_index and kind of one image."""
        device = positives.boxes.device
        keep = choose(torch.arange(len(positives), device=device), slots, generator)
        missing = slots - len(keep)
        spare = torch.arange(len(positives.negative_boxes), device=device)
        fill = choose(spare, missing if self.config.queries.padding == "negatives" else 0, generator)
        empty = missing - len(fill)
        centre = positives.boxes.new_tensor([0.25, 0.25, 0.75, 0.75]) * 8
        return (
            torch.cat([positives.boxes[keep], positives.negative_boxes[fill], centre.expand(empty, 4)]),
            torch.cat([
                positives.features[keep], positives.negative_features[fill],
                positives.features.new_zeros(empty, positives.features.shape[1]),
            ]),
            torch.cat([positives.gt_index[keep], keep.new_full((slots - len(keep),), NEGATIVE)]),
            torch.cat([
                positives.kind[keep], keep.new_full((len(fill),), PADDING_NEGATIVE), keep.new_full((empty,), EMPTY),
            ]),
        )  # fmt: skip


class DeformableCustomizer(QueryCustomizer):
    """Half of the encoded box is position, half is content."""

    def __init__(self, config: CoDETRConfig) -> None:
        super().__init__(config, encoded=2 * config.transformer.hidden_dim)
        # Paper vs. release: Eq. 4 knows no embedding per head. The release adds one scalar to all channels (a slip in
        # its code, kept by its authors).
        width = {"scalar": 1, "vector": config.transformer.hidden_dim, "none": 0}[config.queries.head_embedding]
        self.head_pos_embed = nn.Parameter(torch.zeros(width)) if width else None

    def embed(self, encoded: Tensor) -> tuple[Tensor, Tensor | None]:
        position, content = encoded.chunk(2, -1)
        return content, position if self.head_pos_embed is None else position + self.head_pos_embed


class DINOCustomizer(QueryCustomizer):
    """All of the encoded box is content; the decoder makes positions from references, for all heads alike."""

    def __init__(self, config: CoDETRConfig) -> None:
        super().__init__(config, encoded=config.transformer.hidden_dim)

    def embed(self, encoded: Tensor) -> tuple[Tensor, Tensor | None]:
        return encoded, None


CUSTOMIZERS: dict[str, type[DeformableCustomizer] | type[DINOCustomizer]] = {
    "deformable": DeformableCustomizer, "dino": DINOCustomizer,
}  # fmt: skip
