"""What an experiment says and writes: table, statements tested, JSON, CSV, Markdown, figure."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codetr_lab.experiments.catalog import Claim, Experiment
from codetr_lab.experiments.cell import Cell, Record
from codetr_lab.experiments.statistics import Interval, by_seed, paired
from codetr_lab.experiments.variants import VARIANTS

SCHEMA = 1
"""Of the JSON file; see `results/README.md`."""
MANY = 5
"""Seeds from which a verdict is more than an indication."""


def rows(experiment: Experiment, records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row per variant that has a record: its title, seeds, and an `Interval` per column title."""
    found = []
    for name in experiment.variants:
        seeds = sorted(r["seed"] for r in records if r["variant"] == name)
        if seeds:
            cells = {c.title: Interval.of(list(by_seed(records, name, c.path).values())) for c in experiment.columns}
            found.append({"variant": name, "title": VARIANTS[name].title, "seeds": seeds, "columns": cells})
    return found


def tested(claim: Claim, records: Sequence[Record]) -> Interval:
    """The paired difference that a statement is about."""
    return paired(by_seed(records, *claim.above), by_seed(records, *claim.below))


def markdown_table(experiment: Experiment, records: Sequence[Record]) -> str:
    """The table: mean and 95 % interval over seeds, the paper's number beside it."""
    titles = [c.title for c in experiment.columns]
    head = ["", *titles, "seeds", *(["paper"] if experiment.paper else [])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows(experiment, records):
        numbers = [row["columns"][c.title].text(c.digits, c.factor) for c in experiment.columns]
        paper = [experiment.paper.get(row["variant"], "")] if experiment.paper else []
        lines.append("| " + " | ".join([row["title"], *numbers, str(len(row["seeds"])), *paper]) + " |")
    return "\n".join(lines)


def sentence(claim: Claim, records: Sequence[Record]) -> str:
    """One statement, what was found, and whether it holds."""
    difference = tested(claim, records)
    paper = f" (paper: {claim.paper})" if claim.paper else ""
    if not difference.n:
        return f"Not run: {claim.statement}{paper}."
    found = f"{difference.text(claim.digits, claim.factor, sign=True)} {claim.unit}"
    many = f"{difference.n} seeds" if difference.n > 1 else "one seed"
    verdict = {
        "holds": "Holds", "the opposite holds": "The opposite holds", "not settled": "Not settled",
        "not tested": "Not tested (one seed)",
    }[difference.verdict()]  # fmt: skip
    return f"{verdict}: {claim.statement}; {found} over {many}{paper}."


def paragraph(experiment: Experiment, records: Sequence[Record]) -> str:
    """Whether the paper's statements hold at this scale, by paired 95 % intervals."""
    parts = [sentence(claim, records) for claim in experiment.claims]
    seeds = {r["seed"] for r in records}
    if experiment.claims and 1 < len(seeds) < MANY:
        parts.append(f"{len(seeds)} seeds are few: take this as an indication.")
    if experiment.note:
        parts.append(experiment.note)
    return " ".join(parts)


def csv_text(records: Sequence[Record]) -> str:
    """One line per run: every number of the records that stands alone, by dotted path."""
    flat = [_flat(record) for record in records]
    names = list(dict.fromkeys(name for row in flat for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in content.items():
        if isinstance(item, Mapping):
            found |= _flat(item, f"{prefix}{name}.")
        elif not isinstance(item, list):
            found[prefix + name] = item
    return found


def write_results(
    experiment: Experiment, records: Sequence[Record], cells: Sequence[Cell], out: Path, missing: Mapping[str, str]
) -> str:
    """Write `NAME.json`, `.csv`, `.md`, `.html` and, where there is a browser, `.png` to `out`.

    Returns:
        The table and the paragraph, for the terminal.

    Raises:
        CheckpointError, ExportError: `out` cannot be written.
    """
    from codetr_lab.engine.checkpoint import write_atomically
    from codetr_lab.engine.records import plain
    from codetr_lab.experiments.figures import FIGURES
    from codetr_lab.viz.export import ExportError, save_html, save_png

    text = f"{markdown_table(experiment, records)}\n\n{paragraph(experiment, records)}\n"
    if missing:
        text += "\nLeft out: " + "; ".join(f"{VARIANTS[name].title} ({why})" for name, why in missing.items()) + ".\n"
    content = {
        "schema": SCHEMA,
        "experiment": experiment.name,
        "source": experiment.source,
        "question": experiment.title,
        "command": " ".join(["codetr", *sys.argv[1:]]),
        "table": [
            {**row, "columns": {title: vars(interval) for title, interval in row["columns"].items()}}
            for row in rows(experiment, records)
        ],
        "claims": [
            {"statement": c.statement, "paper": c.paper, "above": c.above, "below": c.below,
             "difference": vars(tested(c, records)), "verdict": tested(c, records).verdict()}
            for c in experiment.claims
        ],
        "missing": dict(missing),
        "records": list(records),
    }  # fmt: skip
    base = out / experiment.name
    write_atomically(base.with_suffix(".json"), (json.dumps(plain(content), indent=1) + "\n").encode())
    write_atomically(base.with_suffix(".csv"), csv_text(records).encode())
    heading = f"# {experiment.source}: {experiment.title}\n\n"
    write_atomically(base.with_suffix(".md"), (heading + text).encode())
    figure = FIGURES[experiment.figure](experiment, records, cells)
    save_html(figure, base.with_suffix(".html"), f"{experiment.source}: {experiment.title}")
    try:
        save_png(figure, base.with_suffix(".png"))
    except ExportError as error:
        print(f"no picture: {error}", file=sys.stderr)
    return text
