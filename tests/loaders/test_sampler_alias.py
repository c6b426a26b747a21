"""Alias tables: exact probabilities, items without weight, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from surgrec.loaders.alias import AliasTable, build_alias, pick

WEIGHTS = hnp.arrays(
    np.float64,
    st.integers(1, 60),
    elements=st.one_of(st.just(0.0), st.floats(1e-300, 1e300), st.floats(0.5, 2.0), st.just(1.0)),
).filter(lambda weights: weights.any())


def picks(table: AliasTable, bits: list[int]) -> list[int]:
    return [int(pick(table.slots, np.uint64(table.item_bits), np.uint64(value))) for value in bits]


def exact_pick(table: AliasTable, bits: int) -> int:
    """`pick` in Python's unbounded integers."""
    number, fraction = divmod(bits * len(table), 2**64)
    slot = int(table.slots[number])
    other = slot % 2**table.item_bits
    return number if fraction < slot - other else other


@settings(max_examples=300, deadline=None)
@given(WEIGHTS)
def test_table_holds_the_probabilities(weights: np.ndarray) -> None:
    table = build_alias(weights)
    scaled = weights / weights.max()
    expected = scaled / scaled.sum()
    drawn = table.probabilities()
    assert abs(drawn - expected).max() < 1e-13
    assert drawn.sum() == pytest.approx(1.0, abs=1e-15)
    assert (drawn[weights == 0] == 0).all()


@pytest.mark.parametrize("power", [0, 1, 20])
def test_large_table_is_exact(power: int) -> None:
    weights = np.random.default_rng(power).random(200_000) ** power
    weights[7:1000] = 0
    weights[7] = weights.sum()  # one item with half of everything
    drawn = build_alias(weights).probabilities()
    assert abs(drawn - weights / weights.sum()).sum() < 1e-12
    assert drawn[7] == pytest.approx(0.5, abs=1e-13)
    assert not drawn[8:1000].any()


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_pick_is_exact_arithmetic(weights: np.ndarray, bits: list[int]) -> None:
    table = build_alias(weights)
    bits += [0, 2**64 - 1]
    drawn = picks(table, bits)
    assert drawn == [exact_pick(table, value) for value in bits]
    assert all(weights[item] > 0 for item in drawn)


def test_tiny_weight_beside_a_huge_one_is_never_a_zero_item() -> None:
    table = build_alias([0.0, 1e-300, 0.0, 1e300])
    assert set(picks(table, list(range(0, 2**64, 2**55 + 12345)))) == {3}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "no weights"),
        ([0.0, 0.0], "all 2 weights are zero"),
        ([1.0, -0.5], "weight 1 is -0.5"),
        ([1.0, float("nan")], "weight 1 is nan"),
        ([float("inf"), 1.0], "weight 0 is inf"),
        ([[1.0, 2.0]], "one-dimensional"),
    ],
)
def test_refused_weights(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_alias(weights)
