"""Where queries come from: the encoder's own proposals (two-stage), and the auxiliary heads' positives (Eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codetr_lab import boxes as box_ops
from codetr_lab.draws import choose
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.decoder import QueryInput, box_branch, class_branch
from codetr_lab.models.encoder import Memory, cell_grid
from codetr_lab.models.positional import box_encoding
from codetr_lab.structures import EMPTY, NEGATIVE, PADDING_NEGATIVE, PLAIN, Positives, Proposals


class QuerySelection(nn.Module):
    """Two-stage selection: every memory token proposes a box, the best become the original queries Q_0.

    Mixed selection, as released: boxes and positions come from the tokens, content is learned. Paper vs. release:
    the release ranks by the logit of class 0, which its encoder loss trains as "object".
    """

    def __init__(self, config: CoDETRConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.transformer.hidden_dim
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.class_branch = class_branch(dim, config.num_classes)
        self.box_branch = box_branch(dim)
        self.pos_trans = nn.Linear(2 * dim, 2 * dim)
        self.pos_trans_norm = nn.LayerNorm(2 * dim)
        self.query_embedding = nn.Embedding(config.num_queries, dim)

    def forward(self, memory: Memory) -> tuple[Proposals, QueryInput]:
        """Memory to all proposals and the group of original queries."""
        prior, valid = self._priors(memory)
        tokens = self.enc_output_norm(self.enc_output(memory.tokens * valid[..., None]))
        logits = self.class_branch(tokens)
        # An invalid token's prior is infinite, so its box is (1,1,1,1), as in the release.
        unactivated = self.box_branch(tokens) + prior
        index = self.select(logits)
        chosen = unactivated.gather(1, index[..., None].expand(-1, -1, 4)).detach()
        encoded = box_encoding(chosen.sigmoid(), self.config.transformer.hidden_dim)
        position = self.pos_trans_norm(self.pos_trans(encoded)).chunk(2, -1)[0]
        content = self.query_embedding.weight[: index.shape[1]].expand(len(logits), -1, -1)
        original = QueryInput("original", content, position, chosen.sigmoid(), torch.full_like(index, PLAIN))
        return Proposals(logits, unactivated.sigmoid(), index, valid), original

    def select(self, logits: Tensor) -> Tensor:
        """(B,S,C) to the (B,Q) tokens that become queries, best first; all of them where there are fewer than Q."""
        return logits[..., 0].topk(min(self.config.num_queries, logits.shape[1]), dim=1).indices

    def _priors(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """(B,S,4) logits of each token's own box, infinite where invalid, and (B,S) which are valid."""
        priors = []
        for level, (height, width) in enumerate(memory.shapes):
            size = memory.valid_ratios[:, level] * memory.tokens.new_tensor([width, height])
            centres = cell_grid((height, width), size.device) / size[:, None]
            side = self.config.transformer.proposal_side * 2**level
            priors.append(torch.cat([centres, torch.full_like(centres, side)], -1))
        prior = torch.cat(priors, 1)
        valid = ((prior > 0.01) & (prior < 0.99)).all(-1)
        if memory.pad_mask is not None:
            valid = valid & ~memory.pad_mask
        logit = torch.log(prior / (1 - prior))
        return logit.masked_fill(~valid[..., None], float("inf")), valid


@dataclass(frozen=True)
class CustomizedGroup:
    """The customized positive queries of one head, and what each must become.

    Attributes:
        query: the group, ready for the decoder.
        gt_index: (B,Q) long; the object that the head assigned, `NEGATIVE` for padding negatives.
        boxes: (B,Q,4) xyxy pixels where the queries start.
        weight: (B,Q) float; zero for empty slots.
        count: number of positives in the batch, before the cap: the normaliser of the losses.
    """

    query: QueryInput
    gt_index: Tensor
    boxes: Tensor
    weight: Tensor
    count: int


class QueryCustomizer(nn.Module):
    """Q_i = Linear(PE(B_i^pos)) + Linear(E({F_*}, {pos})) of Eq. 4, for one head."""

    def __init__(self, config: CoDETRConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.transformer.hidden_dim
        self.aux_pos_trans = nn.Linear(2 * dim, 2 * dim)
        self.aux_pos_trans_norm = nn.LayerNorm(2 * dim)
        self.pos_feats_trans = nn.Linear(dim, dim)
        self.pos_feats_norm = nn.LayerNorm(dim)
        # Paper vs. release: one scalar per head, added to every channel (a slip in the released code, kept there too).
        self.head_pos_embed = nn.Parameter(torch.zeros(1))

    def forward(
        self, name: str, positives: Sequence[Positives], whwh: Tensor, generator: torch.Generator | None = None
    ) -> CustomizedGroup:
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
        position, content = self.aux_pos_trans_norm(self.aux_pos_trans(encoded)).chunk(2, -1)
        if limits.features:
            content = content + self.pos_feats_norm(self.pos_feats_trans(features))
        query = QueryInput(name, content, position + self.head_pos_embed, cxcywh, kind)
        return CustomizedGroup(query, gt_index, boxes, (kind != EMPTY).float(), sum(len(p) for p in positives))

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
