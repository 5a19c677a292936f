"""The plain Vision Transformer of EVA-02 (Fang et al., 2023) as a detector's backbone.

Written out, since timm's `Eva` attends globally, over one grid, and has no output norm. Here most blocks attend inside
windows, as in ViTDet (Li et al., 2022); the few global ones carry information across.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class ViT(nn.Module):
    """One map of stride `patch`, from which `SimpleFeaturePyramid` makes the levels.

    Args:
        dim, depth, heads: width, number of blocks, attention heads.
        ffn_dim: hidden width of the SwiGLU.
        patch: pixels per token.
        window: tokens along a window's side.
        global_blocks: the blocks that attend over the whole image instead of windows.
        pretrain_grid: tokens along a side of the square images of the pre-training; `pos_embed` has as many and one.
        square: side in pixels, where all images are padded to squares of it (large-scale jitter); the release then
            stores the angles of the global blocks too.
        drop_path: rate of the last block; falls linearly to 0 at the first.
        rope_grid: what the rotary positions of windows and of whole images are scaled to, whatever their size.
        checkpoint: compute blocks again in the backward pass instead of keeping their insides.

    Source: `co_dino_5scale_vit_large_coco` (defaults).
    """

    def __init__(
        self,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        ffn_dim: int = 2730,
        patch: int = 16,
        window: int = 24,
        global_blocks: tuple[int, ...] = (3, 7, 11, 15, 19, 23),
        pretrain_grid: int = 32,
        rope_grid: int = 16,
        square: int | None = None,
        drop_path: float = 0.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.patch, self.window, self.head_dim = patch, window, dim // heads
        self.rope_grid, self.square, self.checkpoint = rope_grid, square, checkpoint
        self.channels, self.strides = [dim], [patch]
        self.pos_embed = nn.Parameter(torch.empty(1, pretrain_grid**2 + 1, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch, patch)})
        self.blocks = nn.ModuleList(
            Block(dim, heads, ffn_dim, 0 if i in global_blocks else window, drop_path * i / max(1, depth - 1))
            for i in range(depth)
        )
        self.out_norm = nn.LayerNorm(dim)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def released_buffers(self) -> dict[str, Tensor]:
        """What the release stores besides parameters: cosines and sines of `rotation`, once more in every block."""

        def angles(where: str, side: int) -> dict[str, Tensor]:
            cos, sin = rotation(side, side, self.head_dim, self.rope_grid)
            return {f"{where}.freqs_cos": cos, f"{where}.freqs_sin": sin}

        everywhere = self.square // self.patch if self.square else 0
        stored = angles("rope_win", self.window)
        if everywhere:
            stored |= angles("rope_glb", everywhere)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if side := block.window or everywhere:
                stored |= angles(f"blocks.{i}.attn.rope", side)
        return stored

    def stages(self) -> list[nn.Module]:
        """The stem and the blocks, in order."""
        return [self.patch_embed, *self.blocks]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B,3,H,W) to one (B,D,H/patch,W/patch); what does not fill a patch at the right and the bottom is padded."""
        height, width = pixels.shape[-2:]
        x = self.patch_embed["proj"](F.pad(pixels, (0, -width % self.patch, 0, -height % self.patch)))
        x = (x + self.position(x.shape[2], x.shape[3])).permute(0, 2, 3, 1)
        inside = rotation(self.window, self.window, self.head_dim, self.rope_grid).to(x)
        over_all = rotation(x.shape[1], x.shape[2], self.head_dim, self.rope_grid).to(x)
        for block in self.blocks:
            angles = inside if block.window else over_all
            if self.checkpoint and self.training:
                x = checkpoint(block, x, angles, use_reentrant=False)
            else:
                x = block(x, angles)
        return [self.out_norm(x).permute(0, 3, 1, 2)]

    def position(self, height: int, width: int) -> Tensor:
        """(1,D,H,W) learned position embedding, without the class token's, resized to the grid."""
        table = self.pos_embed[:, 1:].transpose(1, 2)
        side = round(table.shape[-1] ** 0.5)
        table = table.unflatten(2, (side, side))
        if (height, width) == (side, side):
            return table
        return F.interpolate(table, (height, width), mode="bicubic", align_corners=False)


class Block(nn.Module):
    """Pre-norm: attention inside windows (or over the grid, `window=0`), then the gated feed-forward network."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, window: int, drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = RotaryAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = SwiGLU(dim, ffn_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """(B,H,W,D) to (B,H,W,D). Windows that reach over the map are filled with zeros, which are not masked.

        Args:
            angles: `rotation` of a window, or of the map for a global block.
        """
        normed = self.norm1(x)
        if self.window:
            height, width = x.shape[1:3]
            windows, grid = split_windows(normed, self.window)
            attended = join_windows(self.attn(windows, angles), grid)[:, :height, :width]
        else:
            attended = self.attn(normed, angles)
        x = x + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x)))


def split_windows(x: Tensor, size: int) -> tuple[Tensor, tuple[int, int]]:
    """(B,H,W,D) to (B*rows*columns,size,size,D), zero-padded at the right and the bottom, and (rows, columns)."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))
    rows, columns = x.shape[1], x.shape[3]
    return x.transpose(2, 3).flatten(0, 2), (rows, columns)


def join_windows(windows: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of `split_windows`, padding included."""
    return windows.unflatten(0, (-1, *grid)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


class RotaryAttention(nn.Module):
    """Self-attention over a grid, queries and keys turned by their position (Su et al., 2021). Keys have no bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """(B,H,W,D) and (2,H*W,D/heads) from `rotation` to (B,H,W,D)."""
        tokens, size = x.flatten(1, 2), x.shape[1:3]
        q, k, v = (
            F.linear(tokens, weight, bias).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for weight, bias in (
                (self.q_proj.weight, self.q_bias), (self.k_proj.weight, None), (self.v_proj.weight, self.v_bias),
            )
        )  # fmt: skip
        attended = F.scaled_dot_product_attention(rotate(q, angles), rotate(k, angles), v)
        return self.proj(attended.transpose(1, 2).flatten(2)).unflatten(1, size)


class SwiGLU(nn.Module):
    """w3(LN(silu(w1 x) * w2 x)): a gated feed-forward network with a norm inside (sub-LN)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, eps=1e-6)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


def rotation(height: int, width: int, head_dim: int, grid: int) -> Tensor:
    """(2,H*W,head_dim) cosine and sine of every token's angles: half the channels turn with y, half with x.

    Positions run from 0 to `grid` whatever the size. Neighbouring pairs of channels turn together, the later the
    slower (theta 10000).
    """
    pairs = head_dim // 4
    speed = 10000.0 ** (-torch.arange(pairs) / pairs)
    y, x = ((torch.arange(n)[:, None] / n * grid * speed).repeat_interleave(2, 1) for n in (height, width))
    angles = torch.cat([y[:, None].expand(-1, width, -1), x.expand(height, -1, -1)], -1).flatten(0, 1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels (a, b) of (...,N,C) to (a cos - b sin, b cos + a sin)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * angles[0] + torch.stack([-b, a], -1).flatten(-2) * angles[1]
