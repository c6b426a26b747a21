"""What can be looked at without a GPU of cuDNN's attention: cases, bounds, graphs (tests/gpu runs it)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from surgrec.kernels import cudnn_attention as module
from surgrec.kernels.cudnn_attention import Case, bound, case_of
from surgrec.kernels.join_heads import side_by_side


@given(st.integers(1, 10_000_000))
def test_bounds_leave_little_room_and_are_few(tokens: int) -> None:
    assert 0 <= bound(tokens) - tokens < max(64, tokens / module.STEPS)
    assert bound(bound(tokens)) == bound(tokens)


def test_bounds_of_a_doubling() -> None:
    assert len({bound(tokens) for tokens in range(32_769, 65_537)}) == module.STEPS


def test_other_lengths_are_the_same_case() -> None:
    q = torch.zeros(40_000, 16, 64)
    one = case_of(q, (300,) * 100 + (100,) * 100, True, True)
    other = case_of(q[:39_900], (280,) * 100 + (119,) * 100, True, True)
    assert one == other
    assert (one.sequences, one.tokens, one.total) == (200, 320, 40_960)
    assert case_of(q.view(100, 400, 16, 64), None, True, True).total == 0


@pytest.mark.parametrize("shape", [(14,), (2, 7)])
def test_side_by_side(shape: tuple[int, ...]) -> None:
    memory = torch.arange(14 * 3 * 4 * 8.0).view(*shape, 3, 4, 8)
    q, k, v = memory.unbind(-3)
    found = side_by_side(q, k, v)
    assert found is not None
    assert torch.equal(found, memory.view(14, 3, 4, 8))
    assert found.data_ptr() == memory.data_ptr()
    for wrong in ((q, v, k), (q, k, v.clone()), (q[1:], k, v), tuple(x.contiguous() for x in (q, k, v))):
        assert side_by_side(*wrong) is None


@pytest.mark.parametrize("total", [0, 40_960])
@pytest.mark.parametrize("joined", [True, False])
def test_graphs_name_all_that_a_run_gives(total: int, joined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built by the package itself, but for the plan, which needs a GPU."""
    pytest.importorskip("cudnn")
    monkeypatch.setattr(module, "_handle", lambda device: None)
    named: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "_Plan", lambda graph, tensors, device: named.append(tensors))
    case = Case(torch.device("cpu"), torch.bfloat16, 100, 640, total, 16, 64, joined, True)
    module._forward_plan(case)
    module._backward_plan(case)
    forward = {"q", "k", "v", "out", "statistics"}
    backward = forward | {"gradient", "q_gradient", "k_gradient", "v_gradient"}
    where = set()
    if total:
        sizes = (300,) * 100
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        where = set(module._offsets(case, sizes, torch.device("cpu")))
        assert len(where) == 2 + joined
    assert [set(tensors) for tensors in named] == [forward | where, backward | where]
    module._forward_plan.cache_clear()
    module._backward_plan.cache_clear()
