"""Co-Deformable-DETR R50 against the released implementation's numbers (tests/golden/FORMAT.md), with both backends."""

from __future__ import annotations

import pytest
from golden_case import SIZES, Golden, released_model
from golden_checks import check_evaluation, check_training, ranked

from codetr_lab.models.codetr import CoDETR

NAME = "co_deformable_detr_r50_1x_coco"


@pytest.fixture(scope="module")
def model() -> CoDETR:
    return released_model("co_deformable_detr_r50", NAME)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", SIZES)
def test_evaluation_gives_the_released_numbers(model: CoDETR, case: str) -> None:
    golden = Golden(f"golden_{NAME}_{case}")
    with ranked(model, golden):
        check_evaluation(model, golden, case)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", SIZES)
def test_training_gives_the_released_losses_positives_and_gradients(model: CoDETR, case: str) -> None:
    with ranked(model, Golden(f"golden_{NAME}_{case}")):
        check_training(model, Golden(f"train_{NAME}_{case}"), case)
