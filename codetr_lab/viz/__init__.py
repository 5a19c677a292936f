"""Plotly figures from plain data: arrays and the nouns of `codetr_lab.structures`.

Nothing here runs a model, except the notebook explorers, which trace the one that they are given. Figures are ordinary
`plotly.graph_objects.Figure`s: `figure.show()` in a notebook, `save_html(figure, path)` for a page that opens anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codetr_lab.viz.assignment import assignment_figure
from codetr_lab.viz.cells import cells_figure
from codetr_lab.viz.charts import curves_figure, grouped_bars_figure, positives_bar
from codetr_lab.viz.colors import HEAD_COLORS, head_color, head_title
from codetr_lab.viz.detections import detection_figure, detections_figure
from codetr_lab.viz.export import save_html, save_png
from codetr_lab.viz.flow import flow_figure
from codetr_lab.viz.image import image_figure, object_names, side_by_side
from codetr_lab.viz.levels import levels_figure, votes_figure
from codetr_lab.viz.live import TrainingWatch
from codetr_lab.viz.queries import layers_figure, query_figure, refinement, sampling_figure
from codetr_lab.viz.relation import bars_figure, distances_figure, positions_figure, relation_figure
from codetr_lab.viz.score_map import iof_iob_figure, mask_figure, score_map_figure
from codetr_lab.viz.training import losses_figure, metrics_figure, runs_figure
from codetr_lab.viz.verdicts import verdict_figure

if TYPE_CHECKING:
    from codetr_lab.viz.widgets import AssignmentExplorer, DiscriminabilityExplorer, HeadComparison, QueryExplorer

_WIDGETS = ("AssignmentExplorer", "DiscriminabilityExplorer", "HeadComparison", "QueryExplorer")

__all__ = [
    "HEAD_COLORS",
    "AssignmentExplorer",
    "DiscriminabilityExplorer",
    "HeadComparison",
    "QueryExplorer",
    "TrainingWatch",
    "assignment_figure",
    "bars_figure",
    "cells_figure",
    "curves_figure",
    "detection_figure",
    "detections_figure",
    "distances_figure",
    "flow_figure",
    "grouped_bars_figure",
    "head_color",
    "head_title",
    "image_figure",
    "iof_iob_figure",
    "layers_figure",
    "levels_figure",
    "losses_figure",
    "mask_figure",
    "metrics_figure",
    "object_names",
    "positions_figure",
    "positives_bar",
    "query_figure",
    "refinement",
    "relation_figure",
    "runs_figure",
    "sampling_figure",
    "save_html",
    "save_png",
    "score_map_figure",
    "side_by_side",
    "verdict_figure",
    "votes_figure",
]


def __getattr__(name: str) -> Any:
    """The explorers are loaded on first use: they need the notebooks' packages."""
    if name not in _WIDGETS:
        raise AttributeError(f"module 'codetr_lab.viz' has no attribute {name!r}")
    try:
        from codetr_lab.viz import widgets
    except ModuleNotFoundError as error:
        raise ImportError(f'{name} needs {error.name}; install it with pip install -e ".[notebooks]"') from error
    return getattr(widgets, name)
