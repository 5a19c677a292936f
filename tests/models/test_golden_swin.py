"""Co-Deformable-DETR Swin-T against the released implementation's numbers (tests/golden/FORMAT.md)."""

from __future__ import annotations

from golden_case import Golden, released_model
from golden_checks import check_evaluation, ranked


def test_evaluation_gives_the_released_numbers() -> None:
    golden = Golden("golden_co_deformable_detr_swin_tiny_1x_coco_one")
    model = released_model("co_deformable_detr_swin_tiny", "co_deformable_detr_swin_tiny_1x_coco")
    with ranked(model, golden):
        check_evaluation(model, golden, "one")
