"""Curves that are drawn while the models train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from codetr_lab.viz.training import runs_figure

if TYPE_CHECKING:
    from codetr_lab.models.codetr import CoDETR


class TrainingWatch:
    """Losses and AP of several runs in one figure, which is drawn anew as they train, cell after cell.

    In a notebook: `train(..., out=folder, observers=[watch.run("K = 0", folder)])`. The figure is an ordinary output
    that replaces itself. A widget would have to ask the kernel for its content, and the kernel is busy training; and
    what is saved with the notebook is simply the last state.

    Args:
        title: one line above the figure.
        every: steps between drawings; runs should log as often (`TrainOptions.log_every`).
    """

    def __init__(self, title: str = "", every: int = 10) -> None:
        self.title, self.every = title, every
        self.folders: dict[str, Path] = {}
        self._shown: Any = None

    def run(self, name: str, folder: str | Path) -> Callable[[CoDETR, int], None]:
        """The observer that shows one more run, whose folder is the `out` of `train`, in a figure of this cell."""
        self.folders[name], self._shown = Path(folder), None

        def observe(_: CoDETR, step: int) -> None:
            if step % self.every == 0:
                self.show()

        return observe

    def figure(self) -> go.Figure:
        """The curves as they are now."""
        from codetr_lab.engine.records import read_metrics  # drawing alone needs no training

        return runs_figure({name: read_metrics(folder) for name, folder in self.folders.items()}, title=self.title)

    def show(self) -> None:
        """Display the figure, in place of the one that this run showed before."""
        from IPython.display import display

        content = {"application/vnd.plotly.v1+json": self.figure().to_plotly_json(), "text/plain": "a figure"}
        if self._shown is None:
            self._shown = display(content, raw=True, display_id=True)
        else:
            self._shown.update(content, raw=True)
