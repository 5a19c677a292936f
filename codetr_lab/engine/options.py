"""The options of a training run. Light to import, since the command line is derived from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from codetr_lab.models.config import ConfigError


@dataclass(frozen=True)
class TrainOptions:
    """How to run a training; what is trained is the `CoDETRConfig`. `None` leaves the preset's recipe as it is."""

    steps: int | None = None
    """Number of optimizer steps."""
    epochs: float | None = None
    """Length in passes over the data, instead of `steps`."""
    batch_size: int | None = None
    """Images per step, over all processes."""
    lr: float | None = None
    """Base learning rate."""
    seed: int = 0
    """Of weights, order, augmentation and sampling: the same seed gives the same run."""
    eval_every: int = 0
    """Steps between evaluations; 0 evaluates at the end alone."""
    eval_images: int | None = None
    """Evaluate on this many validation images; 0 leaves evaluation out."""
    save_every: int = 500
    """Steps between checkpoints; there is one at the end in any case."""
    log_every: int = 20
    """Steps averaged into one line of metrics.jsonl."""
    resume: bool = False
    """Go on with the run that lies in the output folder."""
    init: str | None = None
    """Start from the weights of this run folder or shipped model; class layers start afresh where classes differ."""
    workers: int = 0
    """Processes that load images."""
    threads: int | None = None
    """CPU threads of PyTorch."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` takes a GPU where there is one."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of the forward pass."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("give steps or epochs, not both")
        for name in ("steps", "epochs", "batch_size", "lr", "threads"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above zero, got {value}")
        for name in ("save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("eval_every", "workers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.eval_images is not None and self.eval_images < 0:
            raise ConfigError(f"eval_images must not be negative, got {self.eval_images}")
