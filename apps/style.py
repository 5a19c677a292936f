"""The look of the workbench: system fonts, one accent, and a few styles for its own elements. No file is fetched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import gradio as gr

from codetr_lab.viz import colors
from codetr_lab.viz.image import FONT

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PAPER = "https://arxiv.org/abs/2211.12860"
_MONO = ("ui-monospace", "DejaVu Sans Mono", "monospace")


def theme() -> gr.themes.Base:
    """Gradio's plain theme in the reader's own system fonts."""
    return gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", radius_size="md", font=[name.strip("' ") for name in FONT.split(",")],
        font_mono=list(_MONO),
    ).set(
        block_border_width="0px", block_background_fill="transparent",
        block_background_fill_dark="transparent", block_shadow="none", block_padding="4px",
        block_label_background_fill="transparent", body_background_fill="white", body_background_fill_dark="#0b0f19",
        slider_color=colors.head_color("original"), input_background_fill="*neutral_100", input_border_width="0px",
        checkbox_label_background_fill="*neutral_100", checkbox_label_background_fill_selected="*primary_100",
        checkbox_label_background_fill_selected_dark="*primary_800", checkbox_label_padding="4px 10px",
        checkbox_label_gap="6px", checkbox_border_width="1px", block_title_text_weight="600",
        block_title_text_color="*body_text_color", block_title_text_color_dark="*body_text_color",
    )  # fmt: skip


# Gradio takes every comma for the end of a selector: none inside `:is` or `:has`.
CSS = """
.gradio-container { max-width: 1440px !important; margin: 0 auto; }
.gradio-container > .main, .gradio-container main { padding: 6px 20px 28px !important; }
.form, .block.form { background: transparent !important; border: 0 !important; box-shadow: none !important; gap: 10px; }
.tab-wrapper { contain: inline-size; }
.page-head { align-items: center; flex-wrap: wrap !important; }
.page-head > * { min-width: min(260px, 100%) !important; flex: 1 1 0; }
.page-head h1 { font-size: 1.5rem; font-weight: 700; margin: 0; line-height: 1.15; }
.page-head p { margin: 0; color: var(--body-text-color-subdued); font-size: .95rem; }
.intro { max-width: 80em; margin: 0; font-size: .98rem; line-height: 1.4; }
.warning { border-left: 4px solid #D55E00; background: color-mix(in srgb, #D55E00 12%, transparent);
  padding: 6px 12px; border-radius: 4px; margin: 0; font-size: .92rem; }
.hint { color: var(--body-text-color-subdued); font-size: .85rem; }
.figure-grid { display: grid; contain: inline-size; gap: 14px 18px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, var(--least, 220px)), 1fr)); }
.panel { margin: 0; min-width: 0; max-width: 470px; }
.panel-caption { display: flex; flex-wrap: wrap; align-items: center; gap: 0 8px; padding-bottom: 5px;
  line-height: 1.35; }
.panel-swatch { width: 13px; height: 13px; border-radius: 3px; }
.panel-title { font-size: 1.05rem; font-weight: 650; }
.panel-save { position: relative; margin-left: auto; font-size: .8rem; color: var(--body-text-color-subdued); }
.panel-save summary { list-style: none; padding: 0 4px; text-decoration: underline dotted; }
.panel-save summary::-webkit-details-marker { display: none; }
.panel-save button { padding: 1px 7px; margin-left: 4px; border-radius: 4px; color: var(--body-text-color);
  background: color-mix(in srgb, var(--body-text-color) 10%, transparent); }
