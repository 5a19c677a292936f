"""The experiments' figures, from finished records (and, where pixels are shown, from the runs' models)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from codetr_lab.experiments.cell import Cell, Record
from codetr_lab.experiments.measure import IOB
from codetr_lab.experiments.statistics import Interval, by_seed, value
from codetr_lab.experiments.variants import VARIANTS
from codetr_lab.viz import colors
from codetr_lab.viz.charts import styled

if TYPE_CHECKING:
    from codetr_lab.experiments.catalog import Column, Experiment

SHOWN = 4
"""Images in Fig. 3."""
WHISKERS = 3
"""Seeds from which an interval is drawn: that of two is so wide (12.7 standard errors) that it hides all the others."""


def color(variant: str) -> str:
    """The variant's colour, the same in all figures."""
    return colors.head_color(VARIANTS[variant].color)


def _shown(experiment: Experiment, records: Sequence[Record]) -> list[str]:
    there = {r["variant"] for r in records}
    return [name for name in experiment.variants if name in there]


def dots(experiment: Experiment, records: Sequence[Record], cells: Sequence[Cell]) -> go.Figure:
    """One row per variant, of the table's first column."""
    column = experiment.columns[0]
    rows = {VARIANTS[name].title: (name, column, color(name)) for name in _shown(experiment, records)}
    return _dots(experiment, records, rows, column.title)


def heads(experiment: Experiment, records: Sequence[Record], cells: Sequence[Cell]) -> go.Figure:
    """One row per head and variant that has it: a column `ap_by_head.NAME` is that head's AP."""
    rows = {}
    for column in experiment.columns:
        head = column.path.removeprefix("ap_by_head.")
        for name in _shown(experiment, records):
            if by_seed(records, name, column.path):
                rows[f"{colors.head_title(head)}: {VARIANTS[name].title}"] = (name, column, colors.head_color(head))
    return _dots(experiment, records, rows, "AP of the head")


def _dots(
    experiment: Experiment, records: Sequence[Record], rows: Mapping[str, tuple[str, Column, str]], title: str
) -> go.Figure:
    """One row per variant, column and colour: a dot per seed, the mean, and its 95 % interval from `WHISKERS` seeds."""
    figure = go.Figure()
    for row, (name, column, shade) in reversed(list(rows.items())):
        values = [column.factor * v for v in by_seed(records, name, column.path).values()]
        interval = Interval.of(values)
        figure.add_scatter(
            x=values, y=[row] * len(values), mode="markers", showlegend=False,
            hovertemplate="%{x:.2f}<extra></extra>", marker={"color": shade, "size": 8, "opacity": 0.45},
        )  # fmt: skip
        figure.add_scatter(
            x=[interval.mean], y=[row], mode="markers", showlegend=False, hoverinfo="skip",
            marker={"color": shade, "size": 15, "symbol": "line-ns", "line": {"color": shade, "width": 3}},
            error_x={"type": "data", "array": [interval.half if interval.n >= WHISKERS else 0], "thickness": 2},
        )  # fmt: skip
    few = any(len(by_seed(records, name, column.path)) < WHISKERS for name, column, _ in rows.values())
    words = f"{title}: seeds, mean, 95 % interval{f' from {WHISKERS} seeds on' if few else ''}"
    styled(figure, words, "", f"{experiment.source}: {experiment.title}", 140 + 44 * len(rows))
    figure.update_yaxes(showgrid=False)
    return figure.update_layout(width=820)


def _lines(
    figure: go.Figure, records: Sequence[Record], name: str, curve: Callable[[Record], tuple[Any, Any] | None],
    row: int, column: int, legend: bool,
) -> None:  # fmt: skip
    """The mean over seeds as a line, with every seed thin behind it."""
    curves = [c for r in records if r["variant"] == name and (c := curve(r)) is not None]
    if not curves:
        return
    line = {"color": color(name), "dash": "dash" if name.startswith(("k0_x", "dense")) else "solid"}
    for x, y in curves if len(curves) > 1 else []:
        figure.add_scatter(
            x=x, y=y, mode="lines", line={**line, "width": 1}, opacity=0.3, showlegend=False, hoverinfo="skip",
            legendgroup=name, row=row, col=column,
        )  # fmt: skip
    shortest = min(len(x) for x, _ in curves)
    mean = np.mean([np.asarray(y[:shortest], dtype=float) for _, y in curves], axis=0)
    figure.add_scatter(
        x=curves[0][0][:shortest], y=mean, mode="lines", line={**line, "width": 3}, name=VARIANTS[name].title,
        legendgroup=name, showlegend=legend, row=row, col=column,
    )  # fmt: skip


def _panels(titles: Sequence[str], experiment: Experiment) -> go.Figure:
    figure = make_subplots(1, len(titles), subplot_titles=list(titles), horizontal_spacing=0.1)
    styled(figure, "", "", f"{experiment.source}: {experiment.title}", 460)
    return figure.update_layout(width=1000, margin={"l": 56, "r": 16, "t": 76})


