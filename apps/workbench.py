"""The workbench: a page in which label assignment can be seen and touched. Started by `codetr demo`."""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Gradio sums up all requests so far with pandas at every request: the longer a class works, the slower the answers.
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")

from apps.stubs import no_stubs

with no_stubs():
    import gradio as gr
import torch
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from apps import style
from apps.page import TITLE, Page, missing_words
from apps.parts import serve_parts
from codetr_lab.data.catalog import open_dataset
from codetr_lab.data.dataset import DetectionDataset
from codetr_lab.data.shapes import Shapes
from codetr_lab.engine.checkpoint import load, shipped_models
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.presets import create_model
from codetr_lab.structures import Target

HOST = "127.0.0.1"
FIRST_PORT, PORTS_TRIED = 7860, 100
MODELS = ("lab_baseline", "lab_co_k1", "lab_co_k2")
SESSIONS = 100
"""Visitors whose own images are remembered at once."""


class WorkbenchError(OSError):
    """The workbench cannot start or does not answer; one line that says why."""


def lab_models(names: Sequence[str] = MODELS) -> tuple[dict[str, CoDETR], list[str]]:
    """The trained models that come with the package, and the names of those that are missing.

    A missing one is stood in for by the same model with random weights, which the page says.
    """
    shipped, models, missing = shipped_models(), {}, []
    for name in names:
        if name in shipped:
            models[name] = load(name)
            continue
        missing.append(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            models[name] = create_model(name).eval()
    return models, missing


def own_models(names: Sequence[str], weights: Path | None) -> dict[str, CoDETR]:
    """Models by name: run folders, shipped ones, or released presets with their weights.

    Raises:
        WorkbenchError: weights for more than one model, or models that know different classes.
        ConfigError, CheckpointError: as `load`.
    """
    if weights is not None and len(names) != 1:
        raise WorkbenchError(f"--weights belong to one model, but --model names {len(names) or 'none'}")
    models = {Path(name).name or name: load(name, weights) for name in names}
    classes = {name: model.config.classes or model.config.num_classes for name, model in models.items()}
    if len(set(classes.values())) > 1:
        known = "; ".join(f"{name} knows {_few(found)}" for name, found in classes.items())
        raise WorkbenchError(f"models that know different classes cannot be compared: {known}")
    return models


def _few(classes: tuple[str, ...] | int) -> str:
    if isinstance(classes, int):
        return f"{classes} classes without names"
    return ", ".join(classes[:3]) + (f" and {len(classes) - 3} more" if len(classes) > 3 else "")


class Unlabelled:
    """The images of a data set without its objects, for models that know other classes."""

    def __init__(self, dataset: DetectionDataset, classes: tuple[str, ...]) -> None:
        self._dataset, self.classes, self.category_ids = dataset, classes, tuple(range(len(classes)))
        self.name = dataset.name

    def __len__(self) -> int:
        return len(self._dataset)

    def image(self, index: int) -> Any:
        """See `DetectionDataset.image`."""
        return self._dataset.image(index)

    def target(self, index: int, *, masks: bool = True) -> Target:
        """No objects."""
        nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        return (
            nothing
            | {"iscrowd": torch.zeros(0, dtype=torch.bool), "area": torch.zeros(0)}
            | {"image_id": torch.tensor(index)}
        )

    def file_name(self, index: int) -> str:
        """See `DetectionDataset.file_name`."""
        return self._dataset.file_name(index)

    def to_coco(self) -> dict[str, Any]:
        """Images without annotations."""
        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes)]
        return self._dataset.to_coco() | {"annotations": [], "categories": categories}


def own_dataset(data: str | None, models: Mapping[str, CoDETR]) -> tuple[DetectionDataset, list[str]]:
    """The data set that the page shows, and what the reader must know about it.

    Without a name it is the generated images; models that know other classes see them without their objects.

    Raises:
        WorkbenchError: the data set has other classes than the models.
        ConfigError, DataError: as `open_dataset`.
    """
    config = next(iter(models.values())).config
    classes = config.classes or tuple(f"class {i}" for i in range(config.num_classes))
    dataset = open_dataset(data or "shapes", "val")
    if dataset.classes == classes or (not config.classes and len(dataset.classes) == config.num_classes):
        return dataset, []
    if data is None:
        words = (
            f"The models know {_few(classes)}, which the generated images do not show: bring your own (--data FOLDER)."
        )
        return Unlabelled(dataset, classes), [words]
    raise WorkbenchError(
        f"{dataset.name} has the classes {_few(dataset.classes)}, but the models know {_few(classes)}; give --model a "
        "model that was trained on these classes"
    )


def build(
    models: Mapping[str, CoDETR],
    dataset: DetectionDataset,
    missing: Sequence[str] = (),
    notes: Sequence[str] = (),
    runs: Path | None = None,
) -> gr.Blocks:
    """The page, not yet served; arguments as in `Page`."""
    return Page(models, dataset, missing, notes, runs).blocks


def free_port(port: int | None = None) -> int:
    """`port` if it is free, or the first free one from 7860 on if none is given.

    Raises:
        WorkbenchError: it is in use, or not a port that may be used.
    """
    tried = range(FIRST_PORT, FIRST_PORT + PORTS_TRIED) if port is None else (port,)
    for number in tried:
        if not 1 <= number <= 65535:
            raise WorkbenchError(f"port {number} does not exist; choose one from 1024 to 65535")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, number))
            except PermissionError as error:
                raise WorkbenchError(f"port {number} may not be used by you; choose one from 1024 to 65535") from error
            except OSError:
                continue
        return number
    if port is None:
        raise WorkbenchError(f"ports {tried[0]} to {tried[-1]} on {HOST} are all in use; choose one with --port")
    raise WorkbenchError(f"port {port} on {HOST} is in use; choose another with --port, or stop what uses it")


