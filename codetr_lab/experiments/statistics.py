"""Means with 95 % intervals over seeds, and whether a statement holds by the paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

from scipy.stats import t as student

Verdict = Literal["holds", "the opposite holds", "not settled", "not tested"]


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds and half the width of its 95 % interval (Student's t); NaN where one seed gives none."""

    mean: float
    half: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        if not values:
            return cls(math.nan, math.nan, 0)
        if len(values) == 1:
            return cls(values[0], math.nan, 1)
        half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return cls(mean(values), half, len(values))

    def text(self, digits: int = 1, factor: float = 1, *, sign: bool = False) -> str:
        """`25.9 +- 1.2`; without seeds to compare, the mean alone; a dash where there is nothing."""
        if not self.n:
            return "-"
        value = f"{factor * self.mean:{'+' if sign else ''}.{digits}f}"
        return value if math.isnan(self.half) else f"{value} ± {factor * self.half:.{digits}f}"

    def verdict(self) -> Verdict:
        """Of "the mean is above zero": by whether the interval excludes zero."""
        if self.n < 2:
            return "not tested"
        if self.mean - self.half > 0:
            return "holds"
        return "the opposite holds" if self.mean + self.half < 0 else "not settled"


def value(record: Mapping[str, Any], path: str) -> float | None:
    """A number of a record by dotted path: `ap`, `attention.-1.area`; `*` takes the mean over what is there.

    Returns:
        None where the record has no such number.
    """
    found: Any = record
    parts = path.split(".")
    for number, part in enumerate(parts):
        if part == "*" and isinstance(found, Mapping | list):
            inner = found.values() if isinstance(found, Mapping) else found
            rest = ".".join(parts[number + 1 :])
            values = [value({"": item}, f".{rest}" if rest else "") for item in inner]
            known = [item for item in values if item is not None]
            return mean(known) if known else None
        if isinstance(found, list) and part.lstrip("-").isdigit() and -len(found) <= int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            return None
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def by_seed(records: Sequence[Mapping[str, Any]], variant: str, path: str) -> dict[int, float]:
    """The numbers of one variant by seed."""
    found = ((r["seed"], value(r, path)) for r in records if r["variant"] == variant)
    return {seed: number for seed, number in found if number is not None}


def paired(above: Mapping[int, float], below: Mapping[int, float]) -> Interval:
    """The difference over the seeds that both have."""
    return Interval.of([above[seed] - below[seed] for seed in sorted(above.keys() & below.keys())])
