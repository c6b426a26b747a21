"""The counter-based generator: same bits everywhere, and bits that look random."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.kernels.counter_rng import mix64, random_u64, stream_key, to_unit, uniform

KEYS = st.integers(0, 2**64 - 1)
COUNTERS = st.integers(-(2**63), 2**63 - 1)


def reference(key: int, counter: int) -> int:
    """The generator in plain integers, written from its description."""
    wrap = 2**64

    def finalise(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % wrap
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % wrap
        return z ^ (z >> 31)

    first = finalise((counter * 0x9E3779B97F4A7C15 + key) % wrap)
    return finalise((first + ((key >> 32) | (key << 32) % wrap)) % wrap)


@numba.njit
def mix_many(key, counters):
    out = np.empty(len(counters), np.uint64)
    for i in range(len(counters)):
        out[i] = mix64(key, counters[i])
    return out


@settings(deadline=None)
@given(KEYS, st.lists(COUNTERS, min_size=1, max_size=20))
def test_numba_torch_and_plain_integers_agree(key: int, counters: list[int]) -> None:
    expected = [reference(key, counter) for counter in counters]
    drawn = random_u64(key, torch.tensor(counters, dtype=torch.int64))
    assert [value % 2**64 for value in drawn.tolist()] == expected
    assert [int(mix64(np.uint64(key), counter)) for counter in counters] == expected
    assert mix_many(np.uint64(key), np.array(counters, np.int64)).tolist() == expected
    assert mix_many(np.uint64(key), np.array(counters, np.int64).view(np.uint64)).tolist() == expected
    units = uniform(drawn).tolist()
    assert units == [to_unit(np.uint64(bits)) for bits in expected]
    assert units == [(bits >> 11) / 2**53 for bits in expected]
    assert all(0.0 <= unit < 1.0 for unit in units)


@settings(deadline=None)
@given(st.lists(KEYS, min_size=1, max_size=10), COUNTERS)
def test_keys_may_be_a_tensor(keys: list[int], counter: int) -> None:
    signed = torch.tensor([key - 2**64 if key >= 2**63 else key for key in keys])
    together = random_u64(signed, torch.tensor([counter]))
    apart = [random_u64(key, torch.tensor([counter])).item() for key in keys]
    assert together.tolist() == apart


def test_bits_are_pinned() -> None:
    """A change here breaks the resuming of every run that exists."""
    assert stream_key(0, "sampler") == PINNED_KEY
    assert [int(mix64(np.uint64(PINNED_KEY), i)) for i in (0, 1, 2**40, -1)] == PINNED_BITS


def test_keys_depend_on_seed_and_name() -> None:
    keys = {stream_key(seed, name) for seed in (-1, 0, 1, 2**70) for name in ("a", "b", "1/a", "")}
    assert len(keys) == 16
    assert all(0 <= key < 2**64 for key in keys)
    assert stream_key(np.int64(3), "x") == stream_key(3, "x")


@pytest.mark.parametrize("first", [0, 2**31, 2**53 - 3, -(2**63), 2**63 - 70_000])
def test_bits_look_random(first: int) -> None:
    """Each bit is fair, the unit interval is evenly filled, and neighbours are unrelated."""
    n = 65536
    bits = random_u64(stream_key(7, "test"), first + torch.arange(n))
    ones = torch.stack([(bits >> b) & 1 for b in range(64)]).double().mean(1)
    assert (ones - 0.5).abs().max() < 5 * 0.5 / n**0.5
    unit = uniform(bits)
    counts = torch.histc(unit, 256, 0, 1)
    chi_square = ((counts - n / 256) ** 2 / (n / 256)).sum()
    assert 255 - 5 * (2 * 255) ** 0.5 < chi_square < 255 + 5 * (2 * 255) ** 0.5
    for lag in (1, 2, 256):
        assert torch.corrcoef(torch.stack([unit[:-lag], unit[lag:]]))[0, 1].abs() < 5 / n**0.5
    assert bits.unique().numel() == n


def test_one_changed_bit_changes_half_of_the_output() -> None:
    key = stream_key(1, "avalanche")
    counters = torch.arange(4096) * 7919
    base = random_u64(key, counters)
    for b in range(64):
        for other in (random_u64(key, counters ^ _bit(b)), random_u64(key ^ (1 << b), counters)):
            changed = torch.stack([((base ^ other) >> i) & 1 for i in range(64)]).double()
            assert abs(changed.mean() - 0.5) < 0.01
            assert (changed.mean(1) - 0.5).abs().max() < 6 * 0.5 / 4096**0.5


def test_streams_are_not_shifted_copies() -> None:
    """Key k at counter i + 1 and key k + golden at counter i agree in the first round; not in the second."""
    key = stream_key(2, "shift")
    counters = torch.arange(1000)
    shifted = random_u64((key + 0x9E3779B97F4A7C15) % 2**64, counters)
    assert not (shifted == random_u64(key, counters + 1)).any()


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="int32"):
        random_u64(1, torch.zeros(3, dtype=torch.int32))
    with pytest.raises(TypeError, match="float32"):
        random_u64(torch.zeros(3), torch.zeros(3, dtype=torch.int64))


def _bit(b: int) -> int:
    return (1 << b) if b < 63 else -(2**63)


PINNED_KEY = 2850238896270982788
PINNED_BITS = [
    12951287072859745326,
    14836058906936007046,
    8857580860507898378,
    16703901627674398965,
]