def convergence(experiment: Experiment, records: Sequence[Record], cells: Sequence[Cell]) -> go.Figure:
    """AP over steps, and over time (steps times the measured cost of a step)."""
    figure = _panels(("equal steps", "equal time"), experiment)
    for name in _shown(experiment, records):
        pace = next((value(r, "pace.ms_per_step") for r in records if r["variant"] == name), None)
        for panel, scale in ((1, 1.0), (2, None if pace is None else pace / 1000)):

            def curve(r: Record, scale: float | None = scale) -> tuple[Any, Any] | None:
                points = r["convergence"]
                if scale is None:
                    return None
                return [0, *(scale * p["step"] for p in points)], [0, *(100 * p["ap"] for p in points)]

            _lines(figure, records, name, curve, 1, panel, panel == 1)
    figure.update_xaxes(title_text="training steps", row=1, col=1)
    figure.update_xaxes(title_text="seconds of training on one thread", row=1, col=2)
    figure.update_yaxes(title_text="AP", row=1, col=1)
    return figure.update_yaxes(rangemode="tozero")


def curves(experiment: Experiment, records: Sequence[Record], cells: Sequence[Cell]) -> go.Figure:
    """IoF over IoB: the encoder's features and the last decoder layer's attention."""
    figure = _panels(("encoder: D(F)", "decoder: last layer's attention of matched queries"), experiment)
    iob = IOB.tolist()
    for name in _shown(experiment, records):
        _lines(figure, records, name, lambda r: (iob, r["iof_iob_curve"]), 1, 1, True)
        _lines(figure, records, name, lambda r: (iob, r["attention"][-1]["curve"]) if r["attention"] else None, 1, 2,
               False)  # fmt: skip
    figure.update_xaxes(title_text="IoB: share of background below S", range=[0, 1])
    figure.update_yaxes(range=[0, 1.02])
    return figure.update_yaxes(title_text="IoF: share of foreground above S", row=1, col=1)


def instability(experiment: Experiment, records: Sequence[Record], cells: Sequence[Cell]) -> go.Figure:
    """IS over the training: of learned queries as in DN-DETR, and of two-stage queries by their encoder token."""
    panels = {"query": "learned queries, known by index", "token": "two-stage queries, known by encoder token"}
    figure = _panels(tuple(panels.values()), experiment)
    for name in _shown(experiment, records):
        for column, key in enumerate(panels, 1):

            def curve(r: Record, key: str = key) -> tuple[Any, Any] | None:
                found = r["instability"]
                if found is None or found["keyed_by"] != key:
                    return None
                return found["steps"], [100 * v / found["most_possible"] for v in found["values"]]

            _lines(figure, records, name, curve, 1, column, True)
    figure.update_xaxes(title_text="training steps")
    figure.update_yaxes(title_text="changed queries, % of possible", row=1, col=1)
    return figure.update_yaxes(range=[0, 100])


def distances(experiment: Experiment, records: Sequence[Record], cells: Sequence[Cell]) -> go.Figure:
    """Every head's average distance, one dot per head and seed, by number of heads."""
    figure = go.Figure()
    for name in _shown(experiment, records):
        for r in (r for r in records if r["variant"] == name):
            for head, distance in r["head_distances"].items():
                if distance is not None:
                    figure.add_scatter(
                        x=[f"K = {r['k']}"], y=[distance], mode="markers", name=colors.head_title(head),
                        legendgroup=head, marker={"color": colors.head_color(head), "size": 11, "opacity": 0.7},
                    )  # fmt: skip
    seen: set[str] = set()
    for trace in figure.data:
        trace.showlegend = trace.name not in seen
        seen.add(trace.name)
    styled(figure, "auxiliary heads", "average distance S_i (nats)", f"{experiment.source}: {experiment.title}", 440)
    return figure.update_layout(width=760)


def relation(experiment: Experiment, records: Sequence[Record], cells: Sequence[Cell]) -> go.Figure:
    """S_ij between all heads, mean over seeds."""
    from codetr_lab.viz.relation import relation_figure

    found = [r["relation"] for r in records if r["variant"] == experiment.variants[0]]
    heads = list(found[0])
    matrix = np.array([
        [np.mean([np.nan if m[i][j] is None else m[i][j] for m in found]) for j in heads] for i in heads
    ])  # fmt: skip
    figure = relation_figure(matrix, heads, unit="S_ij (nats)", title=f"{experiment.source}: {experiment.title}")
    return figure.update_layout(width=640)


