"""Swin Transformer (Liu et al., 2021) as the release runs it: timm's modules and weights, made equal in two places.

timm shifts a map and then pads it to whole windows, and it shrinks a window that is larger than its map; the release
(`SwinTransformerV1`) pads first, with zeros at the right and the bottom, and always takes whole windows. Padded tokens
are not masked, in either. Each output has a LayerNorm of its own, which timm does not have.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn

from codetr_lab.models.config import BackboneConfig


class PadThenShift(SwinTransformerBlock):
    """timm's block with the release's order: pad to whole windows, then shift."""

    def _attn(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        window, shift = self.window_size, self.shift_size
        x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
        x = torch.roll(x, (-shift[0], -shift[1]), dims=(1, 2))
        windows = window_partition(x, window).flatten(1, 2)
        attended = self.attn(windows, mask=self.get_attn_mask(x)).unflatten(1, window)
        x = window_reverse(attended, window, x.shape[1], x.shape[2])
        return torch.roll(x, shift, dims=(1, 2))[:, :height, :width]


class Swin(nn.Module):
    """Feature maps of stages `out_indices` (0 to 3) for images of any size, at strides 4, 8, 16 and 32.

    Args:
        config: names a timm Swin Transformer, as `swin_tiny_patch4_window7_224`; `options` go to timm.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        options: dict[str, Any] = {"drop_path_rate": config.drop_path} | config.options
        net = timm.create_model(
            config.name, pretrained=config.pretrained, num_classes=0, strict_img_size=False, always_partition=True,
            **options,
        )  # fmt: skip
        assert isinstance(net, SwinTransformer)
        for module in net.modules():
            if isinstance(module, SwinTransformerBlock):
                module.__class__ = PadThenShift
        net.set_grad_checkpointing(config.checkpoint)
        self.patch_embed, self.layers = net.patch_embed, net.layers[: max(config.out_indices) + 1]
        self.patch = to_2tuple(net.patch_embed.patch_size)
        self.outputs = config.out_indices
        self.channels = [net.feature_info[i]["num_chs"] for i in self.outputs]
        self.strides = [net.feature_info[i]["reduction"] for i in self.outputs]
        for i, channels in zip(self.outputs, self.channels, strict=True):
            self.add_module(f"norm{i}", nn.LayerNorm(channels))

    def released_buffers(self) -> dict[str, Tensor]:
        """What the release stores besides parameters: it follows from the window's size."""
        return {name: value for name, value in self.named_buffers() if name.endswith("relative_position_index")}

    def stages(self) -> list[nn.Module]:
        """The stem and the stages, in order."""
        return [self.patch_embed, *self.layers]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B,3,H,W) to one (B,C_i,H_i,W_i) per output."""
        height, width = pixels.shape[-2:]
        x = self.patch_embed(F.pad(pixels, (0, -width % self.patch[1], 0, -height % self.patch[0])))
        maps = []
        for i, stage in enumerate(self.layers):
            x = stage(x)
            if i in self.outputs:
                maps.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2))
        return maps
