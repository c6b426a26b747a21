"""Packed sequences: rows to tokens, and rows taken out of their order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgrec.models.packing import Packed, take_rows


@given(st.data())
def test_rows_taken_and_their_gradient(data):
    count = data.draw(st.integers(0, 8))
    rows = data.draw(st.permutations(range(count)))[: data.draw(st.integers(0, count))]
    chosen = torch.tensor(rows, dtype=torch.int64)
    x = torch.randn(count, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(len(rows), 3, dtype=torch.float64)
    ours, theirs = take_rows(x, chosen), x[chosen]
    assert torch.equal(ours, theirs)
    found, wanted = (torch.autograd.grad((taken * weights).sum(), x)[0] for taken in (ours, theirs))
    assert torch.equal(found, wanted)


def test_rows_beyond_the_end_are_refused():
    with pytest.raises((IndexError, RuntimeError), match="out of range"):
        take_rows(torch.zeros(3, 2), torch.tensor([3]))


def test_one_row_for_each_token_of_its_sequence():
    tokens, lengths = torch.arange(6), torch.tensor([1, 0, 3])
    packed = Packed.join([tokens[:4], tokens[4:]], [lengths, torch.tensor([2])], torch.device("cpu"))
    assert packed.lengths == (1, 0, 3, 2)
    rows = torch.arange(4)[:, None].expand(-1, 2)
    assert packed.repeat(rows)[:, 0].tolist() == [0, 2, 2, 2, 3, 3]
