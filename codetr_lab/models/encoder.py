"""The deformable encoder: neck maps to memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from codetr_lab.models.attention import DeformableAttention
from codetr_lab.models.config import TransformerConfig
from codetr_lab.models.positional import sine_encoding


@dataclass(frozen=True)
class Memory:
    """The encoder's output F over all levels, and the geometry that everything after it needs.

    Attributes:
        tokens: (B,S,D).
        pad_mask: (B,S) bool, True = padding; None where nothing is padded.
        shapes: (H_l,W_l) per level, finest first.
        valid_ratios: (B,levels,2) valid share of width and height.
    """

    tokens: Tensor
    pad_mask: Tensor | None
    shapes: list[tuple[int, int]]
    valid_ratios: Tensor

    def levels(self) -> list[Tensor]:
        """(B,D,H_l,W_l) per level."""
        parts = self.tokens.split([h * w for h, w in self.shapes], 1)
        return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, self.shapes, strict=True)]


class EncoderLayer(nn.Module):
    """Post-norm: deformable self-attention, then a feed-forward network."""

    def __init__(self, config: TransformerConfig, levels: int) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.self_attn = DeformableAttention(dim, config.heads, levels, config.points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, config.ffn_dim)
        self.linear2 = nn.Linear(config.ffn_dim, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, position: Tensor, reference: Tensor, shapes: list[tuple[int, int]], pad_mask: Tensor | None
    ) -> Tensor:
        """(B,S,D) to (B,S,D)."""
        x = self.norm1(x + self.self_attn(x + position, x, reference, shapes, pad_mask)[0])
        return self.norm2(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


class Encoder(nn.Module):
    """Flattens the levels, adds position and level embeddings, and runs the layers."""

    def __init__(self, config: TransformerConfig, levels: int) -> None:
        super().__init__()
        self.config = config
        self.level_embeds = nn.Parameter(torch.empty(levels, config.hidden_dim))
        self.layers = nn.ModuleList(EncoderLayer(config, levels) for _ in range(config.encoder_layers))

    def forward(self, levels: list[Tensor], pad_mask: Tensor) -> Memory:
        """(B,D,H_l,W_l) maps and the batch's (B,H,W) mask to the memory."""
        shapes = [(int(x.shape[2]), int(x.shape[3])) for x in levels]
        masks = [F.interpolate(pad_mask[None].float(), size=shape)[0].bool() for shape in shapes]
        dim, temperature, offset = (
            self.config.hidden_dim, self.config.positional_temperature, self.config.positional_offset,
        )  # fmt: skip
        position = torch.cat(
            [
                sine_encoding(mask, dim, temperature, offset).flatten(1, 2) + embed
                for mask, embed in zip(masks, self.level_embeds, strict=True)
            ],
            1,
        )
        valid_ratios = torch.stack([_valid_ratio(mask) for mask in masks], 1)
        padded = torch.compiler.is_compiling() or pad_mask.any()  # a compiled graph must fit every mask
        flat_mask = torch.cat([mask.flatten(1) for mask in masks], 1) if padded else None
        reference = _cell_centres(shapes, valid_ratios)
        x = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        for index, layer in enumerate(self.layers):
            arguments = (x, position, reference, shapes, flat_mask)
            if index < self.config.checkpointed_layers and torch.is_grad_enabled() and self.training:
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
        return Memory(x, flat_mask, shapes, valid_ratios)


def _valid_ratio(mask: Tensor) -> Tensor:
    """(B,H,W) bool to (B,2): valid width over width, valid height over height."""
    valid = ~mask
    return torch.stack([valid[:, 0].float().mean(1), valid[:, :, 0].float().mean(1)], -1)


def cell_grid(shape: tuple[int, int], device: torch.device) -> Tensor:
    """(H*W,2) centres (x, y) of a map's cells, in cells."""
    y, x = torch.meshgrid(
        torch.arange(shape[0], device=device) + 0.5, torch.arange(shape[1], device=device) + 0.5, indexing="ij"
    )
    return torch.stack([x.flatten(), y.flatten()], -1)


def _cell_centres(shapes: list[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """(B,S,levels,2) each token's own centre on every level, in units of the padded level."""
    centres = []
    for level, (height, width) in enumerate(shapes):
        size = valid_ratios.new_tensor([width, height]) * valid_ratios[:, level]
        centres.append(cell_grid((height, width), valid_ratios.device) / size[:, None])
    return torch.cat(centres, 1)[:, :, None] * valid_ratios[:, None]
