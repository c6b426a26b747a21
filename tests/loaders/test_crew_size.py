"""The size of the crew that helps NVDEC, on a clock that the test moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.loaders.engines.crew_size import BETTER, BUSY_RATE, CrewSize


class Machine:
    """A clock, and clips that are finished at a rate that depends on the size of the crew."""

    def __init__(self, most: int, rate: Callable[[int], float]) -> None:
        self.now = 100.0
        self.crew = CrewSize(most, lambda: self.now)
        self.rate = rate
        self.seconds: Counter[int] = Counter()
        """By size, how long it was."""

    def run(self, seconds: float) -> int:
        """The size after so many seconds."""
        until = self.now + seconds
        while self.now < until:
            step = 1 / self.rate(self.crew.size)
            self.now += step
            self.seconds[self.crew.size] += step
            size = self.crew.finished()
            assert size is None or size == self.crew.size
        return self.crew.size


def test_where_the_whole_crew_slows_nvdec_down_a_smaller_one_helps():
    """The rates of stacked proxies on an H200 with 16 cores."""
    rates = {16: 1170.0, 12: 2087.0, 9: 2000.0}
    machine = Machine(16, rates.__getitem__)
    assert machine.run(3) == 12
    machine.run(900)
    assert machine.seconds[12] > 0.98 * sum(machine.seconds.values())


def test_the_crew_goes_on_shrinking_while_that_helps():
    machine = Machine(16, lambda size: 12_000 / size)
    assert machine.run(10) == 1


@pytest.mark.parametrize("rate", [170.0, 0.95 * BUSY_RATE])
def test_all_help_with_clips_that_take_long(rate):
    machine = Machine(16, lambda size: rate if size == 16 else 10 * rate)
    machine.run(120)
    assert set(machine.seconds) == {16}


def test_all_help_where_the_size_makes_no_difference():
    """As where the training step is what limits the rate."""
    machine = Machine(16, lambda size: 1900.0)
    machine.run(900)
    assert machine.seconds[16] > 0.98 * sum(machine.seconds.values())


def test_a_slow_start_is_not_held_against_the_crew():
    machine = Machine(16, lambda size: 50.0)
    machine.run(5)
    machine.rate = lambda size: 1000.0 if size == 16 else 2000.0
    machine.run(5)
    assert machine.crew.size == 12


def test_a_size_is_looked_into_again():
    machine = Machine(16, lambda size: 1000.0 if size == 16 else 2000.0)
    assert machine.run(10) == 12
    machine.rate = lambda size: 2000.0 if size == 16 else 1000.0
    machine.run(200)
    assert machine.crew.size == 16


def test_a_single_process_stays():
    assert Machine(1, lambda size: 3000.0).run(5) == 1


@settings(deadline=None, max_examples=50)
@given(most=st.integers(1, 64), data=st.data())
def test_what_is_kept_is_faster_than_all_by_the_factor(most, data):
    rates = {size: data.draw(st.floats(BUSY_RATE + 50, 4000)) for size in range(1, most + 1)}
    machine = Machine(most, rates.__getitem__)
    kept = machine.run(30)
    assert kept == most or rates[kept] > 0.97 * BETTER * rates[most]
