"""Weights and training state on disk: written atomically, read without unpickling, with errors of one line."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import pickle
import random
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from codetr_lab.models.config import CoDETRConfig, ConfigError, from_json, override, to_json

if TYPE_CHECKING:
    from codetr_lab.models.codetr import CoDETR

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
STATE_FILE = "state.pt"


class CheckpointError(OSError):
    """A checkpoint cannot be written, read, or does not fit the model; one line that says what to do."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that `path` holds either all of `content` or what it held before.

    Raises:
        CheckpointError: no permission, disk full, and the like.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose a folder you may write to "
            "(what was there before is unharmed)"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def build_model(config: CoDETRConfig) -> CoDETR:
    """A model with random weights (and the backbone's pretrained ones, where the configuration asks for them)."""
    from codetr_lab.models.codetr import CoDETR

    return CoDETR(config)


def _tensors(model: nn.Module, half: bool) -> dict[str, Tensor]:
    """Contiguous CPU copies of the model's state, by key. `half` keeps vectors (norms, biases) in float32."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        copy = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        if half and copy.is_floating_point() and copy.ndim > 1:
            copy = copy.half()
            if not torch.isfinite(copy).all():
                raise CheckpointError(f"{name} does not fit half precision; save the model with half=False")
        tensors[name] = copy
    return tensors


def save_model(model: CoDETR, folder: str | Path, *, half: bool = False) -> None:
    """Write `model.safetensors` and `config.json` (which holds the class names) into `folder`.

    Args:
        half: store matrices and convolutions as float16, half the size.

    Raises:
        CheckpointError: the folder cannot be written to, the disk is full; the old files are then unharmed.
    """
    folder = Path(folder)
    weights = safetensors.torch.save(_tensors(model, half), {"format": "pt", "preset": model.config.preset})
    write_atomically(folder / CONFIG_FILE, to_json(model.config).encode())
    write_atomically(folder / WEIGHTS_FILE, weights)


def read_config(folder: str | Path) -> CoDETRConfig:
    """The configuration in a run's folder.

    Raises:
        CheckpointError: there is none, or it is not one of ours.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        return from_json(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: holds no {CONFIG_FILE}, so it is not the folder of a trained model") from None
    except (ConfigError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The tensors in a run's folder, by key.

    Raises:
        CheckpointError: there are none, or the file is damaged.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: holds no {WEIGHTS_FILE}; has the run saved anything yet?")
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or cut short ({error}); copy it again or train again") from error


def differences(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """What keeps `weights` from fitting `model`, in words: missing keys, keys too many, other shapes."""
    own = model.state_dict()
    return [
        *(f"the file lacks {key}" for key in own if key not in weights),
        *(f"the file has {key}, the model does not" for key in weights if key not in own),
        *(
            f"{key} is {tuple(weights[key].shape)} in the file, {tuple(own[key].shape)} in the model"
            for key in own
            if key in weights and weights[key].shape != own[key].shape
        ),
    ]


def _raise_if_different(model: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    problems = differences(model, weights)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{source} holds another model: {'; '.join(problems[:3])}{more}")


def load_model(folder: str | Path) -> CoDETR:
    """The model that `save_model` wrote, in evaluation mode. The backbone's own pretrained file is not needed.

    Raises:
        CheckpointError: a file is missing, damaged, or the weights are another model's.
    """
    config = override(read_config(folder), **{"backbone.pretrained": False, "backbone.weights": None})
    weights = read_weights(folder)
    with torch.random.fork_rng(devices=[]):
        model = build_model(config)
    _raise_if_different(model, weights, Path(folder) / WEIGHTS_FILE)
    model.load_state_dict(weights)
    return model.eval()


def shipped_models() -> dict[str, Path]:
    """The folders of the trained models that come with the package, by name."""
    root = Path(str(resources.files("codetr_lab"))) / "weights"
    if not root.is_dir():
        return {}
    return {path.name: path for path in sorted(root.iterdir()) if (path / WEIGHTS_FILE).is_file()}


def locate(source: str | Path) -> Path:
    """The folder that `source` means: a run's folder, a shipped model's name, or that of released weights.

    Released weights (`architecture.tag`) are downloaded the first time.

    Raises:
        CheckpointError: `source` is a file.
        ConfigError: none of these; the nearest name is suggested.
        DownloadError, WeightsError: released weights cannot be had.
    """
    from codetr_lab.engine import released_weights

    path, shipped = Path(source), shipped_models()
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(
            f"{source} is a file; give the folder that holds {WEIGHTS_FILE} and {CONFIG_FILE}, or for a released file "
            "the name of its model and the file as its weights"
        )
    if str(source) in shipped:
        return shipped[str(source)]
    if entry := released_weights.released(str(source)):
        return released_weights.fetch(entry)
    if path.name != str(source):
        raise ConfigError(f"there is no folder {source}")
    names = [*shipped, *(weights.name for weights in released_weights.RELEASED)]
    near = difflib.get_close_matches(str(source), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "codetr models lists them"
    raise ConfigError(f"unknown run folder, shipped model or released weights {str(source)!r}; {hint}")


def load(source: str | Path, weights: str | Path | None = None) -> CoDETR:
    """A trained model in evaluation mode.

    Args:
        source: a run's folder, a shipped model's name (`lab_co_k2`), or that of released weights
            (`co_dino_5scale_r50.1x_coco`), which are downloaded once into the cache folder and checked.
        weights: a released `.pth` file that you fetched yourself; `source` then names its preset.

    Raises:
        CheckpointError: the folder or the file does not hold a whole, fitting model.
        ConfigError: no such folder or name; the nearest is suggested.
        DownloadError, WeightsError: released weights cannot be had; says what to do.
    """
    if weights is not None:
        from codetr_lab.engine.released_weights import from_file

        return from_file(str(source), weights)
    return load_model(locate(source))


def initialise(model: CoDETR, source: str | Path) -> list[str]:
    """Fill `model` with the weights of a trained one, for fine-tuning.

    Where the classes differ, the layers that depend on them keep their random weights.

    Returns:
        The keys that were not filled.

    Raises:
        CheckpointError, ConfigError: as `load`; or the two models differ in more than their classes.
    """
    from codetr_lab.models.meta import class_dependent

    folder = locate(source)
    weights, own = read_weights(folder), model.state_dict()
    fresh = class_dependent(model.config) if read_config(folder).classes != model.config.classes else set()
    for key in fresh & weights.keys():
        weights[key] = own[key]
    _raise_if_different(model, weights, folder / WEIGHTS_FILE)
    model.load_state_dict(weights)
    return sorted(fresh)


@dataclass(frozen=True)
class TrainingState:
    """Everything that a run needs to go on as if it had not stopped.

    Attributes:
        model: the model's state dictionary, unrounded. `optimizer`: its state dictionary.
        step: number of steps done. `epoch`, `batch`: the next batch to take.
        seconds: time spent so far.
        random: the states of the random number generators.
        ema: the moving average of the weights, where the recipe keeps one.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    step: int
    epoch: int
    batch: int
    seconds: float
    random: dict[str, Any]
    ema: dict[str, Tensor] | None = None


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's generators, in plain kinds and tensors."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators back to what `random_state` returned."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    numpy_keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", numpy_keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_state(state: TrainingState, folder: str | Path) -> None:
    """Write the training state into `folder`, in one file, so that weights and optimizer cannot fall out of step.

    Raises:
        CheckpointError: it cannot be written; the old state is then unharmed.
    """
    buffer = io.BytesIO()
    torch.save(vars(state), buffer)
    write_atomically(Path(folder) / STATE_FILE, buffer.getvalue())


def load_state(folder: str | Path) -> TrainingState:
    """The training state in `folder`, on the CPU.

    Raises:
        CheckpointError: there is none, or the file is damaged.
    """
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: holds no {STATE_FILE}, so there is nothing to resume")
    content = io.BytesIO(path.read_bytes())
    try:
        return TrainingState(**torch.load(content, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(f"{path}: damaged or cut short ({reason}); start the run again") from error
