"""The detector as a flow chart, drawn from a model's own configuration: what each part makes, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from codetr_lab.models.config import CoDETRConfig
from codetr_lab.viz import colors
from codetr_lab.viz.image import FONT

_GREY, _BLUE = colors.TEXT, colors.head_color("original")


@dataclass(frozen=True)
class Part:
    """One box of the chart.

    Attributes:
        title, words: what it is, and what comes out of it (`<br>` between lines).
        parameters: how many it has; 0 for none.
        column, row: where it stands; `rows` below one another that it spans.
        training: it exists only in training.
    """

    title: str
    words: str
    column: int
    row: int = 0
    rows: int = 1
    parameters: int = 0
    color: str = _GREY
    training: bool = False


Arrow = tuple[str, str]


def count(number: int) -> str:
    """A number of parameters for people: 712 k, 47.3 M."""
    if number >= 1e6:
        return f"{number / 1e6:.1f} M"
    return f"{number / 1e3:.0f} k" if number >= 1000 else str(number)


def model_parts(
    config: CoDETRConfig, parameters: Mapping[str, int], strides: Sequence[int], image: tuple[int, int]
) -> tuple[dict[str, Part], list[Arrow]]:
    """The boxes and arrows of a model.

    Args:
        config: the model's.
        parameters: number of parameters by the model's top-level parts (`backbone`, `neck`, ..., `heads.atss`).
        strides: pixels per cell of every pyramid level.
        image: (height, width) that shapes are told for.
    """
    shape, levels = config.transformer, len(config.backbone.out_indices) + config.transformer.extra_levels
    decoder, k = shape.decoder_layers > 0, len(config.aux_heads)
    cells = [(-(-image[0] // s), -(-image[1] // s)) for s in strides]
    grids = "<br>".join(_rows([f"{h} x {w}" for h, w in cells[:levels]], 2))
    tokens = sum(h * w for h, w in cells[:levels])

    def own(name: str) -> int:
        return parameters.get(name, 0)

    parts = {
        "image": Part("image", f"3 x {image[0]} x {image[1]}", 0),
        "backbone": Part("backbone", config.backbone.name, 1, parameters=own("backbone")),
        "neck": Part("neck", f"{shape.hidden_dim} channels<br>{grids}", 2, parameters=own("neck")),
        "encoder": Part(
            f"encoder, {shape.encoder_layers} layers", f"memory F<br>{tokens:,} tokens", 3, parameters=own("encoder")
        ),
    }
    arrows = [("image", "backbone"), ("backbone", "neck"), ("neck", "encoder")]
    if decoder:
        parts |= {
            "selection": Part("query selection", "the best tokens", 4, parameters=own("selection"), color=_BLUE),
            "queries": Part("queries Q_0", f"{config.num_queries} original", 5, color=_BLUE),
            "decoder": Part(
                f"decoder, {shape.decoder_layers} layers", "one pass<br>over all groups", 6, rows=k + 1,
                parameters=own("decoder"), color=_BLUE,
            ),
            "loss": Part("Hungarian match", "one query per<br>object: L_dec", 7, color=_BLUE, training=True),
        }  # fmt: skip
        arrows += [("encoder", "selection"), ("selection", "queries"), ("queries", "decoder"), ("decoder", "loss")]
    if k:
        grids = "<br>".join(_rows([f"{h} x {w}" for h, w in cells], 2))
        parts["pyramid"] = Part("pyramid", f"F_1 to F_{len(strides)}<br>{grids}", 3, 1, k, own("pyramid"),
                                training=decoder)  # fmt: skip
        arrows.append(("encoder", "pyramid"))
    for row, name in enumerate(_numbered(config.aux_heads), 1):
        color, title = colors.head_color(name), colors.head_title(name)
        words = "its own assignment<br>and loss L_enc"
        parts[name] = Part(f"{title} head", words, 4, row, 1, own(f"heads.{name}"), color, decoder)
        arrows.append(("pyramid", name))
        if decoder:
            words = f"its positives,<br>{config.queries.minimum} to {config.queries.maximum}"
            parts[f"queries.{name}"] = Part(
                f"queries Q_{row}", words, 5, row, 1, own(f"customizers.{name}"), color, True
            )
            parts[f"loss.{name}"] = Part("no match", f"targets are<br>known: L_dec_{row}", 7, row, 1, 0, color, True)
            arrows += [(name, f"queries.{name}"), (f"queries.{name}", "decoder"), ("decoder", f"loss.{name}")]
    return parts, arrows


def _numbered(heads: Sequence[str]) -> list[str]:
    """Repeats get numbers, as the model names them: atss, atss_2."""
    before = [heads[:i].count(name) for i, name in enumerate(heads)]
    return [name if not n else f"{name}_{n + 1}" for name, n in zip(heads, before, strict=True)]


def _rows(words: Sequence[str], most: int) -> list[str]:
    return [", ".join(words[i : i + most]) for i in range(0, len(words), most)]


_WIDTH, _HEIGHT, _ACROSS, _DOWN = 132, 88, 149, 112
"""Pixels: a box, and the distance between neighbours."""


def flow_figure(
    config: CoDETRConfig,
    parameters: Mapping[str, int],
    strides: Sequence[int],
    image: tuple[int, int] | None = None,
    title: str = "",
) -> go.Figure:
    """The flow of a model from left to right; what exists only in training is dashed. Arguments as in `model_parts`."""
    parts, arrows = model_parts(config, parameters, strides, image or (config.image.short, config.image.short))
    shapes: list[dict[str, object]] = []
    notes: list[dict[str, object]] = []
    for part in parts.values():
        x0, x1, y0, y1 = _sides(part)
        line = {"color": part.color, "width": 2, "dash": "dash" if part.training else "solid"}
        red, green, blue = colors.rgb(part.color)
        shapes.append(
            {"type": "rect", "x0": x0, "x1": x1, "y0": y0, "y1": y1, "line": line, "layer": "below",
             "fillcolor": f"rgba({red},{green},{blue},0.12)"}
        )  # fmt: skip
        size = f"<br><i>{count(part.parameters)} parameters</i>" if part.parameters else ""
        text = f"<b>{part.title}</b><br>{part.words}{size}"
        notes.append({"x": (x0 + x1) / 2, "y": (y0 + y1) / 2, "text": text, "showarrow": False, "font": {"size": 12}})
    notes += [_arrow(parts[start], parts[end]) for start, end in arrows]
    width = _ACROSS * (1 + max(part.column for part in parts.values()))
    height = _DOWN * (1 + max(part.row + part.rows - 1 for part in parts.values()))
    top = 34 if title else 0
    layout = {
        "shapes": shapes, "annotations": notes, "font": {"family": FONT, "size": 12, "color": colors.TEXT},
        "title": {"text": title, "x": 0, "xanchor": "left", "font": {"size": 16}},
        "xaxis": {"visible": False, "range": [0, width], "fixedrange": True},
        "yaxis": {"visible": False, "range": [height, 0], "fixedrange": True},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "showlegend": False,
        "margin": {"l": 0, "r": 0, "t": top, "b": 0}, "width": width, "height": height + top,
        "meta": {"fixed": True},
    }  # fmt: skip
    return go.Figure(layout=layout)


def _sides(part: Part) -> tuple[float, float, float, float]:
    """Left, right, top, bottom in pixels."""
    x, y = _ACROSS * (part.column + 0.5), _DOWN * (part.row + 0.5)
    return x - _WIDTH / 2, x + _WIDTH / 2, y - _HEIGHT / 2, y + _HEIGHT / 2 + _DOWN * (part.rows - 1)


def _arrow(start: Part, end: Part) -> dict[str, object]:
    """From one box to the next: across in the row of the narrower one, or straight down."""
    left, right, _, bottom = _sides(start)
    left_end, _, top_end, _ = _sides(end)
    if start.column == end.column:
        tail, head = ((left + right) / 2, bottom), ((left + right) / 2, top_end)
    else:
        narrow = end if start.rows > end.rows else start
        y = _DOWN * (narrow.row + 0.5)
        tail, head = (right, y), (left_end, y)
    return {
        "x": head[0], "y": head[1], "ax": tail[0], "ay": tail[1], "xref": "x", "yref": "y", "axref": "x", "ayref": "y",
        "text": "", "showarrow": True, "arrowhead": 2, "arrowsize": 1, "arrowwidth": 1.5, "arrowcolor": _GREY,
    }  # fmt: skip
