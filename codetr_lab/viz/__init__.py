"""Plotly figures from plain data: arrays and the nouns of `codetr_lab.structures`.

Nothing here runs a model. Figures are ordinary `plotly.graph_objects.Figure`s: `figure.show()` in a notebook,
`figure.write_html(path)` for a page that opens anywhere.
"""

from codetr_lab.viz.assignment import assignment_figure
from codetr_lab.viz.charts import curves_figure, positives_bar
from codetr_lab.viz.colors import HEAD_COLORS, head_color, head_title
from codetr_lab.viz.detections import detection_figure, detections_figure
from codetr_lab.viz.image import image_figure, object_names, side_by_side

__all__ = [
    "HEAD_COLORS",
    "assignment_figure",
    "curves_figure",
    "detection_figure",
    "detections_figure",
    "head_color",
    "head_title",
    "image_figure",
    "object_names",
    "positives_bar",
    "side_by_side",
]
