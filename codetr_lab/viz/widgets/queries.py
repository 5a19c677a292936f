"""Where queries start and where one of them looks: `QueryExplorer(model, image, target)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets
import numpy as np
import plotly.graph_objects as go

from codetr_lab.analysis.scene import make_scene
from codetr_lab.structures import Target
from codetr_lab.viz.colors import head_title
from codetr_lab.viz.image import side_by_side
from codetr_lab.viz.queries import query_figure, refinement, sampling_figure
from codetr_lab.viz.widgets.explorer import Explorer, choice, say, words

if TYPE_CHECKING:
    from codetr_lab.models.codetr import CoDETR


class QueryExplorer(Explorer):
    """All queries of one image (Fig. 7a), and one query's sampling points in a decoder layer.

    Args:
        model: with a decoder.
        image: (H,W,3) uint8 RGB.
        target: its objects, in its own pixels.

    Raises:
        ValueError: the model has no decoder.
    """

    def __init__(self, model: CoDETR, image: np.ndarray, target: Target) -> None:
        self.model, self.scene = model, make_scene(image, target, model.config.image)
        self.trace = model.trace(self.scene.batch, [self.scene.target or target])
        if not self.trace.groups:
            raise ValueError("the model has no decoder, so it has no queries to explore")
        groups = self.trace.groups
        layers = model.config.transformer.decoder_layers
        name, original = next(iter(groups.items()))
        matched = original.assignments[-1][0].positive.nonzero().flatten().tolist() if original.assignments else []
        self.group = choice("Group", [(head_title(n), n) for n in groups], name)
        self.query = ipywidgets.BoundedIntText(
            matched[0] if matched else 0, min=0, max=original.kind.shape[1] - 1, description="Query"
        )
        self.layer = choice("Decoder layer", [(str(i + 1), i) for i in range(layers)], 0)
        self.head = choice(
            "Attention head", [("all", -1), *((str(i + 1), i) for i in range(model.config.transformer.heads))], -1
        )
        self.story = words()
        self.group.observe(self._other_group, "value")
        self.finish([[self.group, self.query, self.layer, self.head]], [self.story])
        self.figure.clicked = self._clicked

    def _other_group(self, _: object) -> None:
        count = self.trace.groups[self.group.value].kind.shape[1]
        self.query.max = count - 1

    def draw(self) -> go.Figure:
        """The map of all queries, and the chosen one's look."""
        group = self.trace.groups[self.group.value]
        query = min(self.query.value, group.kind.shape[1] - 1)
        scene, layer = self.scene, self.layer.value
        everything = query_figure(
            scene.image, self.trace.groups, scene.size, layer=layer, target=scene.target,
            classes=self.model.config.classes, selected=(self.group.value, query),
        )  # fmt: skip
        one = sampling_figure(
            scene.image, group, query, layer, scene.size, scene.padded, head=None if self.head.value < 0 else
            self.head.value, strides=self.model.strides, target=scene.target,
        )  # fmt: skip
        return side_by_side({f"What layer {layer + 1} reads": everything, f"Where query {query} looks": one})

    def listen(self) -> None:
        """Tell how the query's box moved."""
        group = self.trace.groups[self.group.value]
        query = min(self.query.value, group.kind.shape[1] - 1)
        rows = refinement(group, query, self.scene.size, self.scene.target)
        steps = [f"layer {i + 1}: score {r['score']:.2f}, IoU {r['iou']:.2f}" for i, r in enumerate(rows)]
        say(self.story, f"{head_title(self.group.value)} query {query}. " + "; ".join(steps) + ".")

    def _clicked(self, trace: go.Figure, row: list[float]) -> None:
        if trace.meta and "group" in trace.meta:
            self.group.value = trace.meta["group"]
            self.query.value = int(row[0])
