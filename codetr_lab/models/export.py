"""The part of a detector that is nothing but tensors, for `torch.compile` and `torch.export`."""

from __future__ import annotations

from torch import Tensor, nn

from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.config import ConfigError
from codetr_lab.models.selection import ORIGINAL


class TensorGraph(nn.Module):
    """From pixels to what the decoder's last layer says of the original queries; no branch depends on a number.

    `torch.compile(TensorGraph(model), fullgraph=True)`; `torch.export.export(TensorGraph(model), (pixels, pad_mask))`.

    Raises:
        ConfigError: the model has no decoder.
    """

    def __init__(self, model: CoDETR) -> None:
        super().__init__()
        if model.decoder is None:
            raise ConfigError(f"{model.config.preset} has no decoder, so there is no graph to its outputs")
        self.model = model.eval()

    def forward(self, pixels: Tensor, pad_mask: Tensor) -> tuple[Tensor, Tensor]:
        """An `ImageBatch`'s (B,3,H,W) pixels and (B,H,W) mask to logits (B,Q,C) and normalised cxcywh boxes (B,Q,4)."""
        model = self.model
        memory = model.encoder(model.neck(model.backbone(pixels)), pad_mask)
        _, queries = model._queries(memory, training=False)
        assert model.decoder is not None
        group = model.decoder(queries, memory)[ORIGINAL]
        return group.logits[-1], group.boxes_cxcywh[-1]
