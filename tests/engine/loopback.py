"""A web server on the loopback interface that serves one file, whole or badly."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `content` at any path; each request takes the next of `plan`, and all later ones "whole".

    Plans: "whole"; an int: that many bytes, then the connection closes; "no ranges": all of it, whatever was asked;
    "redirect": once to the same file, naming its hash as Hugging Face does; "404", "503".
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.plan: list[str | int] = []
        self.asked: list[str | None] = []
        self.etag = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.headers.get("Range"))
        step = self.plan.pop(0) if self.plan else "whole"
        if step in ("404", "503"):
            request.send_error(int(step))
            return
        if step == "redirect":
            request.send_response(302)
            request.send_header("Location", "/elsewhere.pth")
            request.send_header("X-Linked-Etag", f'"{self.etag}"')
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = 0
        if step != "no ranges" and (match := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")):
            start = int(match[1])
        if start >= len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[:step] if isinstance(step, int) else body)


@contextmanager
def serving(content: bytes) -> Iterator[tuple[Server, str]]:
    """The server and the address of its file."""
    server = Server(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *words: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield server, f"http://127.0.0.1:{http.server_port}/weights-file.pth"
        http.shutdown()
        thread.join()
