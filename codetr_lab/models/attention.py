"""Attention layers: deformable over the memory, and self-attention inside groups of queries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr_lab.ops import ms_deform_attn


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention with its projections (Zhu et al., 2021)."""

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def reset_parameters(self) -> None:
        """Points start on a ring of `heads` directions, 1..points cells away; all weights equal."""
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        ring = torch.stack([angles.cos(), angles.sin()], -1)
        ring = ring / ring.abs().max(-1, keepdim=True).values
        distances = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = ring[:, None, None] * distances[:, None]
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
            self.attention_weights.weight.zero_()
            self.attention_weights.bias.zero_()
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        reference: Tensor,
        shapes: Sequence[tuple[int, int]],
        pad_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend from `query` (B,Q,D) to `value` (B,S,D).

        Args:
            reference: (B,Q,levels,2) points or (B,Q,levels,4) cxcywh boxes, in units of the padded level.
            pad_mask: (B,S) bool, whose tokens count as zero; None where nothing is padded.

        Returns:
            (B,Q,D), sampling locations (B,Q,heads,levels,points,2), weights (B,Q,heads,levels,points).
        """
        batch, queries, _ = query.shape
        value = self.value_proj(value)
        if pad_mask is not None:
            value = value.masked_fill(pad_mask[..., None], 0)
        value = value.view(batch, -1, self.heads, value.shape[-1] // self.heads)
        offsets = self.sampling_offsets(query).view(batch, queries, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(batch, queries, self.heads, -1).softmax(-1)
        weights = weights.view(batch, queries, self.heads, self.levels, self.points)
        centre = reference[:, :, None, :, None, :2]
        if reference.shape[-1] == 2:
            scale = 1 / query.new_tensor([(w, h) for h, w in shapes])[:, None]
        else:
            scale = reference[:, :, None, :, None, 2:] * (0.5 / self.points)
        locations = torch.addcmul(centre, offsets, scale)
        output = ms_deform_attn(value, shapes, locations, weights)
        return self.output_proj(output), locations, weights


class GroupedSelfAttention(nn.Module):
    """Multi-head self-attention in which each group of queries sees only the groups that it may see.

    One projection for all groups, then one fused attention per group: no mask over all pairs is ever built.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, position: Tensor, groups: Sequence[GroupView]) -> Tensor:
        """(B,Q,D) and positions of the same shape to (B,Q,D)."""
        batch, _, dim = x.shape
        qk = F.linear(x + position, self.in_proj_weight[: 2 * dim], self.in_proj_bias[: 2 * dim])
        v = F.linear(x, self.in_proj_weight[2 * dim :], self.in_proj_bias[2 * dim :])
        q, k, v = (
            t.view(batch, -1, self.heads, dim // self.heads).transpose(1, 2) for t in (*qk.split(dim, -1), v)
        )  # each (B,heads,Q,d)
        outputs = []
        for group in groups:
            keys, values = (torch.cat([t[:, :, s] for s in group.sees], 2) for t in (k, v))
            outputs.append(F.scaled_dot_product_attention(q[:, :, group.own], keys, values, attn_mask=group.mask))
        return self.out_proj(torch.cat(outputs, 2).transpose(1, 2).reshape(batch, -1, dim))


class GroupView:
    """Where one group lies among all queries, and what it sees.

    Attributes:
        own: the group's slice. `sees`: the slices it attends to, its own first.
        mask: None where every query sees all of these, else (Q,keys) or (B,1,Q,keys) bool, True = sees.
    """

    def __init__(
        self, own: slice, others: Sequence[slice], empty: Tensor, subgroup: int = 0, gaps: bool = True
    ) -> None:
        """`empty` (B,Q) bool: slots that only themselves may attend to, looked at if there may be `gaps`.

        `subgroup`: so many queries see each other.
        """
        self.own, self.sees = own, [own, *others]
        self.mask: Tensor | None = None
        queries = empty.shape[1]
        if subgroup:
            part = torch.arange(queries, device=empty.device) // subgroup
            self.mask = part[:, None] == part
        if gaps and empty.any():
            itself = torch.eye(queries, dtype=torch.bool, device=empty.device)
            within = ~empty[:, None, :] | itself
            self.mask = (within if self.mask is None else within & self.mask)[:, None]
        if self.mask is not None:
            self.mask = F.pad(self.mask, (0, sum(other.stop - other.start for other in others)), value=True)
