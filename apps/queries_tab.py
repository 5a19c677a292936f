"""The tab Queries: where queries start, how far apart they are, and one query's way through the decoder."""

from __future__ import annotations

import math
from typing import Any

import gradio as gr
from gradio.components import Component

from apps import style
from apps.bench import Bench, Seen
from apps.picture import Picture
from apps.plot import Panel, figure_grid, panels_json
from apps.tab import Tab, models_choice
from codetr_lab.analysis import query_distances
from codetr_lab.structures import QUERY_KINDS
from codetr_lab.viz import colors, distances_figure, object_names, query_figure, sampling_figure
from codetr_lab.viz.queries import refinement

ALL = -1
INTRO = (
    "A query is a guess that the decoder refines layer by layer; the original ones come from the encoder's best "
    "tokens, the customized positive ones from the positives of the auxiliary heads, so that each of them is known to "
    "have an object. Click a query to see which points of the image it reads, and how its box moves."
)
EQUATION = (
    "Q<sub>i</sub> = Linear(PE(B<sub>i</sub><sup>pos</sup>)) + Linear(E({F<sub>*</sub>}, {pos})), Eq. 4; the map is "
    "Fig. 7a, the distances are Fig. 7b."
)


class QueriesTab(Tab):
    """The map of all queries, one query's look, and the distances.

    Args:
        bench: models and data.
        start: the model shown first.
    """

    name, title = "queries", "Queries"

    def __init__(self, bench: Bench, start: str) -> None:
        super().__init__(bench)
        config = bench.models[start].config.transformer
        gr.HTML(style.intro(INTRO, EQUATION, "06_queries_and_attention", "09_deformable_attention"))
        with gr.Row():
            with gr.Column(scale=1, min_width=250):
                model = gr.Dropdown(models_choice(bench), value=start, label="Model", elem_id="queries-model")
                thing = gr.Dropdown(
                    [("all objects", ALL)], value=ALL, label="Object", elem_id="queries-object",
                    elem_classes="open-choice",
                )  # fmt: skip
                group = gr.Radio(self._groups(start), value="original", label="Group", elem_id="queries-group")
                query = gr.Number(0, precision=0, minimum=0, label="Query number", elem_id="queries-query")
                layer = gr.Slider(
                    1, max(2, config.decoder_layers), value=1, step=1, label="Decoder layer", elem_id="queries-layer"
                )
                head = gr.Slider(
                    0, config.heads, value=0, step=1, label="Attention head (0: all)", elem_id="queries-head"
                )
                level = gr.Dropdown(self._levels(start), value=ALL, label="Level", elem_id="queries-level")
            with gr.Column(scale=4, min_width=300):
                self.grid = figure_grid("Queries on the image", 260, elem_id="queries-grid")
                self.table = gr.HTML(elem_id="queries-table")
        self.controls = {
            "model": model, "object": thing, "group": group, "query": query, "layer": layer, "head": head,
            "level": level,
        }  # fmt: skip
        self.renewing = ("model",)
        self.outputs = [self.grid, self.table]

    def _groups(self, model: str) -> list[tuple[str, str]]:
        own = self.bench.models[model]
        return [(colors.head_title(name), name) for name in ("original", *own.customizers)]

    def _levels(self, model: str) -> list[tuple[str, int]]:
        own = self.bench.models[model]
        return [("all levels", ALL), *((f"stride {s}", i) for i, s in enumerate(own.strides[: len(own.neck.strides)]))]

    def show(self, picture: Picture, values: dict[str, Any], fresh: bool) -> dict[Component, Any]:
        """See `Tab.show`."""
        model = values["model"]
        seen = self.bench.seen(model, picture)
        if not seen.trace.groups:
            words = f"{self.bench.titles[model]} has no decoder, and so no queries."
            return {self.grid: "[]", self.table: style.warning(words)}
        names = object_names(seen.target, self.bench.classes)
        changes = self._renew(model, values, names) if fresh else {}
        groups, target = seen.trace.groups, seen.target
        known = target if len(names) else None
        shown = {name: groups[name] for name in ("original", *self.bench.models[model].customizers) if name in groups}
        chosen = values["object"] if 0 <= values["object"] < len(names) else None
        group = shown.get(values["group"], shown["original"])
        layer = min(int(values["layer"]), len(group.logits)) - 1
        query = int(values["query"] or 0)
        size, config = seen.scene.size, self.bench.models[model].config
        valid = 0 <= query < group.kind.shape[1]
        everything = query_figure.sketch(
            seen.scene.image, shown, size, layer=layer, target=known, classes=self.bench.classes, object_index=chosen,
            selected=(group.name, query) if valid else None,
        )  # fmt: skip
        counts = ", ".join(f"{g.kind.shape[1]} of {colors.head_title(name)}" for name, g in shown.items())
        panels = [Panel("map", f"What layer {layer + 1} reads", everything, counts, backdrop=seen.backdrop)]
        if valid:
            level = values["level"] if values["level"] < len(seen.trace.memory) else ALL
            head = min(int(values["head"]), config.transformer.heads) - 1
            one = sampling_figure.sketch(
                seen.scene.image, group, query, layer, size, seen.scene.padded, head=None if head < 0 else head,
                level=None if level == ALL else level, strides=self.bench.models[model].strides, target=known,
            )  # fmt: skip
            kind = "original" if group.name == "original" else QUERY_KINDS[int(group.kind[0, query])]
            note = f"{kind} query; the larger a point, the more attention it gets"
            words = f"{colors.head_title(group.name)} query {query}"
            panels.append(Panel("look", words, one, note, colors.head_color(group.name), seen.backdrop))
        if known is not None:
            panels += self._distances(model, picture)
        changes |= {self.grid: panels_json(panels)}
        if not valid:
            words = f"There is no query {query}; this group has 0 to {group.kind.shape[1] - 1}."
            return changes | {self.table: style.warning(words)}
        return changes | {self.table: self._story(seen, group.name, query, names)}

    def _renew(self, model: str, values: dict[str, Any], names: list[str]) -> dict[Component, Any]:
        own, groups = self.bench.models[model], self._groups(model)
        if values["object"] not in range(len(names)):
            values["object"] = ALL
        if values["group"] not in [name for _, name in groups]:
            values["group"] = "original"
        layers = own.config.transformer.decoder_layers
        values["layer"] = min(values["layer"], layers)
        objects = [("all objects", ALL), *((name, i) for i, name in enumerate(names))]
        return {
            self.controls["object"]: gr.Dropdown(objects, value=values["object"]),
            self.controls["group"]: gr.Radio(groups, value=values["group"]),
            self.controls["layer"]: gr.Slider(maximum=max(2, layers), value=values["layer"]),
            self.controls["head"]: gr.Slider(maximum=own.config.transformer.heads),
            self.controls["level"]: gr.Dropdown(self._levels(model)),
        }

    def _distances(self, model: str, picture: Picture) -> list[Panel]:
        """Fig. 7b for this image."""
        trace = self.bench.seen(model, picture).trace
        found = self.bench.remembered(("distances", model, picture.key), lambda: query_distances(trace))
        distances = {head: kinds for head, kinds in found.items() if head not in colors.EXTRA_GROUPS}
        if not distances:
            return []
        note = "from customized positive to original queries; 1 is the object's width or height"
        return [Panel("distances", "Distances", distances_figure.sketch(distances), note)]

    @staticmethod
    def _story(seen: Seen, name: str, query: int, objects: list[str]) -> str:
        group = seen.trace.groups[name]
        rows = []
        for layer, row in enumerate(refinement(group, query, seen.scene.size, seen.target), 1):
            owner = objects[int(row["object"])] if row["object"] >= 0 else "none"
            iou = "-" if math.isnan(row["iou"]) else f"{row['iou']:.3f}"
            rows.append([str(layer), f"{row['score']:.3f}", iou, owner])
        what = "matched to" if name == "original" else "given"
        head = ["decoder layer", "score", "IoU with the object it ends on", what]
        return style.plain_table(f"{colors.head_title(name)} query {query}, layer by layer", head, rows)

    def picked(self, values: dict[str, Any], group: str, query: int) -> dict[Component, Any]:
        """A query was clicked: its group and number become the controls' values."""
        values |= {"group": group, "query": query}
        return {self.controls["group"]: group, self.controls["query"]: query}
