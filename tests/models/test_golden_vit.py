"""Co-DINO ViT-L against the released implementation's numbers (tests/golden/FORMAT.md)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from golden_case import Golden, released_model
from golden_checks import check_detections, check_evaluation

from codetr_lab.models.detection import detections

NAME = "co_dino_5scale_vit_large_coco"


@pytest.mark.slow
def test_evaluation_gives_the_released_numbers() -> None:
    golden = Golden(f"golden_{NAME}_one_nq100")
    model = released_model("co_dino_5scale_vit_large", NAME, num_queries=100)
    trace = check_evaluation(model, golden, "one")
    plain = replace(model.config, soft_nms_iou=None)
    (found,) = detections(trace.groups["original"], trace.batch, plain)
    check_detections(found, golden, "det_nonms/0")
