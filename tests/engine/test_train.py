"""Training end to end on a dozen generated images: determinism, resumption, stopping, records, failures."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny
from torch import Tensor

from codetr_lab.data.shapes import Shapes
from codetr_lab.engine import checkpoint
from codetr_lab.engine.checkpoint import CheckpointError, load
from codetr_lab.engine.options import TrainOptions
from codetr_lab.engine.records import MetricsLog, TrainingError, commit, read_metrics, read_run
from codetr_lab.engine.train import Stopped, TrainResult, train
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.config import CoDETRConfig, ConfigError

QUIET = TrainOptions(progress=False, eval_images=0, device="cpu")


@pytest.fixture(scope="module")
def data() -> Shapes:
    """Eight images: four batches of two, so that six steps reach into the second epoch."""
    return Shapes(images=8, size=64)


def run(out: Path, data: Shapes, config: CoDETRConfig | None = None, **options: Any) -> TrainResult:
    return train(config or tiny(), data, None, out, dataclasses.replace(QUIET, **options))


def states(result: TrainResult) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in result.model.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture(scope="module")
def whole(data: Shapes, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Six steps of K = 2 without a break."""
    return run(tmp_path_factory.mktemp("whole") / "run", data, tiny("lab_co_k2"), log_every=2)


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Send ourselves a signal while step `step` (from 1) is computed."""
    forward, count = CoDETR.forward, [0]

    def forward_with_signal(self: CoDETR, *arguments: Any) -> Any:
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), number)
        return forward(self, *arguments)

    monkeypatch.setattr(CoDETR, "forward", forward_with_signal)


def test_a_run_writes_its_folder(whole: TrainResult) -> None:
    assert sorted(path.name for path in whole.out.iterdir()) == [
        "config.json", "metrics.jsonl", "model.safetensors", "run.json", "state.pt",
    ]  # fmt: skip
    record = read_run(whole.out)
    assert record is not None
    assert record["finished"] and record["steps"] == 6 and record["images"] == 8
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]["torch"]
    assert record["commit"] == commit()
    assert record["options"]["seed"] == 0
    assert record["config"]["aux_heads"] == ["atss", "faster_rcnn"]
    assert_same(load(whole.out).state_dict(), whole.model.state_dict())
    assert not whole.model.training


def test_metrics_hold_every_loss_term(whole: TrainResult, data: Shapes) -> None:
    records = read_metrics(whole.out)
    assert records == whole.history
    assert [record["step"] for record in records] == [2, 4, 6]
    for record in records:
        prefixes = {name.split(".")[0] for name in record["losses"]}
        assert prefixes == {"decoder", "encoder", "aux"}
        assert record["loss"] == pytest.approx(sum(record["losses"].values()))
        assert record["grad_norm"] > 0
    assert records[0]["lr"] == pytest.approx(2e-3)  # the last of two warm-up steps
    assert records[-1]["lr"] == pytest.approx(2e-5)


def test_the_first_losses_are_those_of_a_bare_loop(whole: TrainResult, data: Shapes, tmp_path: Path) -> None:
    """Two steps by hand, in a dozen lines, with torch's own AdamW and clipping."""
    from accelerate.utils import set_seed

    from codetr_lab.data.transforms import batches
    from codetr_lab.engine.train import resolve

    config = resolve(tiny("lab_co_k2"), data, None, QUIET)
    set_seed(0)
    model = CoDETR(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    set_seed(0)
    totals = []
    stream = batches(data, config.image, config.recipe, batch_size=2, seed=0, epoch=0, train=True)
    for (batch, targets), rate in zip(stream, (1e-3, 2e-3), strict=False):
        optimizer.param_groups[0]["lr"] = rate
        total = sum(model(batch, targets).values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.recipe.clip_norm)
        optimizer.step()
        totals.append(total.item())
    assert whole.history[0]["loss"] == pytest.approx(sum(totals) / 2, rel=1e-5)


def test_the_same_seed_gives_the_same_run(whole: TrainResult, data: Shapes, tmp_path: Path) -> None:
    again = run(tmp_path / "again", data, tiny("lab_co_k2"), log_every=2)
    assert_same(states(again), states(whole))
    other = run(tmp_path / "other", data, tiny("lab_co_k2"), log_every=2, seed=1)
    assert other.history[-1]["loss"] != whole.history[-1]["loss"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_resumes_bit_equally(
    whole: TrainResult, data: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        interrupt(patch, 3, number)
        with pytest.raises(Stopped, match=rf"stopped by {number.name} after step 3 of 6.*--resume"):
            run(tmp_path / "run", data, tiny("lab_co_k2"), log_every=2)
    assert checkpoint.load_state(tmp_path / "run").step == 3
    assert signal.getsignal(number) is before
    load(tmp_path / "run")
    torch.rand(5)
    resumed = run(tmp_path / "run", data, tiny("lab_co_k2"), log_every=2, resume=True)
    assert_same(states(resumed), states(whole))
    assert [record["step"] for record in resumed.history] == [2, 4, 6]
    assert resumed.history[-1]["losses"] == whole.history[-1]["losses"]


def test_a_killed_run_resumes_from_its_last_checkpoint(
    whole: TrainResult, data: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies in step 6, after the checkpoint of step 4; the metrics of step 5 are written anew."""
    with monkeypatch.context() as patch:
        forward, count = CoDETR.forward, [0]

        def die(self: CoDETR, *arguments: Any) -> Any:
            count[0] += 1
            if count[0] == 6:
                raise MemoryError
            return forward(self, *arguments)

        patch.setattr(CoDETR, "forward", die)
        with pytest.raises(MemoryError):
            run(tmp_path / "run", data, tiny("lab_co_k2"), log_every=1, save_every=4)
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]
    resumed = run(tmp_path / "run", data, tiny("lab_co_k2"), log_every=1, save_every=4, resume=True)
    assert_same(states(resumed), states(whole))
    assert [record["step"] for record in resumed.history] == [1, 2, 3, 4, 5, 6]


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    data: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 1, signal.SIGINT)
        interrupt(patch, 1, signal.SIGINT)  # a second Ctrl-C does not wait for the step
        with pytest.raises(KeyboardInterrupt) as caught:
            run(tmp_path / "run", data)
    assert not isinstance(caught.value, Stopped)
    assert not (tmp_path / "run" / "state.pt").exists()
    resumed = run(tmp_path / "run", data, resume=True)
    assert_same(states(resumed), states(run(tmp_path / "other", data)))


def test_a_finished_run_resumes_to_itself(whole: TrainResult, data: Shapes) -> None:
    again = run(whole.out, data, tiny("lab_co_k2"), log_every=2, resume=True)
    assert_same(states(again), states(whole))
    assert again.history == whole.history


def test_evaluation_changes_nothing_and_is_recorded(data: Shapes, tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", data)
    options = dataclasses.replace(QUIET, eval_every=2, eval_images=2)
    val = Shapes("val", images=4, size=64)
    result = train(tiny(), data, val, tmp_path / "evaluated", options)
    assert_same(states(result), states(plain))
    evaluations = [record for record in result.history if "metrics" in record]
    assert [record["step"] for record in evaluations] == [2, 4, 6]
    assert evaluations[-1]["metrics"]["detr"]["AP"] == result.metrics["detr"].stats["AP"]
    assert result.metrics["detr"].images == 2
    assert result.seconds > 0


def test_a_run_stopped_at_an_evaluation_makes_up_for_it(
    data: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop comes in step 4, whose evaluation was due; before, the resumed run went on without it."""
    options = dataclasses.replace(QUIET, eval_every=2, eval_images=2)
    val = Shapes("val", images=2, size=64)
    expected = train(tiny(), data, val, tmp_path / "whole", options)
    with monkeypatch.context() as patch:
        interrupt(patch, 4, signal.SIGTERM)
        with pytest.raises(Stopped, match="after step 4 of 6"):
            train(tiny(), data, val, tmp_path / "run", options)
    assert [r["step"] for r in read_metrics(tmp_path / "run") if "metrics" in r] == [2]
    resumed = train(tiny(), data, val, tmp_path / "run", dataclasses.replace(options, resume=True))
    found, wanted = ([r for r in result.history if "metrics" in r] for result in (resumed, expected))
    assert [r["step"] for r in found] == [2, 4, 6]
    assert [r["metrics"] for r in found] == [r["metrics"] for r in wanted]
    assert_same(states(resumed), states(expected))


def test_observers_see_every_step_and_disturb_nothing(data: Shapes, tmp_path: Path) -> None:
    from codetr_lab.data.transforms import batches

    seen: list[int] = []

    def observe(model: CoDETR, step: int) -> None:
        seen.append(step)
        torch.rand(3)
        stream = batches(
            data, model.config.image, model.config.recipe, batch_size=2, seed=0, epoch=0, train=False
        )  # fmt: skip
        model.trace(*next(stream))

    observed = train(tiny("lab_co_k2"), data, None, tmp_path / "observed", QUIET, observers=[observe])
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    assert_same(states(observed), states(run(tmp_path / "plain", data, tiny("lab_co_k2"))))


def test_a_folder_that_holds_a_run_is_left_alone(whole: TrainResult, data: Shapes, tmp_path: Path) -> None:
    before = (whole.out / "model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=r"already holds a run \(started .*add --resume .* or choose another --out"):
        run(whole.out, data)
    with pytest.raises(ConfigError, match=r"was started with aux_heads = .*give the same or choose another --out"):
        run(whole.out, data, resume=True)
    with pytest.raises(ConfigError, match=r"was started with recipe.lr = 0.002, not 0.01"):
        run(whole.out, data, tiny("lab_co_k2"), lr=0.01, resume=True)
    assert (whole.out / "model.safetensors").read_bytes() == before
    with pytest.raises(TrainingError, match="holds no run to resume"):
        run(tmp_path / "nothing", data, resume=True)
    assert not (tmp_path / "nothing").exists()


def poison(monkeypatch: pytest.MonkeyPatch, step: int, change: Any) -> None:
    """Replace one loss term of the model in step `step` (from 1) by `change(term)`."""
    forward, count = CoDETR.forward, [0]

    def poisoned(self: CoDETR, *arguments: Any) -> Any:
        count[0] += 1
        losses = forward(self, *arguments)
        if count[0] == step:
            losses["encoder.giou"] = change(losses["encoder.giou"])
        return losses

    monkeypatch.setattr(CoDETR, "forward", poisoned)


def test_a_loss_that_is_not_finite_names_step_and_term(
    data: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 4, lambda term: term * math.nan)
    with pytest.raises(
        TrainingError, match=r"step 4: the loss is nan: encoder.giou = nan; the checkpoint of step 2 is kept in .*--lr"
    ):
        run(tmp_path / "run", data, save_every=2)
    assert checkpoint.load_state(tmp_path / "run").step == 2
    assert all(torch.isfinite(t).all() for t in load(tmp_path / "run").state_dict().values())


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * math.inf


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights(
    data: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 1, _InfiniteGradient.apply)
    with pytest.raises(TrainingError, match=r"step 1: the gradient norm is (nan|inf) though .*nothing saved"):
        run(tmp_path / "run", data)


def test_epochs_set_the_number_of_steps(data: Shapes, tmp_path: Path) -> None:
    result = run(tmp_path, data, epochs=0.5, batch_size=4)
    assert result.model.config.recipe.steps == 1
    assert result.model.config.recipe.batch_size == 4


def test_classes_come_from_the_data(data: Shapes, tmp_path: Path) -> None:
    class Two(Shapes):
        classes = ("a", "b")
        category_ids = (1, 2)

        def target(self, index: int, **options: Any) -> Any:
            target = super().target(index, **options)
            return target | {"labels": target["labels"] % 2}

    result = run(tmp_path / "two", Two(images=4, size=64), steps=1)
    assert load(tmp_path / "two").config.classes == ("a", "b")
    with pytest.raises(TrainingError, match=r"its classes .* are not those of the training data"):
        train(tiny(), data, Two(images=4, size=64), tmp_path / "x", QUIET)
    tuned = run(tmp_path / "tuned", data, steps=1, init=str(tmp_path / "two"))
    assert tuned.model.config.num_classes == 6
    assert result.model.config.num_classes == 2


def test_bfloat16_trains(data: Shapes, tmp_path: Path) -> None:
    result = run(tmp_path, data, steps=2, precision="bf16")
    assert all(t.dtype != torch.bfloat16 for t in result.model.state_dict().values())
    assert math.isfinite(result.history[-1]["loss"])


def test_the_progress_bar_shows_loss_groups(data: Shapes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, data, tiny("lab_co_k1"), steps=2, log_every=1, progress=True, threads=1)
    shown = capsys.readouterr().err
    assert "lab_co_k1" in shown and "2/2" in shown
    assert all(f"{group}=" in shown for group in ("decoder", "encoder", "aux"))


def test_training_in_another_thread_listens_to_no_signal(data: Shapes, tmp_path: Path) -> None:
    results: list[TrainResult] = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, data, steps=1)))
    thread.start()
    thread.join()
    assert results[0].model.config.recipe.steps == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2, "epochs": 1.0}, "give steps or epochs, not both"),
        ({"steps": 0}, "steps must be above zero, got 0"),
        ({"lr": -1.0}, "lr must be above zero"),
        ({"save_every": 0}, "save_every must be at least 1"),
        ({"workers": -1}, "workers must not be negative"),
        ({"eval_images": -1}, "eval_images must not be negative"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainOptions(**options)


def test_an_empty_data_set_is_named(tmp_path: Path) -> None:
    class Empty:
        name = "nothing"
        classes: Sequence[str] = ("a",)

        def __len__(self) -> int:
            return 0

    with pytest.raises(TrainingError, match="nothing: holds no images to train on"):
        train(tiny(), Empty(), None, tmp_path, QUIET)  # type: ignore[arg-type]


def test_metrics_survive_a_line_cut_short(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.add({"step": 1, "metrics": {"AP": math.nan}})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "metrics": {"AP": None}}]
    assert MetricsLog(tmp_path, step=1).history == [{"step": 1, "metrics": {"AP": None}}]
    assert MetricsLog(tmp_path, step=0).history == []


def test_a_damaged_run_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({})[:1])
    with pytest.raises(CheckpointError, match=r"run.json: not JSON"):
        read_run(tmp_path)