def maps(experiment: Experiment, records: Sequence[Record], cells: Sequence[Cell]) -> go.Figure:
    """D(F) of the first images of the first seed, one column per variant, beside the images."""
    from codetr_lab.analysis import discriminability

    shown, models = _models(experiment, cells)
    columns = ["image", *(VARIANTS[name].title.replace(" (", "<br>(") for name in shown)]
    figure = make_subplots(SHOWN, len(columns), column_titles=columns, horizontal_spacing=0.01, vertical_spacing=0.01)
    if models:
        data, batch, targets = _first(cells, models[0])
        for row in range(SHOWN):
            figure.add_trace(go.Image(z=data.image(row)), row=row + 1, col=1)
        for column, model in enumerate(models, 2):
            size = (int(batch.pixels.shape[2]), int(batch.pixels.shape[3]))
            scores = discriminability(model.trace(batch).memory, size, batch.pad_mask)[:, 0].numpy()
            for row in range(SHOWN):
                heat = go.Heatmap(z=scores[row], colorscale="Viridis", showscale=False, hovertemplate="D %{z:.4f}")
                figure.add_trace(heat, row=row + 1, col=column)
                for x0, y0, x1, y1 in targets[row]["boxes"].tolist():
                    figure.add_shape(
                        type="rect", x0=x0, y0=y0, x1=x1, y1=y1, line={"color": "white", "width": 1}, row=row + 1,
                        col=column,
                    )  # fmt: skip
    styled(figure, "", "", f"{experiment.source}: {experiment.title}", 90 + 190 * SHOWN)
    figure.update_xaxes(visible=False).update_yaxes(visible=False, autorange="reversed", scaleanchor="x")
    return figure.update_layout(width=60 + 190 * len(columns), margin={"t": 90, "l": 8, "r": 8, "b": 8})


def positions(experiment: Experiment, records: Sequence[Record], cells: Sequence[Cell]) -> go.Figure:
    """Fig. 7a over many objects, each stretched to one square; and 7b, the mean distances."""
    from codetr_lab.analysis import relative_positions
    from codetr_lab.viz.relation import positions_figure

    figure = _panels(
        ("where queries start, each object stretched to the square", "mean distance of positives"), experiment
    )
    _, models = _models(experiment, cells)
    if models:
        _, batch, targets = _first(cells, models[0], 16)
        found = relative_positions(models[0].trace(batch, targets))
        for points in positions_figure({sort: at.numpy() for sort, at in found.items()}).data:
            figure.add_trace(points, row=1, col=1)
        figure.add_shape(
            type="rect", x0=-0.5, y0=-0.5, x1=0.5, y1=0.5, line={"color": "#009E73", "width": 2}, row=1, col=1
        )
        figure.update_xaxes(title_text="widths from the centre", range=[-1, 1], row=1, col=1)
        figure.update_yaxes(title_text="heights from the centre", range=[1, -1], scaleanchor="x", row=1, col=1)
    name = experiment.variants[0]
    heads = list(next((r["distances"] for r in records if r["variant"] == name), {}))
    for kind, pattern in (("positive", ""), ("negative", "/")):
        intervals = [
            Interval.of(list(by_seed(records, name, f"distances.{head}.positive.original {kind}").values()))
            for head in heads
        ]
        halves = [i.half if math.isfinite(i.half) else 0 for i in intervals]
        figure.add_bar(
            x=[f"{colors.head_title(h)}<br>to original<br>{kind}s" for h in heads], y=[i.mean for i in intervals],
            marker={"color": [colors.head_color(h) for h in heads], "pattern": {"shape": pattern}},
            error_y={"type": "data", "array": halves}, showlegend=False, row=1, col=2,
        )  # fmt: skip
    figure.update_xaxes(tickangle=0, tickfont={"size": 11}, row=1, col=2)
    return figure.update_yaxes(title_text="object sizes", row=1, col=2)


def _models(experiment: Experiment, cells: Sequence[Cell]) -> tuple[list[str], list[Any]]:
    """The first seed's models of the variants that are finished."""
    from codetr_lab.engine.checkpoint import load_model

    first: dict[str, Cell] = {}
    for cell in cells:
        if cell.record() is not None and (cell.folder / "model.safetensors").exists():
            first.setdefault(cell.variant.name, cell)
    shown = [name for name in experiment.variants if name in first]
    return shown, [load_model(first[name].folder).eval() for name in shown]


def _first(cells: Sequence[Cell], model: Any, count: int = SHOWN) -> tuple[Any, Any, Any]:
    from codetr_lab.data.transforms import batches

    data = cells[0].setting.dataset("val")
    stream = batches(
        data, model.config.image, model.config.recipe, batch_size=count, seed=0, epoch=0, train=False,
        masks=model.config.needs_masks,
    )  # fmt: skip
    return (data, *next(stream))


Draw = Callable[["Experiment", Sequence[Record], Sequence[Cell]], go.Figure]
FIGURES: Mapping[str, Draw] = {
    "dots": dots, "heads": heads, "convergence": convergence, "curves": curves, "instability": instability,
    "distances": distances, "relation": relation, "maps": maps, "positions": positions,
}  # fmt: skip
"""By the name in `Experiment.figure`."""
