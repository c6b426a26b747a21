"""Attention against the formula, and packed sequences against each by itself."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.kernels import attention as module
from surgrec.kernels.attention import DENSE, PACKED, Backend, attention
from surgrec.kernels.attention_table import ELSEWHERE, TABLE, order_for
from torch import Tensor


def draw(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, *shape, generator=generator).unbind(0)
    return q, k, v


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[N, heads, d] in float64."""
    q, k, v = q.double(), k.double(), v.double()
    weights = (torch.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, v)


def test_dense_is_the_formula() -> None:
    q, k, v = draw(2, 9, 3, 8)
    out = attention(q, k, v)
    for b in range(2):
        torch.testing.assert_close(out[b].double(), formula(q[b], k[b], v[b]), atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=7), st.booleans())
def test_packed_is_each_sequence_by_itself(lengths: list[int], as_tensor: bool) -> None:
    q, k, v = draw(sum(lengths), 2, 8)
    out = attention(q, k, v, torch.tensor(lengths) if as_tensor else lengths)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        expected = formula(q[part], k[part], v[part])
        torch.testing.assert_close(out[part].double(), expected, atol=1e-5, rtol=1e-5)
        start += length


def test_no_gradient_crosses_sequences() -> None:
    q, k, v = (x.requires_grad_() for x in draw(10, 2, 8))
    attention(q, k, v, [4, 6])[:4].square().sum().backward()
    for x in (q, k, v):
        assert x.grad is not None
        assert (x.grad[:4] != 0).all()
        assert (x.grad[4:] == 0).all()


