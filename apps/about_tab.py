"""The tab About this model: its flow, drawn from its own configuration."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from apps import style
from apps.bench import Bench
from apps.picture import Picture
from apps.plot import Panel, figure_grid, panels_json
from apps.tab import Tab, models_choice
from codetr_lab.models.config import to_json
from codetr_lab.models.meta import part_sizes
from codetr_lab.viz import flow_figure
from codetr_lab.viz.flow import count

INTRO = (
    "The whole detector from left to right, drawn from the loaded model's own configuration: what every part makes, "
    "and how many parameters it has. Dashed parts exist only in training, so that Co-DETR costs no more at test time."
)
EQUATION = (
    "L = Σ<sub>l</sub> ( L<sub>dec,l</sub> + λ<sub>1</sub> Σ<sub>i</sub> L<sub>dec,i,l</sub> + λ<sub>2</sub> "
    "L<sub>enc</sub> ), Eq. 6; the figure is the paper's Fig. 4."
)


class AboutTab(Tab):
    """The flow figure and the configuration.

    Args:
        bench: models and data.
        start: the model shown first.
    """

    name, title = "about", "About this model"

    def __init__(self, bench: Bench, start: str) -> None:
        super().__init__(bench)
        gr.HTML(style.intro(INTRO, EQUATION, "03_inside_co_detr", "10_reading_the_release"))
        model = gr.Dropdown(models_choice(bench), value=start, label="Model", elem_id="about-model")
        self.grid = figure_grid("The flow of the model", 900, elem_id="about-grid")
        self.facts = gr.HTML(elem_id="about-facts")
        self.controls, self.outputs = {"model": model}, [self.grid, self.facts]

    def show(self, picture: Picture, values: dict[str, Any], fresh: bool) -> dict[Component, Any]:
        """See `Tab.show`."""
        name = values["model"]
        model, seen = self.bench.models[name], self.bench.seen(name, picture)
        sizes = part_sizes(model)
        figure = flow_figure(model.config, sizes, model.strides, seen.scene.size)
        note = f"{count(sum(p.numel() for p in model.parameters()))} parameters in all, at the present image's size"
        config = model.config
        rows = [
            ["name", name], ["preset", config.preset],
            ["classes", ", ".join(config.classes) or str(config.num_classes)],
            ["auxiliary heads (K)", ", ".join(config.aux_heads) or "none"], ["queries", str(config.num_queries)],
            ["λ1, λ2", f"{config.lambda_1:g}, {config.lambda_2:g}"],
        ]  # fmt: skip
        facts = style.plain_table("In short", ["", ""], rows)
        facts += f"<details><summary>The whole configuration</summary><pre>{escape(to_json(config))}</pre></details>"
        return {self.grid: panels_json([Panel("flow", self.bench.titles[name], figure, note)]), self.facts: facts}
