"""Sine encodings of positions and boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _frequencies(count: int, temperature: float, device: torch.device) -> Tensor:
    index = torch.arange(count, dtype=torch.float32, device=device)
    return temperature ** (2 * (index // 2) / count)


def _interleave(phase: Tensor) -> Tensor:
    """(...,n) to (...,n): sine of the even, cosine of the odd entries."""
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], -1).flatten(-2)


def sine_encoding(pad_mask: Tensor, dim: int, temperature: float = 10000, offset: float = -0.5) -> Tensor:
    """Positional encoding of every cell of a map, normalised by its valid part (DETR, Carion et al., 2020).

    Args:
        pad_mask: (B,H,W) bool, True = padding.
        dim: even number of channels; the first half encodes y, the second x.
        offset: -0.5 puts positions on cell centres (release, Deformable); 0 is DINO's.

    Returns:
        (B,H,W,dim)
    """
    valid = (~pad_mask).float()
    y, x = valid.cumsum(1), valid.cumsum(2)
    y = (y + offset) / (y[:, -1:, :] + 1e-6) * 2 * math.pi
    x = (x + offset) / (x[:, :, -1:] + 1e-6) * 2 * math.pi
    frequencies = _frequencies(dim // 2, temperature, pad_mask.device)
    return torch.cat([_interleave(y[..., None] / frequencies), _interleave(x[..., None] / frequencies)], -1)


def box_encoding(boxes_cxcywh: Tensor, dim: int, temperature: float = 10000) -> Tensor:
    """PE of Eq. 4: (...,4) normalised boxes to (..., 2 * dim), dim / 2 channels per coordinate."""
    frequencies = _frequencies(dim // 2, temperature, boxes_cxcywh.device)
    return _interleave(boxes_cxcywh[..., None] * (2 * math.pi) / frequencies).flatten(-2)
