"""The finished runs that come with the package, as small data.

`python -m codetr_lab.experiments.kept runs/experiments` adds the runs that are finished there (name the number of steps
to take that length alone) to those kept before, and renews the tables in README.md and `results/README.md`. A run that
is there again takes the older one's place. After a change that alters numbers delete `results/cells.jsonl` first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from codetr_lab.experiments.catalog import EXPERIMENTS
from codetr_lab.experiments.cell import Record
from codetr_lab.experiments.results import sentence, tested
from codetr_lab.experiments.run import with_pace
from codetr_lab.experiments.statistics import Interval, by_seed, paired
from codetr_lab.experiments.variants import VARIANTS

RESULTS = Path(__file__).parent / "results"
CELLS = RESULTS / "cells.jsonl"
BEGIN, END = "<!-- experiments: begin -->", "<!-- experiments: end -->"


def kept_records(path: Path = CELLS) -> list[Record]:
    """The records that come with the package; empty if there are none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(out: Path, steps: int | None = None, path: Path = CELLS) -> list[Record]:
    """Add the records of all finished cells of declared variants under `out` to those in `path`, sorted.

    A variant of length n counts as a run of its steps over n.
    """
    order = list(VARIANTS)
    finished = [json.loads(file.read_text()) for file in sorted((out / "cells").glob("*/record.json"))]
    found: dict[tuple[int, int, int], Record] = {}
    for record in [*kept_records(path), *finished]:
        variant = VARIANTS.get(record["variant"])
        if variant is not None and steps in (None, round(record["steps"] / variant.length)):
            found[order.index(variant.name), record["steps"], record["seed"]] = record
    records = with_pace([found[key] for key in sorted(found)], out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def readme_text(records: Sequence[Record]) -> str:
    """K = 0, 1 and 2 over seeds with the gain and its 95 % interval, then what equal time and stability say."""
    if not records:
        return "No run comes with the package yet."
    fig1, fig5 = EXPERIMENTS["fig1"], EXPERIMENTS["fig5"]
    claims = [c for c in fig1.claims if c.below[0].startswith("k0_")] + [
        c for c in fig5.claims if c.below[0].startswith("learned")
    ]
    said = [f"- {sentence(c, records)}" for c in claims if tested(c, records).n]
    none, one, two = (next(iter(by_seed(records, k, "pace.ms_per_step").values()), None) for k in ("k0", "k1", "k2"))
    if none and one and two:
        said.append(
            f"- A step takes {one / none:.1f} times as long with K = 1 as with K = 0, {two / none:.1f} with K = 2."
        )
    return "\n".join([*_gains(records), *([""] if said else []), *said])


def _gains(records: Sequence[Record]) -> list[str]:
    paper = {"k1": "+5.2", "k2": "+5.8"}
    lines = [
        "| auxiliary heads | AP | gain over K = 0 | gain in the paper | encoder's IoF-IoB area | seeds |",
        "|---|---|---|---|---|---|",
    ]
    base = by_seed(records, "k0", "ap")
    for name in ("k0", "k1", "k2"):
        aps = by_seed(records, name, "ap")
        if not aps:
            continue  # not run
        area = Interval.of(list(by_seed(records, name, "iof_iob_area").values()))
        gain = "" if name == "k0" else paired(aps, base).text(1, 100, sign=True)
        numbers = [
            VARIANTS[name].title, Interval.of(list(aps.values())).text(1, 100), gain, paper.get(name, ""),
            area.text(2), str(len(aps)),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(numbers)} |")
    return lines


def between_marks(text: str, content: str) -> str:
    """`text` with `content` between the two marks.

    Raises:
        ValueError: the marks are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no {BEGIN} ... {END} to write between")
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def main(arguments: Sequence[str]) -> None:
    from codetr_lab.experiments.report import report_text

    if not arguments:
        sys.exit(__doc__)
    records = keep(Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else None)
    for file, content in (
        (Path(__file__).parents[2] / "README.md", readme_text(records)),
        (RESULTS / "README.md", report_text(records)),
    ):
        file.write_text(between_marks(file.read_text(), content))
    print(f"{len(records)} runs of {len({r['variant'] for r in records})} variants kept in {CELLS}")


if __name__ == "__main__":
    main(sys.argv[1:])
