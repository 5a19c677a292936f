"""The neck brings backbone maps to one width; the pyramid adapter turns the memory into what auxiliary heads read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution without bias, then group normalisation."""

    def __init__(self, inputs: int, outputs: int, groups: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.gn = nn.GroupNorm(groups, outputs)
        nn.init.xavier_uniform_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.gn(self.conv(x))


class Neck(nn.Module):
    """1x1 convolution and group norm per map, and stride-2 levels more from the last backbone map (ChannelMapper)."""

    def __init__(self, channels: Sequence[int], hidden_dim: int, extra_levels: int, groups: int) -> None:
        super().__init__()
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


class Pyramid(nn.Module):
    """Memory to {F_1 .. F_J}: its own levels and one coarser one (Sec. 3.2's multi-scale adapter, as released)."""

    def __init__(self, hidden_dim: int, groups: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(nn.Conv2d(hidden_dim, hidden_dim, 3, 2, 1), nn.GroupNorm(groups, hidden_dim))

    def forward(self, memory: list[Tensor]) -> list[Tensor]:
        """J maps (B,D,H_j,W_j), finest first, to J + 1."""
        return [*memory, self.downsample(memory[-1])]
