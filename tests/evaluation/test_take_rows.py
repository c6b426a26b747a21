"""Rows taken from a mapped array: NumPy's, and the first that is not finite is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from surgrec.evaluation.take_rows import take_finite

HALVES = arrays.arrays(np.uint16, st.tuples(st.integers(1, 6), st.integers(1, 40)))


@given(HALVES, st.data())
def test_all_bits_are_kept_and_what_is_not_finite_is_found(bits: np.ndarray, data: st.DataObject) -> None:
    column = bits.view(np.float16)
    at = np.array(data.draw(st.lists(st.integers(0, len(column) - 1), max_size=8)), np.int64)
    out = np.empty((len(at), column.shape[1]), np.float16)
    found = take_finite(column, at, out)
    np.testing.assert_array_equal(out.view(np.uint16), bits[at])
    strange = np.flatnonzero(~np.isfinite(column[at]).all(1))
    assert found == (None if not len(strange) else int(strange[0]))


def test_a_mapped_array_of_tokens(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float16)
    values.tofile(tmp_path / "tokens")
    column = np.asarray(np.memmap(tmp_path / "tokens", np.float16, "r", 0, values.shape))
    out = np.empty((3, 3, 4), np.float16)
    assert take_finite(column, np.array([4, 0, 4]), out) is None
    np.testing.assert_array_equal(out, values[[4, 0, 4]])


@pytest.mark.parametrize("rows", [[-1], [2], [0, 2]])
def test_rows_that_are_not_there(rows: list[int]) -> None:
    with pytest.raises(IndexError, match="of 2"):
        take_finite(np.zeros((2, 4), np.float16), np.array(rows), np.zeros((len(rows), 4), np.float16))


def test_room_of_another_shape() -> None:
    with pytest.raises(ValueError, match="room"):
        take_finite(np.zeros((2, 4), np.float16), np.array([0]), np.zeros((1, 5), np.float16))
