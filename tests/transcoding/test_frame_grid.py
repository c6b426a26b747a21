"""Which frames a proxy shows, and when."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgrec.transcoding.frame_grid import make_grid

RATE = Fraction(25, 4)


def test_a_quarter_of_25_frames_a_second() -> None:
    grid = make_grid(np.arange(137, 237), Fraction(1, 25), 25.0, RATE)
    assert grid.positions.tolist() == list(range(0, 100, 4))
    assert grid.times.tolist() == list(range(25))
    assert (grid.time_base, grid.repeats, grid.note) == (Fraction(4, 25), 0, "")


def test_thirty_frames_a_second_in_milliseconds() -> None:
    pts = np.round(np.arange(300) * 1000 / 30).astype(np.int64)
    grid = make_grid(pts, Fraction(1, 1000), 30.0, RATE)
    # Frame at or before 0, 160, 320, ... ms, where frames come every 33.3 ms.
    assert grid.positions[:6].tolist() == [0, 4, 9, 14, 19, 24]
    assert len(grid.positions) == 63
    assert grid.repeats == 0


def test_a_gap_repeats_its_last_frame_and_is_noted() -> None:
    pts = np.concatenate((np.arange(10), np.arange(30, 40)))
    grid = make_grid(pts, Fraction(1, 25), 25.0, RATE)
    assert grid.positions.tolist() == [0, 4, 8, 9, 9, 9, 9, 9, 12, 16]
    assert grid.repeats == 4
    assert "4 frames repeat" in grid.note


@pytest.mark.parametrize("rate", [Fraction(0), RATE])
def test_slow_sources_and_rate_zero_keep_their_own_times(rate: Fraction) -> None:
    pts = np.array([500, 1000, 1000, 1700])
    grid = make_grid(pts, Fraction(1, 1000), 2.5, rate)
    assert grid.positions.tolist() == [0, 2, 3]
    assert grid.times.tolist() == [0, 500, 1200]
    assert grid.time_base == Fraction(1, 1000)
    assert "share a time stamp" in grid.note
    assert ("slower than 6.25" in grid.note) == (rate > 0)


def test_ticks_that_mp4_cannot_count() -> None:
    grid = make_grid(np.array([0, 10**11]), Fraction(1, 10**12), 10.0, Fraction(0))
    assert grid.times.tolist() == [0, 100_000]
    assert grid.time_base == Fraction(1, 1_000_000)


def test_one_frame() -> None:
    grid = make_grid(np.array([7]), Fraction(1, 25), 25.0, RATE)
    assert (grid.positions.tolist(), grid.times.tolist()) == ([0], [0])


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=60),
    st.integers(-1000, 1000),
    st.sampled_from([Fraction(25, 4), Fraction(1), Fraction(30000, 1001), Fraction(50)]),
)
def test_each_grid_time_gets_the_last_frame_at_or_before_it(
    steps: list[int], start: int, rate: Fraction
) -> None:
    pts = start + np.cumsum(np.array(steps))
    base = Fraction(1, 1000)
    grid = make_grid(pts, base, 1000.0, rate)
    assert grid.times.tolist() == list(range(len(grid.times)))
    half = Fraction(1, 2)
    for number, position in enumerate(grid.positions.tolist()):
        limit = int(pts[0]) + Fraction(number) / rate / base + half
        assert pts[position] <= limit + Fraction(1, 10**6)
        if position + 1 < len(pts):
            assert pts[position + 1] > limit - Fraction(1, 10**6)
    last = int(pts[-1] - pts[0]) * base
    assert len(grid.times) in (int((last + half * base) * rate) + 1, int(last * rate) + 1)
    assert grid.repeats == sum(np.diff(grid.positions) == 0)


def test_no_frames() -> None:
    with pytest.raises(ValueError, match="without frames"):
        make_grid(np.empty(0, np.int64), Fraction(1, 25), 25.0, RATE)