def serve(page: gr.Blocks, port: int, host: str = HOST) -> str:
    """Serve the page in the background, on this machine alone unless another host is given.

    Returns:
        Its address.
    """
    _no_proxy_for_this_machine()
    page.queue(default_concurrency_limit=2, max_size=128)
    app, url, _ = page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False,
        show_error=True, max_file_size="10mb", theme=style.theme(), css=style.CSS, footer_links=[], strict_cors=True,
        state_session_capacity=SESSIONS,
        run_history=False,  # otherwise every answer is written into the browser's storage, which takes longer than it
        _frontend=False,  # this alone: do not give up where the first answer takes a busy machine three seconds
    )  # fmt: skip
    serve_parts(app)
    app.router.routes.insert(0, Route("/notebooks/{name}", _notebook))
    return str(url)


def _notebook(request: Request) -> Response:
    """One of the course's notebooks, known by its name alone."""
    name = request.path_params["name"]
    if name not in style.notebooks():
        return PlainTextResponse("no such notebook", status_code=404)
    return FileResponse(style.NOTEBOOKS / name, media_type="application/x-ipynb+json", filename=name)


def _no_proxy_for_this_machine() -> None:
    """Gradio asks its own server whether it is up; a proxy must not stand between."""
    for key in ("no_proxy", "NO_PROXY"):
        known = [host for host in os.environ.get(key, "").split(",") if host]
        os.environ[key] = ",".join(dict.fromkeys([*known, HOST, "localhost"]))


def check(url: str, model: str) -> int:
    """Ask a running workbench for its page, and its programming interface for the first figure.

    Returns:
        How many candidates the figure draws.

    Raises:
        WorkbenchError: the page does not answer, or its figure is empty.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = url.rstrip("/")
    with opener.open(url, timeout=60) as answer:
        if TITLE.encode() not in answer.read():
            raise WorkbenchError(f"{url} answers, but not with the workbench")
    body = json.dumps({"data": [model, 0]}).encode()
    request = urllib.request.Request(f"{url}/gradio_api/call/figure", body, {"Content-Type": "application/json"})
    with opener.open(request, timeout=60) as answer:
        ticket = json.loads(answer.read())["event_id"]
    with opener.open(f"{url}/gradio_api/call/figure/{ticket}", timeout=120) as answer:
        lines = answer.read().decode().splitlines()
    results = [line.removeprefix("data: ") for line in lines if line.startswith("data: [")]
    if not results:
        raise WorkbenchError(f"{url} gives no figure: {' '.join(lines)[:200]}")
    panels = json.loads(json.loads(results[-1])[0])
    traces = [trace for panel in panels for trace in panel["figure"]["data"]]
    for number, trace in enumerate(traces):
        if "trace" in trace:
            traces[number] = trace["trace"]
        elif "part" in trace:
            with opener.open(f"{url}/parts/{trace['part']}", timeout=60) as answer:
                traces[number] = json.loads(answer.read())
    drawn = sum(map(_points, traces))
    if not drawn:
        raise WorkbenchError(f"the figure of {url} is empty")
    return drawn


def _points(trace: dict[str, Any]) -> int:
    """Candidates that a trace of the sent figure shows: rows of its `customdata`."""
    rows = trace.get("customdata", [])
    return int(rows["shape"].split(",")[0]) if isinstance(rows, dict) else len(rows)


def main(
    port: int | None = None,
    smoke: bool = False,
    models: Sequence[str] = (),
    weights: Path | None = None,
    data: str | None = None,
    run: Path | None = None,
) -> int:
    """Start the workbench on 127.0.0.1 and serve it until Ctrl-C.

    Args:
        port: left out, the first free one from 7860.
        smoke: start, check that the page answers and that its figure holds data, and stop.
        models: run folders, shipped models, released presets; the shipped lab models if there are none.
        weights: a released file for the one model.
        data: a data set's name or a COCO-format folder.
        run: a training run's folder, or a folder of runs.

    Raises:
        WorkbenchError: the port is in use, the check failed, or the arguments do not fit each other.
    """
    number = free_port(port)
    if run is not None and not run.is_dir():
        raise WorkbenchError(f"--run {run}: there is no such folder")
    if models:
        print(f"Loading {', '.join(models)}, and looking at a first image …", file=sys.stderr, flush=True)
    loaded, missing = (own_models(models, weights), []) if models or weights else lab_models()
    dataset, notes = (Shapes(split="val"), []) if not (models or data) else own_dataset(data, loaded)
    page = build(loaded, dataset, missing, notes, run)
    url = serve(page, number)
    try:
        if smoke:
            drawn = check(url, list(loaded)[-1])
            print(f"the workbench answers at {url}; its first figure holds {drawn} candidates")
            return 0
        for words in [*([missing_words(missing)] if missing else []), *notes]:
            print(words, file=sys.stderr)
        print(f"The workbench is at {url}  (Ctrl-C stops it)", flush=True)
        page.block_thread()
    finally:
        page.close(verbose=False)
    return 0
