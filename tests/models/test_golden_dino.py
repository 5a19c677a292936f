"""Co-DINO R50 against the released implementation's numbers (tests/golden/FORMAT.md)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_case import Golden, batch, released_model, targets
from golden_checks import check_detections, check_evaluation, check_training, ranked

from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.config import override
from codetr_lab.models.decoder import QueryInput, group_views
from codetr_lab.models.denoising import Noise
from codetr_lab.models.detection import detections
from codetr_lab.models.set_loss import PaddedTargets
from codetr_lab.structures import Trace

NAME = "co_dino_5scale_r50_1x_coco"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def full() -> CoDETR:
    return released_model("co_dino_5scale_r50", NAME)


@pytest.fixture(scope="module")
def small() -> CoDETR:
    """With 100 queries."""
    return released_model("co_dino_5scale_r50", NAME, num_queries=100)


def check(model: CoDETR, name: str, case: str, reference: Golden | None) -> Trace:
    golden = Golden(f"golden_{NAME}_{name}")
    with ranked(model, reference):
        trace = check_evaluation(model, golden, case)
    plain = replace(model.config, soft_nms_iou=None, max_detections=300)
    for image, found in enumerate(detections(trace.groups["original"], trace.batch, plain)):
        check_detections(found, golden, f"det_nonms/{image}")
    return trace


@pytest.mark.usefixtures("backend")
def test_evaluation_of_one_image(small: CoDETR) -> None:
    trace = check(small, "one_nq100", "one", None)
    # The file keeps what a seventh layer would read too. The boxes differ: heads read a normed output.
    references = torch.from_numpy(Golden(f"golden_{NAME}_one_nq100")["dec_inter_references"])
    original = trace.groups["original"]
    assert (original.reference_boxes - references[:-1]).abs().max() < 1e-4
    assert (original.boxes_cxcywh[:-1] - references[1:-1]).abs().max() > 0.01


def test_evaluation_of_a_padded_batch(full: CoDETR) -> None:
    check(full, "two", "two", Golden(f"golden_{NAME}_two"))


@pytest.fixture
def noiseless(small: CoDETR, full: CoDETR, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (small, full):
        still = override(model.config, **{"denoising.label_noise": 0.0, "denoising.box_noise": 0.0})
        monkeypatch.setattr(model.denoising, "config", still)


@pytest.mark.usefixtures("noiseless")
def test_training_without_noise(small: CoDETR) -> None:
    check_training(small, Golden(f"train_{NAME}_one_dn0_nq100"), "one")


@pytest.mark.usefixtures("noiseless")
def test_training_without_noise_on_a_padded_batch(full: CoDETR) -> None:
    with ranked(full, Golden(f"golden_{NAME}_two")):
        check_training(full, Golden(f"train_{NAME}_two_dn0"), "two")


def test_training_with_noise_on_a_padded_batch(small: CoDETR, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden(f"train_{NAME}_two_dnseed_nq100")
    monkeypatch.setattr(small.denoising, "noise", lambda shape, _: released_noise(golden, shape))
    check_training(small, golden, "two")


def released_noise(golden: Golden, shape: tuple[int, ...]) -> Noise:
    """The file's draws, which run over subgroup, kind, and the objects of all images in a row."""
    batch_size, subgroups, kinds, objects = shape
    counts = [len(target["labels"]) for target in targets(golden, "two")]
    assert (batch_size, objects) == (len(counts), max(counts))
    flip = torch.from_numpy(golden["dn/rng_rand_like_0"])
    label = torch.zeros_like(flip, dtype=torch.long)
    label[flip < 0.25] = torch.from_numpy(golden["dn/rng_randint_like_0"])
    sign, size = (torch.from_numpy(golden[f"dn/rng_{name}_1"]) for name in ("randint_like", "rand_like"))
    noise = Noise(
        torch.ones(shape), torch.zeros(shape, dtype=torch.long), torch.ones(*shape, 4), torch.zeros(*shape, 4)
    )
    for ours, theirs in zip(vars(noise).values(), (flip, label, sign * 2 - 1, size), strict=True):
        parts = theirs.view(subgroups, kinds, -1, *theirs.shape[1:]).split(counts, 2)
        for image, part in enumerate(parts):
            ours[image, :, :, : counts[image]] = part
    return noise


def test_denoising_queries_and_who_sees_whom(small: CoDETR, monkeypatch: pytest.MonkeyPatch) -> None:
    golden, images = Golden(f"train_{NAME}_two_dnseed_nq100"), batch("two")
    monkeypatch.setattr(small.denoising, "noise", lambda shape, _: released_noise(golden, shape))
    group = small.denoising(PaddedTargets.of(targets(golden, "two"), images)).query
    original = QueryInput("original", torch.zeros(2, 100, 256), None, torch.zeros(2, 100, 4), torch.zeros(2, 100))
    assert group.content.shape[1] == golden.notes["dn_meta"]["pad_size"]
    assert group.content.shape[1] // group.subgroup == golden.notes["dn_meta"]["num_dn_group"]
    assert golden.error("dn/query_label", group.content) < 1e-6
    boxes = torch.from_numpy(golden["dn/query_bbox_unact"]).sigmoid()
    assert (group.reference_boxes - boxes).abs().max() < 1e-6
    sees = torch.zeros(*golden["dn/attn_mask_shape"], dtype=torch.bool)
    for view in group_views([group, original]):
        columns = torch.cat([torch.arange(s.start, s.stop) for s in view.sees])
        sees[view.own, columns] = True if view.mask is None else view.mask
    hidden = np.unpackbits(golden["dn/attn_mask"])[: sees.numel()].reshape(sees.shape)
    assert (sees.numpy() == (hidden == 0)).all()
