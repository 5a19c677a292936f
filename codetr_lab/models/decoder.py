"""The deformable decoder: one pass over all groups of queries, with iterative box refinement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr_lab.boxes import inverse_sigmoid
from codetr_lab.models.attention import DeformableAttention, GroupedSelfAttention, GroupView
from codetr_lab.models.config import TransformerConfig
from codetr_lab.models.encoder import Memory
from codetr_lab.structures import EMPTY, QueryGroup


@dataclass(frozen=True)
class QueryInput:
    """One group before the decoder.

    Attributes:
        name: the group's name.
        content: (B,Q,D). `position`: (B,Q,D).
        reference_boxes: (B,Q,4) normalised cxcywh.
        kind: (B,Q) long.
        sees: names of the groups that it attends to besides itself.
    """

    name: str
    content: Tensor
    position: Tensor
    reference_boxes: Tensor
    kind: Tensor
    sees: tuple[str, ...] = ()


class DecoderLayer(nn.Module):
    """Post-norm: grouped self-attention, deformable cross-attention, feed-forward network."""

    def __init__(self, config: TransformerConfig, levels: int) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.self_attn = GroupedSelfAttention(dim, config.heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = DeformableAttention(dim, config.heads, levels, config.points)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, config.ffn_dim)
        self.linear2 = nn.Linear(config.ffn_dim, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, position: Tensor, reference: Tensor, groups: Sequence[GroupView], memory: Memory
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B,Q,D) to (B,Q,D), with the sampling locations and weights of the cross-attention."""
        x = self.norm1(x + self.self_attn(x, position, groups))
        attended, locations, weights = self.cross_attn(
            x + position, memory.tokens, reference, memory.shapes, memory.pad_mask
        )
        x = self.norm2(x + attended)
        return self.norm3(x + self.linear2(F.relu(self.linear1(x)))), locations, weights


def box_branch(dim: int) -> nn.Sequential:
    """Three linear layers to box deltas, which start at zero."""
    last = nn.Linear(dim, 4)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), last)


def class_branch(dim: int, num_classes: int) -> nn.Linear:
    """One linear layer to class logits, which start at a probability of 0.01."""
    branch = nn.Linear(dim, num_classes)
    nn.init.constant_(branch.bias, -4.59511985013459)
    return branch


class Decoder(nn.Module):
    """All layers with their own class and box branches, shared by all groups (Sec. 3.3)."""

    def __init__(self, config: TransformerConfig, levels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config, levels) for _ in range(config.decoder_layers))
        self.class_branches = nn.ModuleList(class_branch(config.hidden_dim, num_classes) for _ in self.layers)
        self.box_branches = nn.ModuleList(box_branch(config.hidden_dim) for _ in self.layers)

    def forward(self, groups: Sequence[QueryInput], memory: Memory, traced: bool = False) -> dict[str, QueryGroup]:
        """Run all groups at once; what a group sees is decided by `QueryInput.sees` alone."""
        sizes = [group.content.shape[1] for group in groups]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        slices = {g.name: slice(end - size, end) for g, size, end in zip(groups, sizes, ends, strict=True)}
        views = [
            GroupView(
                slices[g.name], [slices[g.name], *(slices[name] for name in g.sees)],
                g.kind == EMPTY if not g.sees else None,
            )
            for g in groups
        ]  # fmt: skip
        x, position, reference = (
            torch.cat([getattr(group, field) for group in groups], 1)
            for field in ("content", "position", "reference_boxes")
        )
        to_padded = torch.cat([memory.valid_ratios] * 2, -1)[:, None]
        undetached = reference
        references, logits, boxes, locations, weights = [], [], [], [], []
        for layer, classify, regress in zip(self.layers, self.class_branches, self.box_branches, strict=True):
            references.append(reference)
            x, where, weight = layer(x, position, reference[:, :, None] * to_padded, views, memory)
            delta = regress(x)
            logits.append(classify(x))
            # Look forward twice (DINO, Zhang et al., 2022): the same number, but its gradient reaches the layer before.
            boxes.append((delta + inverse_sigmoid(undetached)).sigmoid())
            undetached = (delta + inverse_sigmoid(reference)).sigmoid()
            reference = undetached.detach()
            if traced:
                locations.append(where)
                weights.append(weight)
        outputs = [torch.stack(items) for items in (references, logits, boxes)]
        attention = [torch.stack(items) if traced else None for items in (locations, weights)]

        def of(group: QueryInput) -> QueryGroup:
            own = slices[group.name]
            references, logits, boxes = (item[:, :, own] for item in outputs)
            where, weight = (None if item is None else item[:, :, own] for item in attention)
            return QueryGroup(group.name, references, logits, boxes, group.kind, [], where, weight)

        return {group.name: of(group) for group in groups}
