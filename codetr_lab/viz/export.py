"""Figures as files: pages that open anywhere without installing anything, and pictures."""

from __future__ import annotations

import html
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from codetr_lab.viz.image import FONT

_SECONDS = 180
_STYLE = f"body {{ font-family: {FONT}; margin: 24px; background: white; color: #222 }} h1 {{ font-size: 1.4rem }}"


class ExportError(OSError):
    """A figure cannot be written; one line that says what to do."""


def figures_html(figures: Mapping[str, go.Figure], title: str = "") -> str:
    """One page with several figures under their names; Plotly's script is in it (5 MB) once, nothing is fetched."""
    parts = [
        f"<h2>{html.escape(name)}</h2>" + figure.to_html(full_html=False, include_plotlyjs=False)
        for name, figure in figures.items()
    ]
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title or "Figures")}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head><body>{f'<h1>{html.escape(title)}</h1>' if title else ''}"
        f"{''.join(parts)}</body></html>"
    )


def save_html(figures: go.Figure | Mapping[str, go.Figure], path: str | Path, title: str = "") -> Path:
    """Write one figure, or several by name, as a page that holds all it needs.

    Raises:
        ExportError: the file cannot be written.
    """
    named = {"": figures} if isinstance(figures, go.Figure) else figures
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(figures_html(named, title).replace("<h2></h2>", ""), encoding="utf-8")
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def save_png(figure: go.Figure, path: str | Path, scale: float = 2.0) -> Path:
    """Write a figure as a PNG picture, drawn by Chromium or Chrome without a window.

    Args:
        scale: pixels of the picture per pixel of the figure.

    Raises:
        ExportError: there is no such browser, it failed, or the file cannot be written.
    """
    from codetr_lab.doctor import CHROMIUM_MEND, find_chromium

    browser = find_chromium()
    if not browser:
        raise ExportError(f"a PNG needs Chromium or Chrome; {CHROMIUM_MEND}, or write HTML instead")
    path = Path(path).absolute()
    width, height = int(figure.layout.width or 700), int(figure.layout.height or 450)
    still = go.Figure(figure)
    still.update_layout(width=width, height=height, paper_bgcolor="white")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        body = still.to_html(full_html=False, include_plotlyjs=True, config={"staticPlot": True})
        page.write_text(f'<meta charset="utf-8"><body style="margin:0">{body}</body>', encoding="utf-8")
        picture = Path(folder) / "figure.png"
        command: list[str] = [
            str(browser), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-dev-shm-usage",
            f"--user-data-dir={folder}/profile", f"--force-device-scale-factor={scale}",
            f"--window-size={width},{height}", "--virtual-time-budget=20000", f"--screenshot={picture}", page.as_uri(),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, env={**os.environ})
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ExportError(f"{browser} could not draw the figure: {error}") from error
        if not picture.exists():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ExportError(f"{browser} could not draw the figure: {last}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture.read_bytes())
        except OSError as error:
            raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
    return path
