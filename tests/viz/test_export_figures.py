"""Figures as files that need nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from codetr_lab import doctor
from codetr_lab.viz import curves_figure, save_html, save_png
from codetr_lab.viz.export import ExportError

FIGURE = curves_figure({"a": ([0, 1], [0, 1])}, "x", "y")


def test_a_page_holds_everything_once(tmp_path: Path) -> None:
    path = save_html({"One <b>": FIGURE, "Two": FIGURE}, tmp_path / "new" / "page.html", title="Both")
    text = path.read_text(encoding="utf-8")
    assert 4_000_000 < len(text) < 6_000_000
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text)
    assert text.count("Plotly.newPlot(") >= 2
    assert "One &lt;b&gt;" in text and "<h1>Both</h1>" in text
    assert "<h2></h2>" not in save_html(FIGURE, tmp_path / "one.html").read_text(encoding="utf-8")


def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot write .*file/page.html"):
        save_html(FIGURE, tmp_path / "file" / "page.html")
    monkeypatch.setattr(doctor, "find_chromium", lambda: None)
    with pytest.raises(ExportError, match="needs Chromium or Chrome"):
        save_png(FIGURE, tmp_path / "a.png")


@pytest.mark.browser
def test_a_picture_has_the_figures_size(tmp_path: Path) -> None:
    if not doctor.find_chromium():
        pytest.skip("Chromium not found")
    FIGURE.update_layout(width=300, height=200)
    with Image.open(save_png(FIGURE, tmp_path / "a.png", scale=1)) as picture:
        assert picture.size == (300, 200)
        assert len(picture.convert("RGB").getcolors(100_000)) > 10
