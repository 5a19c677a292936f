"""The tensor graph, from pixels to decoder outputs, goes through torch.compile and torch.export as one graph."""

from __future__ import annotations

import pytest
import torch

from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.config import ConfigError
from codetr_lab.models.export import TensorGraph
from codetr_lab.models.presets import create_model
from codetr_lab.structures import ImageBatch

SMALL = {"transformer.encoder_layers": 1, "transformer.decoder_layers": 1, "num_queries": 20}
VARIANTS = {
    "deformable": {},
    "dino": {"decoder.scheme": "dino", "decoder.final_norm": True, "denoising.queries": 10},
}


def model(**overrides: object) -> CoDETR:
    torch.manual_seed(0)
    return create_model("lab_co_k2", **SMALL, **overrides)


def batch(*sizes: tuple[int, int]) -> ImageBatch:
    """Images that are padded to 64 x 64 pixels together."""
    torch.manual_seed(1)
    return ImageBatch.from_images([torch.randn(3, *size) for size in sizes])


def test_graph_gives_what_the_model_says() -> None:
    images = batch((64, 48), (40, 64))
    own = model()
    logits, boxes = TensorGraph(own)(images.pixels, images.pad_mask)
    group = own.trace(images).groups["original"]
    torch.testing.assert_close(logits, group.logits[-1])
    torch.testing.assert_close(boxes, group.boxes_cxcywh[-1])


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiles_as_one_graph(variant: str) -> None:
    """The same numbers, with padding and without, from one graph; no branch looks at numbers."""
    graph = TensorGraph(model(**VARIANTS[variant]))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(graph, fullgraph=True, backend="eager")
    for images in (batch((64, 48), (40, 64)), batch((64, 64), (64, 64))):
        with torch.no_grad():
            for got, expected in zip(
                compiled(images.pixels, images.pad_mask), graph(images.pixels, images.pad_mask), strict=True
            ):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_exports_and_runs_on_other_images() -> None:
    graph = TensorGraph(model())
    shown, others = batch((64, 64), (64, 64)), batch((64, 48), (40, 64))
    exported = torch.export.export(graph, (shown.pixels, shown.pad_mask)).module()
    with torch.no_grad():
        for got, expected in zip(
            exported(others.pixels, others.pad_mask), graph(others.pixels, others.pad_mask), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_no_graph_without_decoder() -> None:
    with pytest.raises(ConfigError, match="has no decoder"):
        TensorGraph(create_model("lab_co_k1", **{"transformer.decoder_layers": 0}))
