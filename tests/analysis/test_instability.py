"""Instability of matching, counted by hand, and recorded through a training run that is stopped and resumed."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import pytest
import torch

from codetr_lab.analysis import AnalysisError, InstabilityRecorder, Look, instability, matches
from codetr_lab.analysis.instability import curve
from codetr_lab.data.shapes import Shapes
from codetr_lab.data.transforms import batches
from codetr_lab.engine.options import TrainOptions
from codetr_lab.engine.train import Stopped, train
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.presets import create_model, preset


def test_an_object_that_changes_its_query_changes_two_queries():
    assert instability([{3: 0}], [{3: 0}]) == 0
    assert instability([{3: 0}], [{7: 0}]) == 2  # 3 becomes "no object", 7 becomes object 0
    assert instability([{3: 0, 7: 1}], [{3: 1, 7: 0}]) == 2  # they swap
    assert instability([{3: 0, 7: 1}], [{3: 0, 8: 1}]) == 2
    assert instability([{}], [{}]) == 0


def test_it_is_the_mean_over_images():
    assert instability([{1: 0}, {1: 0}], [{2: 0}, {1: 0}]) == 1


def test_it_is_that_of_the_definition_on_random_matchings():
    """DN-DETR's sum over all queries of 1(V_n != V'_n), with -1 for "no object"."""
    generator = torch.Generator().manual_seed(0)
    vectors, maps = [], []
    for _ in range(2):
        vector = torch.full((20, 10), -1)
        for row in vector:
            row[torch.randperm(10, generator=generator)[:4]] = torch.arange(4)
        vectors.append(vector)
        maps.append([{q: g for q, g in enumerate(row.tolist()) if g >= 0} for row in vector])
    assert instability(*maps) == pytest.approx(float((vectors[0] != vectors[1]).sum(1).double().mean()))
    assert instability(*maps) == instability(*reversed(maps))


def test_other_images_are_refused():
    with pytest.raises(AnalysisError, match="the same images, got 1 and 2"):
        instability([{}], [{}, {}])
    with pytest.raises(AnalysisError, match="got 0 and 0"):
        instability([], [])


def test_looks_survive_a_file():
    look = Look(100, [{3: 0, 12: 1}, {}], {"original": 1.0})
    assert Look.from_json(look.to_json()) == look
    later = Look(200, [{3: 1, 12: 0}, {}], {})
    assert curve([look, later]) == ([200], [1.0])


@pytest.fixture(scope="module")
def probe() -> list:
    config = preset("lab_baseline")
    data = Shapes("val", images=3, size=64)
    return list(batches(data, config.image, config.recipe, batch_size=2, seed=0, epoch=0, train=False))


def test_two_stage_queries_are_known_by_their_token(probe: list):
    torch.manual_seed(0)
    model = create_model("lab_baseline", num_queries=9)
    batch, targets = probe[0]
    trace = model.trace(batch, targets)
    assert trace.proposals is not None
    for image, found in enumerate(matches(trace)):
        last = trace.groups["original"].assignments[-1][image]
        assert len(found) == len(targets[image]["labels"])
        for token, index in found.items():
            query = int((trace.proposals.index[image] == token).nonzero())
            assert int(last.gt_index[query]) == index
    # without proposals, as with learned queries, the index itself is the name
    learned = matches(dataclasses.replace(trace, proposals=None))
    assert all(query < 9 for image in learned for query in image)
    with pytest.raises(AnalysisError, match="nothing was matched"):
        matches(model.trace(batch))


OPTIONS = TrainOptions(steps=4, batch_size=2, progress=False, threads=1, device="cpu")
SMALL = {"transformer.encoder_layers": 1, "transformer.decoder_layers": 1, "num_queries": 10}


def test_a_recorder_looks_when_it_is_time_and_goes_on_after_a_stop(
    probe: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data, config = Shapes(images=8, size=64), preset("lab_co_k1", **SMALL)
    whole = InstabilityRecorder(probe, tmp_path / "whole.jsonl", every=2)
    train(config, data, None, tmp_path / "whole", OPTIONS, observers=[whole])
    assert [look.step for look in whole.looks] == [0, 2, 4]
    steps, values = whole.curve()
    assert steps == [2, 4]
    assert all(0 <= value <= whole.most_possible() for value in values)
    assert whole.looks[0].positives["atss"] > 1

    recorder = InstabilityRecorder(probe, tmp_path / "stopped.jsonl", every=2)
    step = CoDETR.forward

    def stop_in_step_three(self: CoDETR, *arguments):
        if len(recorder.looks) == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(CoDETR, "forward", stop_in_step_three)
        train(config, data, None, tmp_path / "stopped", OPTIONS, observers=[recorder])
    again = InstabilityRecorder(probe, tmp_path / "stopped.jsonl", every=2)
    assert [look.step for look in again.looks] == [0, 2]
    resume = dataclasses.replace(OPTIONS, resume=True)
    train(config, data, None, tmp_path / "stopped", resume, observers=[again])
    assert again.looks == whole.looks


def test_a_recorder_needs_a_rhythm(probe: list):
    with pytest.raises(AnalysisError, match="at least 1 step, got 0"):
        InstabilityRecorder(probe, every=0)
