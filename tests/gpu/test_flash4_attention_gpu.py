"""FlashAttention 4 on a Hopper GPU: results, gradients, graphs, and that nothing waits for the device."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import pytest
import torch
from surgrec.kernels import attention as attention_module
from surgrec.kernels import flash4_attention as module
from surgrec.kernels.attention import attention
from surgrec.kernels.join_heads import side_by_side
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != module.CAPABILITY,
        reason="needs a GPU of compute capability 9.x",
    ),
    pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="needs flash-attn-4"),
]

HEADS = 6
# One block and several; more sequences than the package looks for one by one.
PACKED = [[301, 17, 1, 640], [7, 9], [50] * 300 + [49]]
Lengths = Sequence[int] | None


def draw(rows: Sequence[int], width: int, dtype: torch.dtype = torch.bfloat16, heads: int = HEADS) -> Tensor:
    """Queries, keys and values side by side."""
    return torch.randn(*rows, 3, heads, width, device="cuda", dtype=dtype, requires_grad=True)


def reference(parts: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    """The formula in float64, sequence by sequence: [sum of lengths, heads, d]."""
    outs = []
    for q, k, v in zip(*(x.double().split(list(lengths)) for x in parts), strict=True):
        weights = (torch.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        outs.append(torch.einsum("hnm,mhd->nhd", weights, v))
    return torch.cat(outs)


def check(parts: Sequence[Tensor], lengths: Lengths) -> None:
    """Result and gradients against the formula, and gradients side by side."""
    q, k, v = parts
    out = attention(q, k, v, lengths, "flash4")
    weights = torch.randn_like(out)
    found = torch.autograd.grad(out, (q, k, v), weights)
    assert side_by_side(*found) is not None
    flat = [x.detach().reshape(-1, *x.shape[-2:]).requires_grad_() for x in parts]
    expected = reference(flat, lengths or [q.shape[1]] * len(q))
    wanted = torch.autograd.grad(expected, flat, weights.reshape(flat[0].shape).double())
    torch.testing.assert_close(out.reshape(flat[0].shape).double(), expected, atol=0.02, rtol=0.02)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.reshape(other.shape).double(), other.double(), atol=0.03, rtol=0.03)
        apart = (one.reshape(other.shape).double() - other).norm()
        assert float(apart) <= 0.02 * float(other.norm()) + 1e-4 * other.numel() ** 0.5
    with torch.no_grad():
        torch.testing.assert_close(attention(q, k, v, lengths, "flash4"), out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", module.WIDTHS)
@pytest.mark.parametrize("tokens", [1, 64, 160, 1568])
def test_sequences_of_one_length(tokens: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check(draw((3, tokens), width, dtype).unbind(-3), None)


@pytest.mark.parametrize("width", module.WIDTHS)
@pytest.mark.parametrize("lengths", PACKED, ids=lambda lengths: f"{len(lengths)} sequences")
def test_packed_sequences(lengths: list[int], width: int) -> None:
    torch.manual_seed(0)
    check(draw((sum(lengths),), width).unbind(-3), lengths)


@pytest.mark.parametrize("lengths", [None, PACKED[0]])
def test_parts_that_lie_apart_or_with_heads_first(lengths: Lengths) -> None:
    torch.manual_seed(0)
    rows = (3, 160) if lengths is None else (sum(lengths),)
    check([x.detach().clone().requires_grad_() for x in draw(rows, 64).unbind(-3)], lengths)
    heads_first = [x.detach().transpose(-3, -2).contiguous() for x in draw(rows, 64).unbind(-3)]
    check([x.transpose(-3, -2).requires_grad_() for x in heads_first], lengths)


def test_kernels_of_one_sequence_and_one_head_are_those_of_many() -> None:
    """A kernel is compiled with the first shape that comes and kept for all others."""
    torch.manual_seed(0)
    for batch, heads in ((1, 1), (3, 6), (1, 6), (3, 1)):
        check(draw((batch, 200), 32, heads=heads).unbind(-3), None)


def both_ways(lengths: Lengths) -> tuple[Callable[[], tuple[Tensor, ...]], Tensor]:
    """What computes a result and its gradients, and the queries, keys and values that it does so from."""
    qkv = draw((4, 1568) if lengths is None else (sum(lengths),), 64)
    weights = torch.randn_like(qkv.detach().select(-3, 0))

    def run() -> tuple[Tensor, ...]:
        out = attention(*qkv.unbind(-3), lengths, "flash4")
        return out.detach(), *torch.autograd.grad(out, qkv, weights)

    return run, qkv


@pytest.mark.parametrize("lengths", [None, *PACKED])
def test_nothing_waits_for_the_device(lengths: Lengths) -> None:
    run, _ = both_ways(lengths)
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("lengths", [None, PACKED[0]])
def test_both_ways_are_captured_and_replayed(lengths: Lengths) -> None:
    torch.manual_seed(0)
    run, qkv = both_ways(lengths)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        replayed = run()
    for _ in range(2):
        with torch.no_grad():
            qkv.normal_()
        graph.replay()
        # Gradients of queries are summed up in another order each time.
        for one, other in zip(replayed, run(), strict=True):
            assert float((one.double() - other.double()).norm() / other.double().norm()) < 5e-3


@pytest.mark.parametrize("lengths", [None, *PACKED])
def test_the_forward_pass_compiles_the_backward_pass(lengths: Lengths) -> None:
    interface = module._package()
    kernels = (interface._bwd_preprocess, interface._flash_attn_bwd, interface._bwd_postprocess_convert)
    qkv = draw((4, 160) if lengths is None else (sum(lengths),), 32)
    out = attention(*qkv.unbind(-3), lengths, "flash4")
    before = [len(kernel.compile_cache.cache) for kernel in kernels]
    out.sum().backward()
    assert [len(kernel.compile_cache.cache) for kernel in kernels] == before
    assert min(before) > 0


@pytest.mark.parametrize(("tokens", "taken"), [(160, "cudnn"), (1568, "flash4")])
def test_auto_takes_the_fastest(tokens: int, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def recorded(name: str, way: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: Tensor) -> Tensor:
            called.append(name)
            return way(*arguments)

        return run

    for name, way in list(attention_module.DENSE.items()):
        monkeypatch.setitem(attention_module.DENSE, name, recorded(name, way))
    attention(*draw((2, tokens), 64).unbind(-3))
    assert called == [taken]
