"""Intervals against textbook numbers, paths into records, and what is called a result."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from codetr_lab.experiments.statistics import Interval, by_seed, paired, value


def test_interval_by_hand():
    # mean 2, standard deviation 1, three seeds: t(0.975; 2) = 4.3027
    interval = Interval.of([1.0, 2.0, 3.0])
    assert (interval.mean, interval.n) == (2, 3)
    assert interval.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert interval.text(1) == "2.0 ± 2.5"
    assert interval.text(0, 100, sign=True) == "+200 ± 248"


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=8, unique=True))
def test_the_verdict_is_that_of_students_test(points: list[int]):
    values = [point / 100 for point in points]
    found = ttest_1samp(values, 0.0)
    expected = "not settled"
    if found.pvalue < 0.05:
        expected = "holds" if found.statistic > 0 else "the opposite holds"
    if abs(found.pvalue - 0.05) > 1e-6:
        assert Interval.of(values).verdict() == expected


def test_few_seeds_are_not_called_a_result():
    assert Interval.of([3.0]).verdict() == "not tested"
    assert Interval.of([3.0]).text(1) == "3.0"
    assert Interval.of([]).text() == "-"
    assert Interval.of([1.0, 1.0]).verdict() == "holds"


def test_paths():
    record = {"a": {"b": [{"c": 1}, {"c": 2.5}]}, "n": None, "d": {"x": 1, "y": 3, "z": None}, "inf": math.inf}
    assert value(record, "a.b.-1.c") == 2.5
    assert value(record, "d.*") == 2
    assert value(record, "a.b.*.c") == 1.75
    for path in ("n", "a.b.2.c", "a.q", "d", "inf", "a.b.x", "a.*.nothing"):
        assert value(record, path) is None


def test_differences_are_paired_by_seed():
    records = [
        {"variant": "a", "seed": 0, "ap": 1.0}, {"variant": "a", "seed": 1, "ap": 5.0},
        {"variant": "b", "seed": 1, "ap": 4.0}, {"variant": "b", "seed": 2, "ap": 9.0},
    ]  # fmt: skip
    difference = paired(by_seed(records, "a", "ap"), by_seed(records, "b", "ap"))
    assert (difference.mean, difference.n) == (1, 1)
