"""The training loop: one run folder holds the configuration, the metrics, the weights and the state to resume from."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor
from tqdm.auto import tqdm

from codetr_lab.data.transforms import batches
from codetr_lab.engine import checkpoint
from codetr_lab.engine.checkpoint import TrainingState, build_model
from codetr_lab.engine.ema import EMA
from codetr_lab.engine.evaluate import CocoMetrics, evaluate
from codetr_lab.engine.optim import adamw, schedule, set_rate
from codetr_lab.engine.options import TrainOptions
from codetr_lab.engine.records import MetricsLog, TrainingError, read_run, resumed_state, run_record, write_run
from codetr_lab.models.config import CoDETRConfig, override
from codetr_lab.structures import ImageBatch, Target

if TYPE_CHECKING:
    from codetr_lab.data.dataset import DetectionDataset
    from codetr_lab.models.codetr import CoDETR


Observer = Callable[["CoDETR", int], None]
"""Looks at the model during training, with the number of steps so far."""


class Stopped(KeyboardInterrupt):
    """The run was stopped by Ctrl-C or SIGTERM; a checkpoint was written, and the message says how to go on."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        model: trained, in evaluation mode.
        metrics: of the last evaluation, by head; empty if there was none in this process.
        history: the records of metrics.jsonl.
        seconds: spent on the whole run, evaluations included, over all resumptions.
        out: the run's folder.
    """

    model: CoDETR
    metrics: dict[str, CocoMetrics]
    history: list[dict[str, Any]]
    seconds: float
    out: Path


def resolve(
    config: CoDETRConfig, train_data: DetectionDataset, val_data: DetectionDataset | None, options: TrainOptions
) -> CoDETRConfig:
    """The configuration as it will be trained: with the data's classes and the options' steps, batch size and rate.

    Raises:
        TrainingError: no images, or training and validation classes differ.
    """
    if not len(train_data):
        raise TrainingError(f"{train_data.name}: holds no images to train on")
    if val_data is not None and val_data.classes != train_data.classes:
        raise TrainingError(
            f"{val_data.name}: its classes {val_data.classes} are not those of the training data, {train_data.classes}"
        )
    changes: dict[str, Any] = {"classes": train_data.classes, "num_classes": len(train_data.classes)}
    batch_size = options.batch_size or config.recipe.batch_size
    steps = options.steps or config.recipe.steps
    if options.epochs is not None:
        steps = max(1, round(options.epochs * math.ceil(len(train_data) / batch_size)))
    changes |= {"recipe.batch_size": batch_size, "recipe.steps": steps}
    if options.lr is not None:
        changes["recipe.lr"] = options.lr
    return override(config, **changes)


def train(
    config: CoDETRConfig,
    train_data: DetectionDataset,
    val_data: DetectionDataset | None,
    out: str | Path,
    options: TrainOptions | None = None,
    observers: Sequence[Observer] = (),
) -> TrainResult:
    """Train a model of `config` on `train_data`; the folder `out` then holds all of the run.

    Files: `config.json` and `model.safetensors` (readable by `load`), `state.pt` (to resume), `metrics.jsonl`,
    `run.json` (configuration, options, commit, versions). Random draws of the model come from PyTorch's global
    generator, seeded here; on the CPU a resumed run ends with the very same weights as an uninterrupted one.
    `observers` are called in the main process with the model and the number of steps so far, before every step and
    after the last; they must not change the model, and cannot disturb its random draws.

    Raises:
        TrainingError: `out` already holds a run, no images, classes that differ, a loss that is not finite.
        ConfigError: resumed with another configuration than the run's.
        CheckpointError: `out` cannot be written or read; nothing already written is damaged.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was written first.
    """
    options = options or TrainOptions()
    config = resolve(config, train_data, val_data, options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    # Accelerate keeps its settings for the life of the process; a second run may want others.
    AcceleratorState._reset_state(reset_partial_state=not (dist.is_available() and dist.is_initialized()))
    accelerator = Accelerator(cpu=options.device == "cpu", mixed_precision=options.precision)
    state = resumed_state(Path(out), config, resume=options.resume)
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    return _Run(config, train_data, val_data, Path(out), options, accelerator, state, observers).go()


@dataclass
class _Averages:
    """Loss terms, their sum and the gradient norm since the last line of metrics.jsonl."""

    names: tuple[str, ...] = ()
    values: Tensor | None = None
    grad_norm: float = 0.0
    count: int = 0

    def add(self, names: tuple[str, ...], values: Tensor, grad_norm: float) -> None:
        if self.values is None:
            self.names, self.values = names, torch.zeros_like(values)
        elif names != self.names:
            raise RuntimeError(f"the model changed its loss terms: {set(names) ^ set(self.names)}")
        self.values += values
        self.grad_norm += grad_norm
        self.count += 1

    def terms(self) -> dict[str, float]:
        values = [] if self.values is None else (self.values / self.count).tolist()
        return dict(zip(self.names, values, strict=True))


@dataclass
class _Run:
    config: CoDETRConfig
    train_data: DetectionDataset
    val_data: DetectionDataset | None
    out: Path
    options: TrainOptions
    accelerator: Accelerator
    state: TrainingState | None
    observers: Sequence[Observer] = ()
    stop_signal: str | None = field(default=None, init=False)

    def go(self) -> TrainResult:
        options, accelerator, state = self.options, self.accelerator, self.state
        set_seed(options.seed)
        self.model = build_model(self.config)
        self.reset: list[str] = []
        if options.init is not None and state is None:
            self.reset = checkpoint.initialise(self.model, options.init)
        optimizer = adamw(self.model, self.config.recipe)
        set_seed(options.seed, device_specific=True)
        self.step, self.epoch, self.batch, self.seconds_before = 0, 0, 0, 0.0
        if state is not None:
            self.model.load_state_dict(state.model)
            optimizer.load_state_dict(state.optimizer)
            self.step, self.epoch, self.batch, self.seconds_before = state.step, state.epoch, state.batch, state.seconds
        elif accelerator.is_main_process:  # only now, so that a wrong configuration leaves no folder behind
            facts = {"data": self.train_data.name, "images": len(self.train_data), "fresh_layers": self.reset}
            write_run(self.out, run_record(self.config, options, **facts))
        self.saved_step = self.step
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)
        momentum = self.config.recipe.ema
        self.ema = EMA(self.model, momentum) if momentum else None
        if self.ema and state is not None and state.ema is not None:
            self.ema.average = {name: value.to(accelerator.device) for name, value in state.ema.items()}
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.log = MetricsLog(self.out, self.step) if accelerator.is_main_process else None
        self.started = time.monotonic()
        if state is not None and accelerator.num_processes == 1:
            checkpoint.set_random_state(state.random)
        self.metrics: dict[str, CocoMetrics] = {}
        handlers = self._listen()
        try:
            self._loop()
            self._finish()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.ema:
            self.ema.swap(self.model)
        history = self.log.history if self.log else []
        return TrainResult(self.model.eval(), self.metrics, history, self.seconds(), self.out)

    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _listen(self) -> dict[int, Any]:
        """Note the first Ctrl-C or SIGTERM, to stop after the step; a second one stops at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.stop_signal is not None:
                raise KeyboardInterrupt
            self.stop_signal = signal.Signals(number).name

        if threading.current_thread() is not threading.main_thread():
            return {}  # Python lets only the main thread listen
        return {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def _stream(self) -> Iterator[tuple[int, int, ImageBatch, list[Target]]]:
        """Batches without end, each with the position (epoch, batch) after it; a process takes every n-th batch."""
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        epoch, start = self.epoch, self.batch
        while True:
            taken = 0
            source = batches(
                self.train_data, self.config.image, self.config.recipe, train=True, seed=self.options.seed,
                batch_size=max(1, self.config.recipe.batch_size // processes), epoch=epoch, start_batch=start,
                workers=self.options.workers, masks=self.config.needs_masks,
            )  # fmt: skip
            mine: tuple[ImageBatch, list[Target]] | None = None
            for index, item in enumerate(source):
                if index % processes == rank:
                    mine = item
                if index % processes == processes - 1 and mine is not None:  # every process has one
                    taken += 1
                    yield epoch, start + index + 1, *mine
            if not taken and not start:
                raise TrainingError(
                    f"{self.train_data.name}: its {len(self.train_data)} images are too few for {processes} processes; "
                    "start fewer"
                )
            epoch, start = epoch + 1, 0

    def _loop(self) -> None:
        recipe, options = self.config.recipe, self.options
        averages = _Averages()
        main = self.accelerator.is_main_process
        self.wrapped.train()
        with tqdm(
            total=recipe.steps, initial=self.step, desc=self.config.preset, unit="step", smoothing=0.05,
            disable=not (options.progress and main),
        ) as bar:  # fmt: skip
            if self.reset:
                bar.write(f"started afresh, since the classes differ: {', '.join(self.reset)}")
            stream = self._stream()
            while self.step < recipe.steps:
                # Before the next step, not after the last one: a run that was stopped in between still does it.
                if options.eval_every and self.step and self.step % options.eval_every == 0:
                    self._evaluate(bar)
                self._observe()
                epoch, batch_index, batch, targets = next(stream)
                names, values, grad_norm = self._train_step(batch, targets)
                averages.add(names, values, grad_norm)
                self.step, self.epoch, self.batch = self.step + 1, epoch, batch_index
                bar.update()
                if self.step % options.log_every == 0 or self.step == recipe.steps:
                    self._log(averages, bar)
                    averages = _Averages()
                if self.stop_signal or self.step % options.save_every == 0 or self.step == recipe.steps:
                    self.save()
                if self.stop_signal:
                    raise Stopped(
                        f"stopped by {self.stop_signal} after step {self.step} of {recipe.steps}; the checkpoint is in "
                        f"{self.out}: run the same command with --resume to go on"
                    )

    def _train_step(self, batch: ImageBatch, targets: list[Target]) -> tuple[tuple[str, ...], Tensor, float]:
        device = self.accelerator.device
        if device.type != "cpu":
            batch = batch.to(device)
            targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
        set_rate(self.optimizer, schedule(self.step, self.config.recipe))
        losses = self.wrapped(batch, targets)
        names, values = tuple(losses), torch.stack(tuple(losses.values()))
        total = values.sum()
        if not math.isfinite(total.item()):
            terms = [f"{name} = {value}" for name, value in losses.items() if not math.isfinite(value.item())]
            self._fail(f"the loss is {total.item()}: {', '.join(terms) or 'the sum overflows'}")
        self.optimizer.zero_grad()
        self.accelerator.backward(total)
        limit = self.config.recipe.clip_norm
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, limit if limit > 0 else math.inf))
        if not math.isfinite(norm):
            self._fail(f"the gradient norm is {norm} though the loss is {total.item():.4g}")
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.model, self.step)
        return names, values.detach(), norm

    def _fail(self, what: str) -> None:
        kept = f"the checkpoint of step {self.saved_step} is kept in {self.out}" if self.saved_step else "nothing saved"
        raise TrainingError(f"step {self.step + 1}: {what}; {kept}; a lower --lr may help")

    def _log(self, averages: _Averages, bar: Any) -> None:
        terms = averages.terms()
        rate = self.config.recipe.lr * schedule(self.step - 1, self.config.recipe)
        groups: dict[str, float] = {}
        for name, value in terms.items():
            group = name.partition(".")[0]
            groups[group] = groups.get(group, 0.0) + value
        bar.set_postfix({name: f"{value:.2f}" for name, value in groups.items()}, refresh=False)
        if self.log is not None:
            self.log.add(
                {
                    "step": self.step, "lr": rate, "loss": sum(terms.values()),
                    "grad_norm": averages.grad_norm / averages.count, "seconds": round(self.seconds(), 3),
                    "losses": terms,
                }
            )  # fmt: skip

    def save(self) -> None:
        """Write weights and state; every process must call it."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            checkpoint.save_state(
                TrainingState(
                    self.model.state_dict(), self.optimizer.state_dict(), self.step, self.epoch, self.batch,
                    self.seconds(), checkpoint.random_state(), self.ema.average if self.ema else None,
                ),
                self.out,
            )  # fmt: skip
            with self._averaged():
                checkpoint.save_model(self.model, self.out)
        self.saved_step = self.step

    def _averaged(self) -> AbstractContextManager[None]:
        """The model has its moving average inside, where the recipe keeps one."""
        return self.ema.applied(self.model) if self.ema else nullcontext()

    def _observe(self) -> None:
        if self.observers and self.accelerator.is_main_process:
            with torch.random.fork_rng():
                for observer in self.observers:
                    observer(self.model, self.step)

    def _evaluate(self, bar: Any = None) -> None:
        """Evaluate the main head, unless an earlier process of this run did; leaves random state and mode alone."""
        if self.val_data is None or self.options.eval_images == 0:
            return
        history = self.log.history if self.log else []
        done = any("metrics" in record and record["step"] == self.step for record in history)
        if self.accelerator.is_main_process and self.log is not None and not done:
            head = self.model.detectors[0]
            with torch.random.fork_rng(), self._averaged():
                self.metrics = evaluate(
                    self.model, self.val_data, heads=(head,), limit=self.options.eval_images,
                    progress=self.options.progress,
                )  # fmt: skip
            numbers = {name: metrics.stats for name, metrics in self.metrics.items()}
            self.log.add({"step": self.step, "seconds": round(self.seconds(), 3), "metrics": numbers})
            if bar is not None:
                bar.write(f"step {self.step}: AP {self.metrics[head].ap:.3f}")
        self.accelerator.wait_for_everyone()
        self.wrapped.train()

    def _finish(self) -> None:
        """The last evaluation."""
        self._evaluate()
        self._observe()
        if self.accelerator.is_main_process:
            record = read_run(self.out) or {}
            write_run(self.out, {**record, "finished": True, "steps": self.step, "seconds": round(self.seconds(), 1)})
