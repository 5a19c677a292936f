"""Large parts of figures (images, traces with many points) by their content: the page gets each of them once.

A figure that changes with every move of a slider then carries only references to what stayed the same. A trace that
nobody was sent before comes whole, with its key; a page that has not got it asks for it. Parts are kept in memory,
addressed by a hash of their content; nothing of the file system can be reached this way.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import orjson
import plotly.graph_objects as go
from fastapi import FastAPI
from fastapi.responses import Response
from starlette.routing import Route

from codetr_lab.viz.sketch import Sketch, jpeg_uri

LARGE = 3000
"""Characters from which a part is sent by reference."""
_KEPT = 256_000_000
"""Bytes of parts that are kept."""
_JPEG = "data:image/jpeg;base64,"


class Parts:
    """What figures refer to, by key; the parts that were used last are kept."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept, self._bytes = kept, 0
        self._parts: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, content: bytes, kind: str) -> tuple[str, bool]:
        """Keep `content` of media type `kind`; gives its key, and whether it is new."""
        key = hashlib.blake2b(content, digest_size=16).hexdigest()
        with self._lock:
            new = key not in self._parts
            if new:
                self._parts[key] = (content, kind)
                self._bytes += len(content)
                while self._bytes > self._kept and len(self._parts) > 1:
                    self._bytes -= len(self._parts.popitem(last=False)[1][0])
            self._parts.move_to_end(key)
        return key, new

    def address(self, uri: str) -> str:
        """Keep the picture of a JPEG data URI; gives the address that stands for it on the page."""
        return f"parts/{self.put(base64.b64decode(uri.removeprefix(_JPEG)), 'image/jpeg')[0]}"

    def get(self, key: str) -> tuple[bytes, str] | None:
        """Content and media type, if they are still there."""
        with self._lock:
            return self._parts.get(key)


PARTS = Parts()


def figure_json(figure: go.Figure | Sketch, backdrop: str = "") -> str:
    """Plotly's JSON of a figure, in which images are addresses and large traces have a key.

    A large trace is `{"part": key, "trace": ...}` when it is new and `{"part": key}` afterwards.

    Args:
        backdrop: the address of a finer picture that takes the place of the figure's own.
    """
    if isinstance(figure, go.Figure):
        content = json.loads(figure.to_json())
        figure = Sketch(content["data"], content["layout"])
    traces = [_trace_json(trace) for trace in figure.traces]
    layout = figure.layout
    if pictures := layout.get("images"):
        own = jpeg_uri(figure.image) if figure.image is not None and not backdrop else ""
        addressed = [p | {"source": backdrop or PARTS.address(own or p["source"])} for p in pictures]
        layout = layout | {"images": addressed}
    return (b'{"data":[' + b",".join(traces) + b'],"layout":' + orjson.dumps(layout, default=_packed) + b"}").decode()


def _trace_json(trace: dict[str, Any]) -> bytes:
    text = orjson.dumps(trace, default=_packed)
    if len(text) <= LARGE:
        return text
    key, new = PARTS.put(text, "application/json")
    return b'{"part":"%s"%s}' % (key.encode(), b',"trace":' + text if new else b"")


def _packed(value: Any) -> Any:
    """Numpy's arrays as Plotly reads them fastest, and numpy's numbers."""
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(type(value).__name__)
    kind = {"f": "<f4", "i": "<i4", "u": "|u1" if value.dtype.itemsize == 1 else "<i4"}.get(value.dtype.kind)
    if kind is None:
        return value.tolist()
    small = value.astype(kind)
    shape = {"shape": ", ".join(map(str, value.shape))} if value.ndim > 1 else {}
    return {"dtype": small.dtype.str[1:], "bdata": base64.b64encode(small.tobytes()).decode(), **shape}


def serve_parts(app: FastAPI) -> None:
    """Let `app` answer `parts/<key>`, ahead of its other routes."""

    def part(request: Any) -> Response:
        found = PARTS.get(request.path_params["key"])
        if found is None:
            return Response("gone; reload the page", status_code=404)
        headers = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
        return Response(found[0], media_type=found[1], headers=headers)

    app.router.routes.insert(0, Route("/parts/{key}", part))
