"""Timelines: what is shown when, from windows that overlap; gaps stay gaps, whatever lies beside them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from surgrec.evaluation.timeline import NO_FRAME, Stretch, cells_of, smooth, stretches_of
from surgrec.evaluation.timeline_plot import clock, colours
from surgrec.evaluation.window_plan import Window, WindowPlan


def plan_of(starts: list[float], length: float, holes: list[tuple[float, float]] | None = None) -> WindowPlan:
    windows = [Window((number,), start, start + length) for number, start in enumerate(starts)]
    return WindowPlan(windows, holes or [], max(starts) + length)


def shares_of(labels: list[int], classes: int = 3, sure: float = 0.8) -> NDArray[np.float64]:
    rest = (1 - sure) / (classes - 1)
    return np.where(np.eye(classes)[labels] > 0, sure, rest)


def test_an_instant_belongs_to_the_nearest_window_that_saw_it() -> None:
    windows = plan_of([0, 1, 2], 3).windows
    assert cells_of(windows).tolist() == [[0, 2], [2, 3], [3, 5]]
    # Windows that are further apart than they are long leave what none of them saw.
    assert cells_of(plan_of([0, 10], 4).windows).tolist() == [[0, 4], [10, 14]]


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=30, unique=True),
    st.integers(1, 60),
)
def test_cells_are_within_their_windows_and_never_overlap(starts: list[int], length: int) -> None:
    ordered = sorted(starts)
    windows = plan_of([start / 10 for start in ordered], length / 10).windows
    cells = cells_of(windows)
    assert (cells[:, 0] <= cells[:, 1] + 1e-9).all()
    assert (cells[1:, 0] >= cells[:-1, 1] - 1e-9).all()
    for (low, high), window in zip(cells.tolist(), windows, strict=True):
        assert window.start - 1e-6 <= low <= high + 1e-6 <= window.end + 2e-6
    # All that a window saw is in a cell.
    seen = sum(min(length, after - before) for before, after in pairwise(ordered)) + length
    assert (cells[:, 1] - cells[:, 0]).sum() == pytest.approx(seen / 10, abs=1e-4)


def test_stretches_join_cells_of_one_class() -> None:
    shares = shares_of([0, 0, 1, 1, 0])
    shares[1] = [0.6, 0.3, 0.1]
    found = stretches_of(plan_of([0, 1, 2, 3, 4], 3), shares, {})
    assert [(each.start, each.end, each.label) for each in found] == [(0, 3, 0), (3, 5, 1), (5, 7, 0)]
    assert found[0].probability == pytest.approx((0.8 * 2 + 0.6 * 1) / 3)


def test_gaps_are_not_filled() -> None:
    shares = shares_of([0, 0, 0, 0, 0])
    found = stretches_of(plan_of([0, 1, 2, 3, 4], 3), shares, {1: "damaged", 2: "damaged", 3: "cut"})
    assert found == [
        Stretch(0, 2, 0, pytest.approx(0.8)),
        Stretch(2, 5, None, None, "damaged"),
        Stretch(5, 7, 0, pytest.approx(0.8)),
    ]
    (one,) = stretches_of(plan_of([0], 3), shares[:1], {0: "gone"})
    assert (one.label, one.probability, one.reason) == (None, None, "gone")


def test_holes_are_gaps_and_unseen_time_parts_stretches() -> None:
    plan = plan_of([0, 1, 20], 3, [(4, 20)])
    found = stretches_of(plan, shares_of([0, 0, 0]), {})
    assert [(each.start, each.end, each.label, each.reason) for each in found] == [
        (0, 4, 0, ""),
        (4, 20, None, NO_FRAME),
        (20, 23, 0, ""),
    ]
    apart = stretches_of(plan_of([0, 10], 4), shares_of([0, 0]), {})
    assert [(each.start, each.end) for each in apart] == [(0, 4), (10, 14)]


@pytest.mark.parametrize("kind", ["median", "mean"])
def test_smoothing_by_hand(kind: str) -> None:
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(3), 40)
    present = generator.random(40) > 0.15
    shares[~present] = 0
    plan = plan_of([0.5 * number for number in range(40)], 2, [(12.2, 12.3)])
    found = smooth(plan, shares, present, kind, 3.0)  # type: ignore[arg-type]
    middles = [0.5 * number + 1 for number in range(40)]
    for at in range(40):
        if not present[at]:
            assert not found[at].any()
            continue
        near = [at]
        for step in (-1, 1):
            other = at + step
            while 0 <= other < 40 and present[other] and abs(middles[other] - middles[at]) <= 1.5:
                if (middles[at] < 12.3) != (middles[other] < 12.3):
                    break
                near.append(other)
                other += step
        value = (np.median if kind == "median" else np.mean)(shares[near], 0)
        np.testing.assert_allclose(found[at], value / value.sum())


def test_smoothing_takes_out_what_is_short() -> None:
    labels = [0] * 10 + [1] + [0] * 9 + [2] * 20
    plan = plan_of([float(number) for number in range(40)], 3)
    shares = shares_of(labels)
    found = smooth(plan, shares, np.ones(40, bool), "median", 5.0)
    assert [each.label for each in stretches_of(plan, shares, {})] == [0, 1, 0, 2]
    assert [each.label for each in stretches_of(plan, found, {})] == [0, 2]
    np.testing.assert_allclose(found.sum(1), 1)


def test_a_median_of_nothing_is_the_mean() -> None:
    found = smooth(plan_of([0, 1, 2], 3), np.eye(3), np.ones(3, bool), "median", 10)
    np.testing.assert_allclose(found, 1 / 3)


def test_clocks_and_colours() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 3599.7, 36610)] == [
        "0:00:00",
        "0:01:00",
        "1:00:00",
        "10:10:10",
    ]
    assert clock(61.25, 0.1) == "0:01:01.2"
    for count in (1, 7, 14, 30):
        assert len(set(colours(count))) == count
