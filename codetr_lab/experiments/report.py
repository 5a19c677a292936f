"""`codetr experiment report`: the paper beside the lab, statement by statement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from codetr_lab.experiments.catalog import EXPERIMENTS
from codetr_lab.experiments.cell import Record
from codetr_lab.experiments.results import MANY, markdown_table, tested


def report_text(records: Sequence[Record]) -> str:
    """Markdown: every statement with the paper's number, the lab's difference and the verdict; then the tables."""
    lines = ["| where | the paper states | paper | lab | seeds | verdict |", "|---|---|---|---|---|---|"]
    count: Counter[str] = Counter()
    for experiment in EXPERIMENTS.values():
        for claim in experiment.claims:
            found = tested(claim, records)
            verdict = found.verdict() if found.n else "not run"
            count[verdict] += 1
            number = f"{found.text(claim.digits, claim.factor, sign=True)} {claim.unit}" if found.n else ""
            lines.append(
                f"| {experiment.source} | {claim.statement} | {claim.paper} | {number} | {found.n or ''} | {verdict} |"
            )
    tables = []
    for experiment in EXPERIMENTS.values():
        here = [r for r in records if r["variant"] in experiment.variants]
        if len({r["variant"] for r in here}) > 1:
            note = f"\n\n{experiment.note}" if experiment.note else ""
            tables.append(f"## {experiment.source}: {experiment.title}\n\n{markdown_table(experiment, records)}{note}")
    said = ", ".join(f"{number} {verdict}" for verdict, number in count.most_common())
    lab = sorted({(r["data"], r["steps"]) for r in records})
    runs = f"{len(records)} runs ({'; '.join(f'{data}, {steps:,} steps' for data, steps in lab)})"
    few = f"Over fewer than {MANY} seeds a verdict is an indication."
    return "\n".join(
        [f"{runs}. Of {sum(count.values())} statements: {said}. {few}", "", *lines, "", "\n\n".join(tables)]
    )


def write_report(out: Path) -> str:
    """Write `report.md` from the runs finished under `out`, or, if there are none, from those in the package.

    Returns:
        The text.
    """
    import json

    from codetr_lab.engine.checkpoint import write_atomically
    from codetr_lab.experiments.kept import kept_records
    from codetr_lab.experiments.run import with_pace

    own = [json.loads(file.read_text()) for file in sorted((out / "cells").glob("*/record.json"))]
    # One length only: the longest that was run, since lengths must not be mixed.
    records = _one_length(with_pace(own, out)) if own else kept_records()
    where = f"Runs in {out}." if own else "Runs that come with the package."
    text = f"# The paper and the lab\n\n{where} {report_text(records)}\n"
    write_atomically(out / "report.md", text.encode())
    return text


def _one_length(records: Sequence[Record]) -> list[Record]:
    from codetr_lab.experiments.variants import VARIANTS

    def base(record: Record) -> int:
        return round(record["steps"] / VARIANTS[record["variant"]].length)

    known = [r for r in records if r["variant"] in VARIANTS]
    longest = max((base(r) for r in known), default=0)
    return [r for r in known if base(r) == longest]