.panel-save[open] { display: flex; }
.panel-save :is(summary):focus-visible { outline: 2px solid currentColor; }
.panel-note { flex-basis: 100%; color: var(--body-text-color-subdued); font-size: .9rem; }
.panel-plot { width: 100%; min-height: 120px; overflow-x: auto; }
#about-grid .panel { max-width: none; }
@keyframes late { from { visibility: hidden; } to { visibility: visible; } }
[id$="-grid"] [data-testid="status-tracker"] { display: none; }
[id$="-grid"] .pending { opacity: 1 !important; }
[id$="-grid"] .pending::before { content: "The model looks at the image … " attr(data-waited) " s";
  animation: late 0s .7s both; position: sticky; top: 8px; z-index: 5; display: block;
  height: 2em; width: max-content; margin: 0 auto -2em; padding: 0 14px; line-height: 2em; border-radius: 1em;
  color: #fff; background: #0b5394; font-size: .95rem; font-variant-numeric: tabular-nums; }
.equation { font-size: .95rem; margin: 4px 0 2px; }
.equation summary, details summary { cursor: pointer; color: var(--body-text-color-subdued); }
.equation p { margin: 4px 0; max-width: 80em; }
.equation a { color: var(--link-text-color); text-decoration: underline; }
details pre { font-size: .8rem; max-height: 420px; overflow: auto; padding: 8px; border-radius: 4px;
  background: color-mix(in srgb, var(--body-text-color) 5%, transparent); }
#own { margin: 0; padding: 0 !important; }
#own > button, .form > button, .block > button.label-wrap { text-align: left; }
.label-wrap > span:first-child { text-align: left !important; }
#own-message:not(:has(p)), #training-words:not(:has(p)), #training-told:not(:has(p)), #assign-table:not(:has(table)),
#heads-ap:not(:has(table)):not(:has(p)) { display: none; }
.gradio-container main > .wrap > .column, .gradio-container .contain > .column { gap: 8px; }
table.counts.plain th, table.counts.plain td { white-space: normal; width: auto; }
.why { border-left: 4px solid var(--accent, #888); padding: 6px 14px; font-size: 1rem; line-height: 1.45;
  min-height: 62px; background: color-mix(in srgb, var(--body-text-color) 5%, transparent); border-radius: 4px; }
.why b { display: block; font-size: .9rem; font-weight: 650; }
.scroll { overflow-x: auto; contain: inline-size; }
table.counts, table.counts * { border: 0 !important; }
table.counts, table.counts tr, table.counts th, table.counts td { background: none; }
table.counts { border-collapse: collapse; width: 100%; margin: 0; font-variant-numeric: tabular-nums; }
table.counts caption { text-align: left; font-size: 1.05rem; font-weight: 650; padding: 4px 0; }
table.counts th { text-align: left; font-weight: 500; padding: 2px 14px 2px 6px; white-space: nowrap; }
table.counts td { padding: 2px 14px 2px 6px; min-width: 84px; width: 30%; }
table.counts thead th, table.counts tfoot th, table.counts tfoot td { font-weight: 650; padding: 5px 14px 5px 6px; }
table.counts thead { box-shadow: inset 0 -1px 0 var(--border-color-primary); }
table.counts tfoot { box-shadow: inset 0 1px 0 var(--border-color-primary); }
table.counts tr.chosen { background: color-mix(in srgb, var(--body-text-color) 10%, transparent) !important; }
.bar { display: flex; align-items: center; gap: 8px; }
.bar i { display: block; height: 13px; border-radius: 2px; }
@media (max-width: 640px) {
  .gradio-container > .main, .gradio-container main { padding: 8px 8px 24px !important; }
  .page-head h1 { font-size: 1.25rem; }
  .panel { max-width: none; }
  table.counts th, table.counts td { padding: 2px 2px 2px 4px !important; min-width: 0; white-space: normal;
    font-size: .86rem; }
  table.counts thead th { font-size: .74rem; letter-spacing: -.02em; }
  .bar { gap: 4px; }
}
"""


def intro(text: str, equation: str, *course: str) -> str:
    """The two sentences at the top of a tab, its equation, and the notebooks that go on from there.

    Args:
        equation: HTML.
        course: names of notebooks; those that are not there get no link.
    """
    there = [name for name in course if f"{name}.ipynb" in notebooks()]
    links = "".join(f' · <a href="notebooks/{name}.ipynb" download>Notebook {name}</a>' for name in there)
    return (
        f'<p class="intro">{escape(text)}</p><details class="equation"><summary>Equation and notebook</summary>'
        f'<p>{equation} <a href="{PAPER}" target="_blank" rel="noreferrer">The paper</a>{links}</p></details>'
    )


def notebooks() -> list[str]:
    """The names of the course's notebooks, in order."""
    return sorted(path.name for path in NOTEBOOKS.glob("[0-9]*.ipynb"))


def hint(text: str) -> str:
    """A line in small grey letters."""
    return f'<p class="hint" role="status">{escape(text)}</p>'


def number(value: float) -> str:
    """Three decimals; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def plain_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A small table of words and numbers; the first column names the row."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="counts plain"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def warning(text: str) -> str:
    """A line that must not be overlooked."""
    return f'<p class="warning" role="alert">{escape(text)}</p>'


def explanation(title: str, text: str, color: str) -> str:
    """Why one candidate is what it is."""
    return f'<div class="why" style="--accent:{color}"><b>{escape(title)}</b>{escape(text)}</div>'


def count_table(counts: dict[str, list[int]], objects: list[str], chosen: int | None) -> str:
    """Positives per object (rows) and head (columns), as numbers with bars.

    Args:
        counts: per head, one count per object.
        objects: the objects' names.
        chosen: the row to point out.
    """
    most = max((max(values, default=0) for values in counts.values()), default=0) or 1

    def cell(head: str, value: int) -> str:
        bar = f"width:{72 * value / most:.0f}%;background:{colors.head_color(head)}"
        return f'<td data-head="{head}"><div class="bar"><i style="{bar}"></i><span>{value}</span></div></td>'

    head = "".join(f'<th scope="col">{escape(colors.head_title(name))}</th>' for name in counts)
    rows = "".join(
        f'<tr data-object="{i}"{" class=chosen" if i == chosen else ""}><th scope="row">{escape(name)}</th>'
        + "".join(cell(head_name, values[i]) for head_name, values in counts.items())
        + "</tr>"
        for i, name in enumerate(objects)
    )
    mean = "".join(f"<td>{sum(v) / max(1, len(v)):.1f}</td>" for v in counts.values())
    return (
        '<div class="scroll"><table class="counts"><caption>Positives per object</caption>'
        f'<thead><tr><th scope="col">object</th>{head}</tr></thead><tbody>{rows}</tbody>'
        f'<tfoot><tr><th scope="row">mean</th>{mean}</tr></tfoot></table></div>'
    )
