"""Attention in Triton's interpreter, against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from surgrec.kernels import triton_attention as module
from surgrec.kernels.attention import attention
from surgrec.kernels.triton_attention import Tiling, Tilings, parts_of, triton_attention
from surgrec.kernels.triton_mode import INTERPRETED
from torch.nn import functional

needs_interpreter = pytest.mark.skipif(
    not INTERPRETED, reason="test_kernels_in_tritons_interpreter runs it in a process of its own"
)


@needs_interpreter
@pytest.mark.parametrize(
    ("tokens", "rows", "others"), [(1, 16, 16), (16, 16, 16), (37, 16, 16), (50, 16, 32), (48, 32, 16)]
)
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("at_once", [256, 0])
def test_interpreted_triton_attention(
    tokens: int, rows: int, others: int, joined: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(2, tokens, 3, 2, 16, generator=generator)
    q, k, v = qkv.unbind(2) if joined else [x.clone() for x in qkv.unbind(2)]
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    weights = torch.randn(2, tokens, 2, 16, generator=generator)
    tiling = Tiling(rows, others)
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    out = triton_attention(q, k, v, Tilings(tiling, tiling, tiling, tiling))
    wanted = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(out, (q, k, v), weights)
    for one, other in zip(found, torch.autograd.grad(wanted, (q, k, v), weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert [part.stride(1) for part in found] == [96 if joined else 32] * 3


@pytest.mark.parametrize("tokens", range(1, 257))
def test_parts_have_room_and_little_more(tokens: int) -> None:
    first, second = parts_of(tokens)
    assert tokens <= first + second < 2 * tokens + 16
    assert all(part == 0 or part & (part - 1) == 0 for part in (first, second))
    assert second == 0 or (first <= tokens and second <= first)


def test_what_it_does_not_take() -> None:
    q = torch.zeros(1, 9, 1, 48)
    with pytest.raises(NotImplementedError, match="heads of 16, 32, 64 or 128"):
        triton_attention(q, q, q)
    lengths = torch.zeros(9, 1, 64)
    with pytest.raises(RuntimeError, match="one length only"):
        attention(lengths, lengths, lengths, [4, 5], "triton")


def test_kernels_in_tritons_interpreter(in_interpreter: Callable[[str, str, int], None]) -> None:
    in_interpreter(__file__, "interpreted", 20)
