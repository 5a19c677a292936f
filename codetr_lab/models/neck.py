"""The neck brings backbone maps to one width; the pyramid adapter turns the memory into what auxiliary heads read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from codetr_lab.models.config import ConfigError, TransformerConfig


class ConvNorm(nn.Module):
    """Convolution without bias, then group normalisation."""

    def __init__(self, inputs: int, outputs: int, groups: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.gn = nn.GroupNorm(groups, outputs)
        nn.init.xavier_uniform_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.gn(self.conv(x))


def build_neck(config: TransformerConfig, channels: Sequence[int], strides: Sequence[int]) -> Neck | FeaturePyramid:
    """The neck for backbone maps of `channels` and `strides`, finest first; it has the `strides` of its levels.

    Raises:
        ConfigError: a feature pyramid for more than one map.
    """
    if config.neck == "channel_mapper":
        return Neck(channels, strides, config.hidden_dim, config.extra_levels, config.norm_groups)
    if len(channels) > 1:
        raise ConfigError(f"neck 'feature_pyramid' takes one map, but the backbone gives {len(channels)}")
    return FeaturePyramid(channels[0], strides[0], config.hidden_dim)


class Neck(nn.Module):
    """1x1 convolution and group norm per map, and stride-2 levels more from the last backbone map (ChannelMapper)."""

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], hidden_dim: int, extra_levels: int, groups: int
    ) -> None:
        super().__init__()
        self.strides = (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(extra_levels)))
        self.convs = nn.ModuleList(ConvNorm(c, hidden_dim, groups) for c in channels)
        self.extra_convs = nn.ModuleList(
            ConvNorm(channels[-1] if i == 0 else hidden_dim, hidden_dim, groups, kernel=3, stride=2)
            for i in range(extra_levels)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps of C_i channels to maps of D channels, `extra_levels` more of them."""
        levels = [conv(feature) for conv, feature in zip(self.convs, features, strict=True)]
        last = features[-1]
        for conv in self.extra_convs:
            last = conv(last)
            levels.append(last)
        return levels


class FeaturePyramid(nn.Module):
    """Five levels of one map of stride s: s/4, s/2, s, 2s and 4s (ViTDet's simple feature pyramid, released as `SFP`).

    Convolutions have no bias; a norm over channels follows each, and a GELU each norm but a level's last.
    """

    def __init__(self, channels: int, stride: int, hidden_dim: int) -> None:
        super().__init__()
        self.strides = (stride // 4, stride // 2, stride, stride * 2, stride * 4)
        half = channels // 2
        self.p2 = nn.Sequential(
            _double(), *_conv(channels, half), nn.GELU(), _double(), *_conv(half, hidden_dim), nn.GELU(),
            *_output(hidden_dim, hidden_dim),
        )  # fmt: skip
        self.p3 = nn.Sequential(_double(), *_conv(channels, half), nn.GELU(), *_output(half, hidden_dim))
        self.p4 = nn.Sequential(*_output(channels, hidden_dim))
        self.p5 = nn.Sequential(_halve(), *_output(channels, hidden_dim))
        self.p6 = nn.Sequential(
            _halve(), *_conv(channels, channels, stride=2), nn.GELU(), *_output(channels, hidden_dim)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One map (B,C,H,W) to five of D channels, finest first."""
        (x,) = features
        return [level(x) for level in (self.p2, self.p3, self.p4, self.p5, self.p6)]


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (B,C,H,W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.xavier_uniform_(conv.weight)
    return [conv, ChannelNorm(outputs, eps=1e-6)]


def _output(inputs: int, outputs: int) -> list[nn.Module]:
    return [*_conv(inputs, outputs, kernel=1), nn.GELU(), *_conv(outputs, outputs)]


def _double() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="nearest")


def _halve() -> nn.Module:
    return nn.MaxPool2d(3, stride=2, padding=1)


class Pyramid(nn.Module):
    """Memory to {F_1 .. F_J}: its own levels and one coarser one (Sec. 3.2's multi-scale adapter, as released)."""

    def __init__(self, hidden_dim: int, groups: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(nn.Conv2d(hidden_dim, hidden_dim, 3, 2, 1), nn.GroupNorm(groups, hidden_dim))

    def forward(self, memory: list[Tensor]) -> list[Tensor]:
        """J maps (B,D,H_j,W_j), finest first, to J + 1."""
        return [*memory, self.downsample(memory[-1])]
