"""The workbench: a page in which label assignment can be seen and touched. Started by `codetr demo`."""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
import torch

from apps import style
from apps.assign_tab import ALL, AssignTab
from apps.bench import Bench
from apps.heads_tab import HeadsTab
from apps.plot import allow_plotly_script
from codetr_lab.data.dataset import DetectionDataset
from codetr_lab.data.shapes import Shapes
from codetr_lab.engine.checkpoint import load, shipped_models
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.presets import create_model

HOST = "127.0.0.1"
FIRST_PORT, PORTS_TRIED = 7860, 100
MODELS = ("lab_baseline", "lab_co_k1", "lab_co_k2")
TITLE = "Co-DETR workbench"
_REMEMBER_STATE = """(image, model, object) => {
  const url = new URL(window.location);
  Object.entries({ image, model, object }).forEach(([key, value]) => url.searchParams.set(key, value));
  history.replaceState(null, '', url);
}"""
_REMEMBER_TAB = """() => {{
  if (!window.workbenchOpened) return; // the first tab reports itself before the address has been read
  const url = new URL(window.location);
  url.searchParams.set('tab', '{tab}');
  history.replaceState(null, '', url);
}}"""


_OPEN_TAB = """() => {
  const tab = new URL(window.location).searchParams.get('tab');
  const button = [...document.querySelectorAll('[role=tab]')].find((b) => b.textContent.trim().toLowerCase() === tab);
  if (button) button.click();
  window.workbenchOpened = true;
}"""


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


def build(models: Mapping[str, CoDETR], dataset: DetectionDataset, missing: Sequence[str] = ()) -> gr.Blocks:
    """The page, not yet served.

    Args:
        models: by name, in evaluation mode; the last is shown first, with the first beside it in the tab Heads.
        dataset: whose images are shown.
        missing: names of models whose trained weights are missing; the page warns about them.
    """
    allow_plotly_script()
    bench = Bench(models, dataset)
    first = first_image(dataset)
    names = list(bench.models)
    start = names[-1]
    beside = list(dict.fromkeys([names[0], start]))
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        with gr.Row(elem_classes="page-head", equal_height=False):
            gr.HTML(f"<h1>{TITLE}</h1><p>How label assignment trains a DETR</p>", min_width=240)
            words = f"Image of {dataset.name}"
            image = gr.Slider(0, len(dataset) - 1, value=first, step=1, label=words, elem_id="image", min_width=280)
        if missing:
            gr.HTML(style.warning(_missing_words(missing)), elem_id="missing-weights")
        with gr.Tabs():
            with gr.Tab("Assign", id="assign") as assign_page:
                assign = AssignTab(bench, image, start)
            with gr.Tab("Heads", id="heads") as heads_page:
                heads = HeadsTab(bench, image, beside)
        for tab, where in (("assign", assign_page), ("heads", heads_page)):
            where.select(None, js=_REMEMBER_TAB.format(tab=tab), api_visibility="private")
        moved = [image.input, assign.model.input, assign.object.input]
        gr.on(moved, None, [image, assign.model, assign.object], js=_REMEMBER_STATE, api_visibility="private")

        def restore(request: gr.Request) -> list[Any]:
            """The state that the address names, or a good first image."""
            query = dict(request.query_params)
            index = _number(query.get("image"), 0, len(dataset) - 1, default=first)
            model = query["model"] if query.get("model") in bench.models else start
            chosen = _number(query.get("object"), 0, 10_000, default=ALL)
            config = bench.models[model].config
            shown = assign.scene(model, index, config.atss.top_k, config.faster_rcnn.roi_positive_iou, chosen)
            found = heads.view(beside, index, heads.score.value, True, None)
            return [index, model, *shown, found]

        page.load(
            restore, None, [image, assign.model, *assign.scene_outputs, heads.grid], show_progress="hidden",
            api_visibility="private",
        ).then(None, js=_OPEN_TAB, api_visibility="private")  # fmt: skip
    return page


def first_image(dataset: DetectionDataset) -> int:
    """A good image to begin with: the first with 4 to 6 objects among the first fifty, or image 0."""
    counts = (len(dataset.target(index, masks=False)["labels"]) for index in range(min(50, len(dataset))))
    return next((index for index, count in enumerate(counts) if 4 <= count <= 6), 0)


def _number(text: str | None, least: int, most: int, default: int) -> int:
    """A whole number from the address; `default` where it is none or out of range."""
    try:
        value = int(text or "")
    except ValueError:
        return default
    return value if least <= value <= most else default


def _missing_words(missing: Sequence[str]) -> str:
    names = ", ".join(missing)
    return (
        f"Trained weights are missing for {names}: random weights stand in, so detections and the decoder's matching "
        "mean nothing. Train with: codetr experiment quick"
    )


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


def serve(page: gr.Blocks, port: int) -> str:
    """Serve the page on this machine alone, in the background.

    Returns:
        Its address.
    """
    _no_proxy_for_this_machine()
    page.queue(default_concurrency_limit=2, max_size=64)
    _, url, _ = page.launch(
        server_name=HOST, server_port=port, prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False,
        show_error=True, max_file_size="10mb", theme=style.theme(), css=style.CSS, footer_links=[], strict_cors=True,
    )  # fmt: skip
    return str(url)


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
    with opener.open(url, timeout=30) as answer:
        if TITLE.encode() not in answer.read():
            raise WorkbenchError(f"{url} answers, but not with the workbench")
    body = json.dumps({"data": [model, 0, -1, 9, 0.5, "original", None]}).encode()
    request = urllib.request.Request(
        f"{url.rstrip('/')}/gradio_api/call/assign", body, {"Content-Type": "application/json"}
    )
    with opener.open(request, timeout=30) as answer:
        ticket = json.loads(answer.read())["event_id"]
    with opener.open(f"{url.rstrip('/')}/gradio_api/call/assign/{ticket}", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    results = [line.removeprefix("data: ") for line in lines if line.startswith("data: [")]
    if not results:
        raise WorkbenchError(f"{url} gives no figure: {' '.join(lines)[:200]}")
    panels = json.loads(json.loads(results[-1])[0])
    drawn = sum(_points(trace) for panel in panels for trace in panel["figure"]["data"])
    if not drawn:
        raise WorkbenchError(f"the figure of {url} is empty")
    return drawn


def _points(trace: dict[str, Any]) -> int:
    """Candidates that a trace of the sent figure shows: rows of its `customdata`."""
    rows = trace.get("customdata", [])
    return int(rows["shape"].split(",")[0]) if isinstance(rows, dict) else len(rows)


def main(port: int | None = None, smoke: bool = False) -> int:
    """Start the workbench on 127.0.0.1 and serve it until Ctrl-C.

    Args:
        port: left out, the first free one from 7860.
        smoke: start, check that the page answers and that its figure holds data, and stop.

    Raises:
        WorkbenchError: the port is in use, or the check failed.
    """
    number = free_port(port)
    models, missing = lab_models()
    page = build(models, Shapes(split="val"), missing)
    url = serve(page, number)
    try:
        if smoke:
            print(f"the workbench answers at {url}; its first figure holds {check(url, MODELS[-1])} candidates")
            return 0
        if missing:
            print(_missing_words(missing), file=sys.stderr)
        print(f"The workbench is at {url}  (Ctrl-C stops it)", flush=True)
        page.block_thread()
    finally:
        page.close(verbose=False)
    return 0
