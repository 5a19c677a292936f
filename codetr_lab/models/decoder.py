"""The deformable decoder: one pass over all groups of queries, with iterative box refinement."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr_lab.boxes import inverse_sigmoid
from codetr_lab.models.attention import DeformableAttention, GroupedSelfAttention, GroupView
from codetr_lab.models.config import CoDETRConfig, TransformerConfig
from codetr_lab.models.encoder import Memory
from codetr_lab.models.positional import box_encoding
from codetr_lab.structures import EMPTY, QueryGroup


@dataclass(frozen=True)
class QueryInput:
    """One group before the decoder.

    Attributes:
        name: the group's name.
        content: (B,Q,D).
        position: (B,Q,D), for all layers; None where the decoder makes it from the references, layer by layer.
        reference_boxes: (B,Q,4) normalised cxcywh, or (B,Q,2) their centres; a decoder of points reads no more.
        kind: (B,Q) long.
        sees: names of the groups that it attends to besides itself.
        subgroup: queries that see each other and no others of the group; 0 where all do.
        gaps: some of `kind` may be `EMPTY`.
    """

    name: str
    content: Tensor
    position: Tensor | None
    reference_boxes: Tensor
    kind: Tensor
    sees: tuple[str, ...] = ()
    subgroup: int = 0
    gaps: bool = False


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
        return self.norm3(x + self.linear2(F.relu(self.linear1(x), inplace=True))), locations, weights


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


class ReferencePositions(nn.Sequential):
    """DINO's query positions: an MLP on the sine encoding of the reference, anew in every layer."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.dim = dim

    def forward(self, reference: Tensor) -> Tensor:
        """(B,Q,4) boxes in units of the padded finest level to (B,Q,D)."""
        return super().forward(box_encoding(reference[..., [1, 0, 2, 3]], self.dim))


def moved(reference: Tensor, delta: Tensor, eps: float) -> Tensor:
    """The box that the (...,4) logits `delta` make of a reference: a box, or a point (...,2)."""
    logit = inverse_sigmoid(reference, eps)
    return (delta + F.pad(logit, (0, 4 - logit.shape[-1]))).sigmoid()


def group_views(groups: Sequence[QueryInput]) -> list[GroupView]:
    """Who sees whom, when the groups' queries lie one after the other."""
    sizes = [group.content.shape[1] for group in groups]
    ends = list(itertools.accumulate(sizes))
    slices = {g.name: slice(end - size, end) for g, size, end in zip(groups, sizes, ends, strict=True)}
    return [
        GroupView(slices[g.name], [slices[name] for name in g.sees], g.kind == EMPTY, g.subgroup, g.gaps)
        for g in groups
    ]


class Decoder(nn.Module):
    """All layers with their own class and box branches, shared by all groups (Sec. 3.3)."""

    def __init__(self, config: CoDETRConfig, levels: int) -> None:
        super().__init__()
        shape, dim = config.transformer, config.transformer.hidden_dim
        self.eps, self.refine = config.decoder.inverse_sigmoid_eps, config.decoder.refine
        self.reference_dim = 2 if config.decoder.queries == "learned" else 4
        self.layers = nn.ModuleList(DecoderLayer(shape, levels) for _ in range(shape.decoder_layers))
        self.class_branches = self._branches(lambda: class_branch(dim, config.num_classes))
        self.box_branches = self._branches(lambda: box_branch(dim))
        if self.reference_dim == 2:  # a point has no size to start from: 12 % of the image, as Deformable-DETR
            *_, bias = self.box_branches[0].parameters()
            nn.init.constant_(bias[2:], -2.0)
        self.norm = nn.LayerNorm(dim) if config.decoder.final_norm else None
        self.ref_point_head = ReferencePositions(dim) if config.decoder.scheme == "dino" else None

    def _branches(self, make: Callable[[], nn.Module]) -> nn.ModuleList:
        """One branch per layer; without refinement all layers share one, as in Deformable-DETR."""
        return nn.ModuleList([make() for _ in self.layers] if self.refine else [make()] * len(self.layers))

    def forward(self, groups: Sequence[QueryInput], memory: Memory, traced: bool = False) -> dict[str, QueryGroup]:
        """Run all groups at once; a group, or each of its subgroups, sees itself and the groups that it `sees`."""
        views = group_views(groups)
        x = torch.cat([group.content for group in groups], 1)
        reference = torch.cat([group.reference_boxes[..., : self.reference_dim] for group in groups], 1)
        fixed = [group.position for group in groups if group.position is not None]
        position = torch.cat(fixed, 1) if fixed else torch.empty(0)
        ratios = torch.cat([memory.valid_ratios] * 2, -1)[:, None]
        undetached = reference
        references, logits, boxes, locations, weights = [], [], [], [], []
        for layer, classify, regress in zip(self.layers, self.class_branches, self.box_branches, strict=True):
            references.append(F.pad(reference, (0, 4 - reference.shape[-1])))
            on_levels = reference[:, :, None] * ratios[..., : reference.shape[-1]]
            if self.ref_point_head is not None:  # paper vs. release: the finest level's valid share for all levels
                position = self.ref_point_head(on_levels[:, :, 0])
            x, where, weight = layer(x, position, on_levels, views, memory)
            output, delta = x, regress(x)
            if self.norm is not None:  # as released: DINO's heads read the normed output, its refinement the plain one
                output = self.norm(x)
            logits.append(classify(output))
            # Look forward twice (DINO, Zhang et al., 2022): the same number, but its gradient reaches the layer before.
            boxes.append(moved(undetached, delta if output is x else regress(output), self.eps))
            if self.refine:
                undetached = moved(reference, delta, self.eps)
                reference = undetached.detach()
            if traced:
                locations.append(where)
                weights.append(weight)
        outputs = [torch.stack(items) for items in (references, logits, boxes)]
        attention = [torch.stack(items) if traced else None for items in (locations, weights)]

        def of(group: QueryInput, own: slice) -> QueryGroup:
            references, logits, boxes = (item[:, :, own] for item in outputs)
            where, weight = (None if item is None else item[:, :, own] for item in attention)
            return QueryGroup(group.name, references, logits, boxes, group.kind, [], where, weight)

        return {group.name: of(group, view.own) for group, view in zip(groups, views, strict=True)}