def test_autocast_decides_the_dtype() -> None:
    q, k, v = draw(2, 9, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(q, k.bfloat16(), v).dtype == torch.bfloat16


def test_wrong_arguments_are_refused() -> None:
    q, k, v = draw(2, 9, 3, 8)
    for wrong in ((q, k[:, :4], v), (q, k, v.double()), (q, k[:1], v[:1])):
        with pytest.raises(ValueError, match="unlike"):
            attention(*wrong)
    with pytest.raises(ValueError, match="takes"):
        attention(q, k, v, [9, 9])
    with pytest.raises(ValueError, match="takes"):
        attention(q[0], k[0], v[0])
    with pytest.raises(ValueError, match="add up to 8"):
        attention(q[0], k[0], v[0], [4, 4])
    for backend in ("xformers", "cudnn", "flash4"):
        with pytest.raises(RuntimeError, match=f"{backend} has no kernel"):
            attention(q, k, v, backend=backend)
    with pytest.raises(RuntimeError, match=r"cudnn has no kernel.*takes bfloat16 or float16 on a GPU"):
        attention(q[0], k[0], v[0], [4, 5], backend="cudnn")
    with pytest.raises(RuntimeError, match="flash has no kernel"):
        attention(q[0], k[0], v[0], [4, 5], backend="flash")


@pytest.mark.parametrize("backend", ["auto", "sdpa", "flash"])
def test_backends_of_the_cpu_agree(backend: Backend) -> None:
    q, k, v = draw(2, 9, 3, 8)
    out = attention(q, k, v, backend=backend)
    torch.testing.assert_close(out, attention(q, k, v, backend="sdpa"), atol=1e-6, rtol=1e-6)
    packed = attention(*(x.flatten(0, 1) for x in (q, k, v)), [9, 9], backend)
    assert torch.equal(packed, out.flatten(0, 1))


def test_the_table_names_backends_that_there_are() -> None:
    cases = [(row.packed, row.order) for row in TABLE] + [(packed, ELSEWHERE) for packed in (True, False)]
    for packed, order in cases:
        assert set(order) <= set(PACKED if packed else DENSE)
    lengths = [(row.capability, row.packed, row.width, row.tokens) for row in TABLE]
    assert lengths == sorted(lengths), "the first row that is long enough counts"
    assert order_for(9, False, 64, 160)[:2] == ("triton", "cudnn")
    assert order_for(9, False, 128, 160)[:2] == order_for(9, True, 64, 1568)[:2] == ("cudnn", "flash4")
    assert order_for(9, False, 64, 257)[:2] == ("cudnn", "flash4")
    assert order_for(9, False, 64, 1568)[:2] == ("flash4", "cudnn")
    assert order_for(99, False, 64, 1568) == ELSEWHERE


def test_a_backend_that_refuses_gives_way_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens on a GPU, with backends and a device that stand in for it."""
    calls = []

    def refuses(*_: Tensor) -> Tensor:
        calls.append("refuses")
        raise RuntimeError("No available kernel")

    def runs(q: Tensor, *_: Tensor) -> Tensor:
        calls.append("runs")
        return q

    monkeypatch.setattr(module, "DENSE", {"xformers": refuses, "flash": runs, "sdpa": refuses})
    monkeypatch.setattr(module, "_capability", lambda device: 0)
    monkeypatch.setattr(module, "_refused", set())
    gpu = SimpleNamespace(
        is_cuda=True, device="gpu", dtype=torch.bfloat16, shape=(1, 4, 2, 8), requires_grad=True
    )
    gpu.numel = lambda: 64
    for _ in range(2):
        assert module._by("auto", module.DENSE, gpu, gpu, gpu, False, 4) is gpu
    assert calls == ["refuses", "runs", "runs"]

    # Nothing to compute is no reason to give a library up.
    gpu.numel = lambda: 0
    ways = {"xformers": refuses, "flash": refuses, "sdpa": runs}
    assert module._by("auto", ways, gpu, gpu, gpu, False, 5) is gpu
    assert calls == ["refuses", "runs", "runs", "runs"]
    gpu.numel = lambda: 64

    def has_no_memory(*_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("none left")

    ways = {"xformers": has_no_memory, "flash": runs, "sdpa": runs}
    gpu.dtype = torch.float16
    with pytest.raises(torch.OutOfMemoryError):
        module._by("auto", ways, gpu, gpu, gpu, False, 4)


@pytest.mark.parametrize(("capability", "versions"), [(9, ["FA3"]), (10, ["FA4"])])
def test_pytorch_calls_flash_4_only_where_we_do_not(
    capability: int, versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    activated: list[str] = []
    monkeypatch.setattr(module, "_capability", lambda device: capability)
    monkeypatch.setattr(module, "_is_there", lambda name: True)
    monkeypatch.setattr(
        module.torch_attention, "activate_flash_attention_impl", activated.append, raising=False
    )
    module._newest_flash.__wrapped__(torch.device("cpu"))
    assert activated == []
    module._newest_flash.__wrapped__(torch.device("cuda", 0))
    assert activated == versions


def test_xformers_mask_is_its_own() -> None:
    """Its lengths come to the device by a copy of ours."""
    fmha = pytest.importorskip("xformers.ops").fmha
    cpu = torch.device("cpu")
    ours, theirs = (
        module._block_diagonal((3, 5, 1), cpu, 0),
        fmha.BlockDiagonalMask.from_seqlens([3, 5, 1], device=cpu),
    )
    for mine, other in ((ours.q_seqinfo, theirs.q_seqinfo), (ours.k_seqinfo, theirs.k_seqinfo)):
        assert torch.equal(mine.seqstart, other.seqstart)
        assert mine.seqstart.dtype == other.seqstart.dtype
        assert (mine.max_seqlen, mine.min_seqlen, mine.seqstart_py) == (
            other.max_seqlen,
            other.min_seqlen,
            other.seqstart_py,
        )


def test_the_cpu_never_imports_xformers() -> None:
    code = (
        "import sys, torch; from surgrec.kernels.attention import attention; x = torch.ones(4, 1, 8); "
        "attention(x, x, x, [1, 3]); assert 'xformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
