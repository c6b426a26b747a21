"""Samples that share a decode: each shown once, far apart, waiting in bounded memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from surgrec.configs.data import DataConfig
from surgrec.loaders.sharing import Sharing, make_sharing

DATA = DataConfig(frames=16, size=128)
CLIP_BYTES = 16 * 128 * 128 * 3  # 0.75 MiB

sharings = st.builds(Sharing, st.integers(1, 5), st.integers(1, 4), st.integers(0, 50))


@given(sharings, st.integers(0, 2**50))
def test_units_and_members_number_the_samples_anew(sharing: Sharing, sample: int) -> None:
    unit, member = sharing.unit(sample)
    assert unit >= 0
    assert 0 <= member < sharing.members
    assert sharing.sample(unit, member) == sample


@given(sharings, st.integers(0, 2**40))
def test_each_member_of_a_unit_is_one_sample(sharing: Sharing, unit: int) -> None:
    samples = [sharing.sample(unit, member) for member in range(sharing.members)]
    apart = {after - before for before, after in pairwise(samples)}
    assert apart <= {sharing.delay * sharing.members + 1}
    for member, sample in enumerate(samples):
        if sample >= 0:
            assert sharing.unit(sample) == (unit, member)
    clips = Counter(sharing.clip(member) for member in range(sharing.members))
    assert clips == dict.fromkeys(range(sharing.clips), sharing.repeats)


@given(sharings, st.integers(0, 1000), st.integers(0, 100))
def test_runs_of_units_are_those_of_the_samples(sharing: Sharing, first: int, count: int) -> None:
    runs = sharing.units(first, count)
    found = Counter(unit + k for unit, units in runs for k in range(units))
    assert found == Counter(sharing.unit(sample)[0] for sample in range(first, first + count))


def test_one_clip_a_decode_is_the_sample_itself() -> None:
    for shuffle_mib in (0, 500):
        sharing = make_sharing(replace(DATA, shuffle_mib=shuffle_mib), 64)
        assert [sharing.unit(sample) for sample in (0, 1, 2**50)] == [(0, 0), (1, 0), (2**50, 0)]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(5, 400), st.integers(1, 200))
def test_what_waits_fits_into_the_pool(clips: int, repeats: int, mib: int, batch: int) -> None:
    data = replace(DATA, clips_per_decode=clips, repeats=repeats, shuffle_mib=mib)
    members = clips * repeats
    if members > 1 and mib * 2**20 < (members * (members - 1) // 2 + members - 1) * CLIP_BYTES:
        with pytest.raises(ValueError, match="too small to mix units"):
            make_sharing(data, batch)
        return
    sharing = make_sharing(data, batch)
    assert (sharing.delay > 0) == (members > 1)
    waiting: set[int] = set()
    most = 0
    for sample in range(min(3 * members * (members * sharing.delay + 1), 3000)):
        unit, member = sharing.unit(sample)
        waiting |= {sharing.sample(unit, later) for later in range(member + 1, members)}
        waiting.discard(sample)
        most = max(most, len(waiting))
    assert most * CLIP_BYTES <= mib * 2**20


def test_members_of_a_unit_are_in_batches_of_their_own_and_on_one_rank() -> None:
    data = replace(DATA, clips_per_decode=2, repeats=2, shuffle_mib=400)
    sharing = make_sharing(data, 64)
    assert sharing.delay % 16 == 0
    assert sharing.delay > 0
    for unit in range(3 * sharing.delay, 3 * sharing.delay + 40):
        samples = [sharing.sample(unit, member) for member in range(4)]
        assert len({sample // 64 for sample in samples}) == 4
        for ranks in (1, 2, 4, 16):
            assert len({sample % 64 // (64 // ranks) for sample in samples}) == 1


def test_the_message_says_how_much_is_enough() -> None:
    data = replace(DATA, clips_per_decode=4, shuffle_mib=1)
    with pytest.raises(ValueError, match=r"units of 4 clips of 0\.75 MiB\. Give at least 7 MiB, or 0"):
        make_sharing(data, 64)
    assert make_sharing(replace(data, shuffle_mib=7), 64).delay == 1
