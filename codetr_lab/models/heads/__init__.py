"""Auxiliary heads: the collaborative part of training. One file per head, all behind one small interface."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from codetr_lab.models.config import CoDETRConfig, ConfigError, unknown
from codetr_lab.models.heads.atss import ATSSHead
from codetr_lab.models.heads.faster_rcnn import FasterRCNNHead
from codetr_lab.models.heads.fcos import FCOSHead
from codetr_lab.models.heads.gfl import GFLHead
from codetr_lab.models.heads.mask_rcnn import MaskRCNNHead
from codetr_lab.models.heads.paa import PAAHead
from codetr_lab.models.heads.retinanet import RetinaNetHead
from codetr_lab.structures import Detections, HeadOutput, ImageBatch, Target

__all__ = [
    "HEADS", "ATSSHead", "AuxHead", "FCOSHead", "FasterRCNNHead", "GFLHead", "MaskRCNNHead", "PAAHead",
    "RetinaNetHead", "build_heads",
]  # fmt: skip


class AuxHead(Protocol):
    """What every auxiliary head can do. It is a module made by `Head(config, strides, name)`."""

    name: str
    positives_need_training: ClassVar[bool]
    """Whether its label assignment reads its own predictions."""

    def supervise(
        self,
        pyramid: Sequence[Tensor],
        batch: ImageBatch,
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
    ) -> HeadOutput:
        """Label assignments, positives and losses of the (B,D,H_j,W_j) pyramid.

        `config.aux_losses` and `config.customized_queries` say whether losses and positives are asked for.
        The losses are multiplied by their weights and by `config.aux_loss_factor`, finite for images without objects,
        and each batch gives the same ones. Those of a head together reach all its parameters.
        """
        ...

    def predict(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> list[Detections]:
        """What the head alone detects, after its own NMS, in the batch's pixels, clipped to every valid size."""
        ...


Kind = (
    type[ATSSHead] | type[FasterRCNNHead] | type[RetinaNetHead] | type[FCOSHead] | type[PAAHead] | type[GFLHead]
)  # fmt: skip
HEADS: dict[str, Kind] = {
    "atss": ATSSHead,
    "faster_rcnn": FasterRCNNHead,
    "mask_rcnn": MaskRCNNHead,
    "retinanet": RetinaNetHead,
    "fcos": FCOSHead,
    "paa": PAAHead,
    "gfl": GFLHead,
}


def build_heads(config: CoDETRConfig, strides: Sequence[int]) -> nn.ModuleDict:
    """The heads that `config.aux_heads` names, in its order; repeats become `atss_2` and so on.

    Without `config.aux_losses` the heads only hand out positives: their parameters are frozen.

    Raises:
        ConfigError: an unknown head (the nearest known one is suggested), or one whose positives need the training
            that `config.aux_losses` switches off.
    """
    heads, seen = nn.ModuleDict(), Counter[str]()
    if not (config.aux_losses or config.customized_queries):
        return heads
    for kind in config.aux_heads:
        if kind not in HEADS:
            raise unknown("auxiliary head", kind, list(HEADS))
        if not config.aux_losses and HEADS[kind].positives_need_training:
            untrained = [name for name, head in HEADS.items() if not head.positives_need_training]
            raise ConfigError(
                f"aux_losses=false leaves {kind} untrained, but its positives come from its own predictions; "
                f"take {' or '.join(untrained)}, whose positives need no network"
            )
        seen[kind] += 1
        name = kind if seen[kind] == 1 else f"{kind}_{seen[kind]}"
        heads[name] = HEADS[kind](config, strides, name)
    return heads.requires_grad_(config.aux_losses)
