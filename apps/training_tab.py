"""The tab Conflicts and training: how a run goes, and how far a model's heads are apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.components import Component

from apps import style
from apps.bench import Bench
from apps.picture import Picture
from apps.plot import Panel, figure_grid, panels_json
from apps.runs import Run, find_runs, read
from apps.tab import Tab, models_choice
from codetr_lab.analysis import AnalysisError, average_distances
from codetr_lab.analysis.instability import curve
from codetr_lab.viz import bars_figure, colors, curves_figure, losses_figure, metrics_figure, relation_figure

INTRO = (
    "While a detector learns, its losses fall, its matching settles (instability counts queries that change their "
    "object), and its heads may pull the encoder in different directions. The matrix says how differently two heads "
    "look at the same images: the larger the distance, the more their objectives conflict."
)
EQUATION = (
    "S<sub>i,j</sub> = mean over images of KL( C(H<sub>i</sub>(I)), C(H<sub>j</sub>(I)) ), Eq. 9, with C the class "
    "activation map; the curves are Fig. 5, the matrix is the supplement's Fig. 1."
)
SECONDS = 5


class TrainingTab(Tab):
    """Curves of a run, and the relation matrix of a model.

    Args:
        bench: models and data.
        start: the model shown first.
        root: a run's folder, or a folder of runs; None for none.
    """

    name, title = "training", "Conflicts and training"

    def __init__(self, bench: Bench, start: str, root: Path | None) -> None:
        super().__init__(bench)
        self.root = root
        runs = list(find_runs(root)) if root else []
        gr.HTML(style.intro(INTRO, EQUATION, "07_instability_and_conflicts", "04_train_and_compare"))
        with gr.Row():
            with gr.Column(scale=1, min_width=250):
                run = gr.Dropdown(
                    [(name, name) for name in runs], value=runs[0] if runs else None, label="Run", visible=bool(runs),
                    elem_id="training-run",
                )  # fmt: skip
                metric = gr.Radio(
                    [(m, m) for m in ("AP", "AP50", "AP75")], value="AP", label="Evaluation", visible=bool(runs),
                    elem_id="training-metric",
                )  # fmt: skip
                self.words = gr.HTML(elem_id="training-words")
                model = gr.Dropdown(
                    models_choice(bench), value=start, label="Model whose heads are compared", elem_id="training-model"
                )
                count = len(bench.dataset)
                self.images = gr.Slider(
                    1, min(64, max(2, count)), value=min(8, count), step=1, label="First images",
                    elem_id="training-images",
                )  # fmt: skip
                self.compare = gr.Button("Compare on these images", size="sm", elem_id="training-compare")
            with gr.Column(scale=4, min_width=300):
                self.grid = figure_grid("Curves of the run", 320, elem_id="training-grid")
                self.told = gr.HTML(elem_id="training-told")
                self.relations = figure_grid("Distances between heads", 320, elem_id="training-relations")
        self.timer = gr.Timer(SECONDS, active=False)
        self.controls = {"run": run, "metric": metric, "model": model}
        self.renewing = ("model",)
        self.outputs = [self.grid, self.relations, self.told, self.words, self.timer]
        self.compare.click(
            self.compared, [model, self.images], [self.relations, self.told], api_visibility="private",
            concurrency_limit=1, trigger_mode="once",
        )  # fmt: skip

    def show(self, picture: Picture, values: dict[str, Any], fresh: bool) -> dict[Component, Any]:
        """See `Tab.show`. While a run goes on, the page asks again every few seconds."""
        return self._curves(values, fresh) | (self._heads(values["model"], picture) if fresh else {})

    def _heads(self, model: str, picture: Picture) -> dict[Component, Any]:
        """The distances between the heads on the present image alone."""
        if not len(self.bench.seen(model, picture).target["boxes"]):
            words = "Heads are compared by where they see the objects, and this image has none: draw one."
            return {self.relations: "[]", self.told: style.hint(words)}
        return self._compared(model, [picture], lambda share: None)

    def _compared(self, model: str, pictures: list[Picture], progress: Callable[[float], None]) -> dict[Component, Any]:
        """The relation matrix, or why there is none."""
        title, heads = self.bench.titles[model], self.bench.heads(model)
        if len(heads) < 2:
            words = (
                f"{title} has one head, the {colors.head_title(heads[0])}: a conflict needs two. Choose another model."
            )
            return {self.relations: "[]", self.told: style.hint(words)}
        try:
            matrix = self.bench.relation(model, pictures, progress)
        except AnalysisError as error:
            return {self.relations: "[]", self.told: style.hint(f"{title}: {error}")}
        panels = relation_panels(matrix.matrix(), title, len(pictures))
        return {self.relations: panels_json(panels), self.told: ""}

    def _curves(self, values: dict[str, Any], fresh: bool) -> dict[Component, Any]:
        runs = find_runs(self.root) if self.root else {}
        if values["run"] not in runs:
            words = "To see a run's curves, start with: codetr demo --run runs/my_run (or a folder of runs)."
            return {self.grid: "[]", self.words: style.hint(words), self.timer: gr.Timer(active=False)}
        run = read(runs[values["run"]])
        changes: dict[Component, Any] = {
            self.grid: panels_json(run_panels(run, values["metric"])), self.timer: gr.Timer(active=not run.finished),
        }  # fmt: skip
        last = run.records[-1]["step"] if run.records else 0
        state = "finished" if run.finished else f"going on or stopped; looked at every {SECONDS} seconds"
        changes[self.words] = style.hint(f"Step {last}; {state}.")
        if fresh:
            changes[self.controls["run"]] = gr.Dropdown([(name, name) for name in runs], visible=True)
        return changes

    def compared(
        self,
        model: str,
        images: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> dict[Component, Any]:
        """The relation matrix of a model on the first images of the data set."""
        pictures = [Picture(index) for index in range(min(int(images), len(self.bench.dataset)))]
        return self._compared(model, pictures, lambda share: progress(share, desc="Grad-CAM of every head"))


def run_panels(run: Run, metric: str) -> list[Panel]:
    """Losses, evaluation, instability and positives of a run; what it does not hold is left out."""
    panels = []
    if any("losses" in record for record in run.records):
        panels.append(Panel("losses", "Losses", losses_figure(run.records), "dashed: the auxiliary heads' own"))
    if any("metrics" in record for record in run.records):
        note = "on held-out images, 1 is perfect"
        panels.append(Panel("metrics", f"Evaluation: {metric}", metrics_figure(run.records, metric), note))
    if len(run.looks) > 1:
        steps, values = curve(run.looks)
        figure = curves_figure(
            {"original queries": (steps, values)}, "training step", "queries per image that changed",
            line_colors={"original queries": colors.head_color("original")},
        )  # fmt: skip
        panels.append(Panel("instability", "Instability of the matching", figure, "between one look and the next"))
    if run.looks:
        heads = list(dict.fromkeys(head for look in run.looks for head in look.positives))
        curves = {
            colors.head_title(head): (
                [look.step for look in run.looks], [look.positives.get(head, float("nan")) for look in run.looks]
            )
            for head in heads
        }  # fmt: skip
        shades = {colors.head_title(head): colors.head_color(head) for head in heads}
        figure = curves_figure(curves, "training step", "positives per object", line_colors=shades)
        panels.append(Panel("positives", "Positives per object", figure, "by head"))
    return panels


def relation_panels(matrix: dict[str, dict[str, float]], title: str, images: int) -> list[Panel]:
    """The matrix and, with two heads or more, the average distance of every auxiliary head."""
    names = list(matrix)
    table = np.array([[matrix[i][j] for j in names] for i in names])
    note = f"{title}, mean over {images} image{'' if images == 1 else 's'}; row to column, in nats"
    panels = [Panel("relation", "Distances between heads", relation_figure(table, names, unit="KL divergence"), note)]
    try:
        averages = average_distances(matrix)
    except AnalysisError:  # one head alone
        return panels
    bars = {colors.head_title(head): value for head, value in averages.items()}
    shades = {colors.head_title(head): colors.head_color(head) for head in averages}
    figure = bars_figure(bars, "average distance (nats)", bar_colors=shades)
    return [*panels, Panel("averages", "Average distance of a head", figure, "S_i of Eq. 10")]
