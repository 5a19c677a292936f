"""A small batch for the tests of auxiliary heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codetr_lab.models.config import CoDETRConfig, override
from codetr_lab.structures import HeadOutput, ImageBatch, Target

STRIDES = (8, 16, 32, 64)
RCNN = {
    "anchor_scale": 2.0, "roi_hidden": 32, "proposals": 60, "proposals_per_level": 100, "test_proposals_per_level": 100,
    "rpn_samples": 64, "roi_samples": 32, "roi_finest_scale": 28.0,
}  # fmt: skip
CONFIG = override(
    CoDETRConfig(), num_classes=6,
    **{
        "transformer.hidden_dim": 32, "transformer.heads": 4, "transformer.norm_groups": 8,
        "transformer.decoder_layers": 3, "queries.maximum": 40, "atss.anchor_scale": 3.0,
        "faster_rcnn": RCNN, "mask_rcnn": RCNN | {"mask_convs": 1}, "retinanet.anchor_scale": 2.0, "fcos.reach": 3.0,
        "fcos.query_scale": 3.0, "paa.anchor_scale": 3.0, "gfl.anchor_scale": 3.0, "gfl.bins": 8,
    },
)  # fmt: skip


def pyramid(images: int = 2, size: int = 128, grad: bool = False) -> list[Tensor]:
    """Random features of square images."""
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(images, 32, size // s, size // s, generator=generator) for s in STRIDES]
    return [level.requires_grad_(grad) for level in levels]


def batch(*sizes: tuple[int, int]) -> ImageBatch:
    """Blank images."""
    return ImageBatch.from_images([torch.zeros(3, *size) for size in sizes or [(128, 128), (128, 128)]])


def target(*boxes: list[float]) -> Target:
    """Objects with labels 0, 1, 2, ..., and discs as masks in images of 128 pixels."""
    corners = torch.tensor(boxes).view(-1, 4).float()
    y, x = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    centre, radius = (corners[:, :2] + corners[:, 2:]) / 2, (corners[:, 2:] - corners[:, :2]) / 2
    offset = (torch.stack([x, y], -1) - centre[:, None, None]) / radius[:, None, None]
    return {"boxes": corners, "labels": torch.arange(len(boxes)), "masks": offset.square().sum(-1) <= 1}


TARGETS = [target([10, 12, 50, 40], [60, 60, 110, 120]), target([30, 30, 62, 60])]
EMPTY = [target(), target()]


def check_gradients(head: nn.Module, output: HeadOutput, finite_only: bool = False) -> None:
    """The sum of the losses is finite and reaches every parameter."""
    total = sum(output.losses.values())
    assert torch.isfinite(total)
    head.zero_grad(set_to_none=True)
    total.backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert finite_only or parameter.grad.abs().sum() > 0, name
