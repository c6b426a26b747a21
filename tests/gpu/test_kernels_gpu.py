"""The kernels on a GPU give what they give on the CPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from surgrec.configs.model import IMAGENET_MEAN, IMAGENET_STD, BlockGroup
from surgrec.kernels import flash4_attention
from surgrec.kernels.attention import Backend, attention
from surgrec.kernels.counter_rng import random_u64, stream_key, uniform
from surgrec.kernels.feature_loss import feature_loss, plain_feature_loss
from surgrec.kernels.masking import multi_block_mask, tube_mask
from surgrec.kernels.patchify import patchify, patchify_packed, unpatchify
from surgrec.kernels.pixel_loss import pixel_loss, plain_errors
from surgrec.kernels.pixel_target import pixel_target
from surgrec.kernels.place_tokens import add_positions
from surgrec.kernels.rotary import plain_rotate, rotate
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

GRID = (8, 14, 14)


def xformers_runs() -> bool:
    """Whether xformers is there and its library loads: its wheels are built for one CUDA version."""
    ops = pytest.importorskip("xformers.ops")
    x = torch.zeros(1, 32, 1, 32, device="cuda", dtype=torch.bfloat16)
    try:
        ops.memory_efficient_attention(x, x, x)
    except NotImplementedError:
        return False
    return True


def test_random_bits_are_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(-(2**63), 2**63 - 1, (100_000,), generator=generator)
    for key in (0, 2**64 - 1, stream_key(3, "gpu")):
        bits = random_u64(key, counters)
        on_gpu = random_u64(key, counters.cuda())
        assert torch.equal(on_gpu.cpu(), bits)
        assert torch.equal(uniform(on_gpu).cpu(), uniform(bits))


def test_masks_are_the_same() -> None:
    samples = torch.arange(64) * 12345
    here, there = tube_mask(7, samples, GRID, 0.9), tube_mask(7, samples.cuda(), GRID, 0.9)
    assert torch.equal(here.visible, there.visible.cpu())
    assert torch.equal(here.masked, there.masked.cpu())
    groups = (BlockGroup(8, 0.15), BlockGroup(2, 0.7))
    for equal in (False, True):
        ours = multi_block_mask(7, samples, 3, GRID, groups, equal)
        theirs = multi_block_mask(7, samples.cuda(), 3, GRID, groups, equal)
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.context, other.context.cpu())
            assert torch.equal(one.target_lengths, other.target_lengths.cpu())


def test_tube_masks_do_not_wait_for_the_gpu() -> None:
    samples = torch.arange(64).cuda()
    tube_mask(7, samples, GRID, 0.9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tube_mask(7, samples, GRID, 0.9)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_tokens_and_targets_are_the_same() -> None:
    frames = torch.randint(0, 256, (4, 16, 224, 224, 3), dtype=torch.uint8)
    mask = tube_mask(1, torch.arange(4), GRID, 0.9)
    here = patchify(frames, mask.visible, 2, 16, IMAGENET_MEAN, IMAGENET_STD)
    there = patchify(frames.cuda(), mask.visible.cuda(), 2, 16, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(there.cpu(), here, atol=1e-6, rtol=1e-6)
    target = pixel_target(frames.cuda(), mask.masked.cuda())
    torch.testing.assert_close(target.cpu(), pixel_target(frames, mask.masked), atol=1e-5, rtol=1e-5)
    lengths = torch.full((4,), 160)
    packed = patchify_packed(
        frames.cuda(), mask.visible.flatten().cuda(), lengths.cuda(), 2, 16, IMAGENET_MEAN, IMAGENET_STD
    )
    assert torch.equal(packed, there.flatten(0, 1))
    grey = torch.zeros(4, 160, 1536, dtype=torch.uint8)
    pictures = unpatchify(grey.cuda(), mask.visible.cuda(), frames.cuda())
    assert torch.equal(pictures.cpu(), unpatchify(grey, mask.visible, frames))


def reference(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Formula in float64, sequence by sequence: [sum, heads, d]."""
    outs = []
    for parts in zip(*(x.double().split(lengths) for x in (q, k, v)), strict=True):
        weights = (torch.einsum("nhd,mhd->hnm", parts[0], parts[1]) / q.shape[-1] ** 0.5).softmax(-1)
        outs.append(torch.einsum("hnm,mhd->nhd", weights, parts[2]))
    return torch.cat(outs)


@pytest.mark.parametrize("backend", ["auto", "xformers", "cudnn", "triton", "flash4", "flash", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [64, 32])
@pytest.mark.parametrize("lengths", [[160, 160, 160], [301, 17, 1, 640]])
def test_attention(backend: Backend, dtype: torch.dtype, width: int, lengths: list[int]) -> None:
    if backend == "xformers" and not xformers_runs():
        pytest.skip("xformers has no kernels for this PyTorch")
    if backend == "triton" and len(set(lengths)) > 1:
        pytest.skip("for sequences of one length only")
    if backend in ("cudnn", "triton", "flash4", "flash") and dtype == torch.float32:
        pytest.skip("for half precision only")
    if backend == "flash4" and torch.cuda.get_device_capability()[0] != flash4_attention.CAPABILITY:
        pytest.skip("needs a GPU of compute capability 9.x")
    if backend == "flash4" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("needs flash-attn-4")
    torch.manual_seed(0)
    total = sum(lengths)
    q, k, v = (torch.randn(total, 6, width, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
    weights = torch.randn(total, 6, width, device="cuda", dtype=dtype)
    expected = reference(q, k, v, lengths)
    wanted = torch.autograd.grad(expected, (q, k, v), weights.double())
    tolerance = 0.03 if dtype == torch.bfloat16 else 1e-3
    out = attention(q, k, v, lengths, backend)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    for one, other in zip(torch.autograd.grad(out, (q, k, v), weights), wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=tolerance, rtol=tolerance)
    if len(set(lengths)) == 1:
        dense = attention(*(x.view(len(lengths), -1, 6, width) for x in (q, k, v)), backend=backend)
        torch.testing.assert_close(dense.flatten(0, 1).double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("lengths", [None, [301, 17, 1, 640], [512, 7]])
@pytest.mark.parametrize("width", [32, 64, 80])
def test_cudnn_takes_heads_that_lie_side_by_side_and_gives_their_gradients_so(
    lengths: list[int] | None, width: int
) -> None:
    torch.manual_seed(0)
    shape = (3, 160) if lengths is None else (sum(lengths),)
    qkv = torch.randn(*shape, 3, 6, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    q, k, v = qkv.unbind(-3)
    weights = torch.randn(*shape, 6, width, device="cuda", dtype=torch.bfloat16)
    out = attention(q, k, v, lengths, "cudnn")
    sizes = lengths or [160] * 3
    flat = [x.detach().reshape(-1, 6, width).requires_grad_() for x in (q, k, v)]
    expected = reference(*flat, sizes)
    torch.testing.assert_close(out.flatten(0, -3).double(), expected, atol=0.02, rtol=0.02)
    found = torch.autograd.grad(out, (q, k, v), weights)
    wanted = torch.autograd.grad(expected, flat, weights.flatten(0, -3).double())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.flatten(0, -3).double(), other.double(), atol=0.03, rtol=0.03)
    row = 3 * 6 * width
    assert [part.stride(-3) for part in found] == [row] * 3
    assert [part.storage_offset() for part in found] == [0, 6 * width, 12 * width]
    with torch.no_grad():
        assert torch.equal(attention(q, k, v, lengths, "cudnn"), out)


@pytest.mark.parametrize("tokens", [1, 16, 49, 160, 196, 256, 257, 1568])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_triton_attention(tokens: int, width: int) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(5, tokens, 3, 6, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    q, k, v = qkv.unbind(2)
    weights = torch.randn(5, tokens, 6, width, device="cuda", dtype=torch.bfloat16)
    out = attention(q, k, v, backend="triton")
    flat = [x.detach().flatten(0, 1).requires_grad_() for x in (q, k, v)]
    expected = reference(flat[0], flat[1], flat[2], [tokens] * 5)
    assert float((out.flatten(0, 1) - expected).norm() / expected.norm()) < 5e-3
    found = torch.autograd.grad(out, (q, k, v), weights)
    wanted = torch.autograd.grad(expected, flat, weights.flatten(0, 1).double())
    scale = sum(float(other.square().sum()) for other in wanted) ** 0.5
    for one, other in zip(found, wanted, strict=True):
        assert float((one.flatten(0, 1) - other).norm()) / scale < 8e-3
    assert [part.stride(1) for part in found] == [3 * 6 * width] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1 / 3, 2.0**16])
def test_pixel_loss_and_its_gradient(dtype: torch.dtype, normalise: bool, scale: float) -> None:
    frames = torch.randint(0, 256, (3, 4, 64, 96, 3), dtype=torch.uint8)
    frames[:, :2, :16, :16] = 77
    tokens = torch.stack([torch.randperm(48)[:20] for _ in range(3)])
    tokens[:, 0] = 0
    predicted = torch.randn(3, 20, 1536).to(dtype)
    ours = predicted.cuda().requires_grad_()
    loss = pixel_loss(ours, frames.cuda(), tokens.cuda(), normalise=normalise)
    (scale * loss).backward()
    theirs = predicted.requires_grad_()
    wanted = plain_errors(theirs, frames, tokens, 2, 16, normalise).mean() / 1536
    (scale * wanted).backward()
    torch.testing.assert_close(loss.cpu(), wanted, rtol=1e-5, atol=0)
    assert ours.grad is not None
    assert theirs.grad is not None
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    # Small gradients are no normal numbers of float16.
    near = scale * 1e-9 + (6e-8 if dtype == torch.float16 else 0)
    torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=tolerance, atol=near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_and_its_gradient(dtype: torch.dtype) -> None:
    qkv = torch.randn(300, 3, 16, 64).to(dtype)
    factors, weights = torch.randn(300, 2, 64), torch.randn(300, 16, 64).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7  # the result is rounded once
    for part in (0, 1):
        # In bfloat16 PyTorch rounds both parts of the gradient before it adds them up.
        ours, theirs = qkv.cuda().requires_grad_(), qkv.clone().float().requires_grad_()
        turned, wanted = rotate(ours[:, part], factors.cuda()), plain_rotate(theirs[:, part], factors)
        assert turned.dtype == dtype
        torch.testing.assert_close(turned.float().cpu(), wanted, rtol=tolerance, atol=1e-5)
        turned.backward(weights.cuda())
        wanted.backward(weights.float())
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad.float().cpu(), theirs.grad, rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 160), (5000,)])
def test_positions_and_their_gradient(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weights = torch.randn(*shape, 768).to(dtype), torch.randn(*shape, 768)
    table, tokens = torch.randn(1568, 768), torch.randint(0, 1568, shape)
    ours = x.cuda().requires_grad_()
    out = add_positions(ours, table.cuda(), tokens.cuda())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.cpu(), x + table[tokens], rtol=1e-6, atol=1e-6)
    out.backward(weights.cuda())
    assert ours.grad is not None
    assert torch.equal(ours.grad.cpu(), weights.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("count", "width"), [(4000, 1024), (777, 384), (1, 1280)])
def test_feature_loss_and_its_gradient(dtype: torch.dtype, count: int, width: int) -> None:
    targets, rows = torch.randn(3000, width), torch.randint(0, 3000, (count,))
    predicted, weights = torch.randn(count, width).to(dtype), torch.rand(count)
    targets[rows[0]] = predicted[0].float()
    ours, theirs = predicted.cuda().requires_grad_(), predicted.requires_grad_()
    loss = feature_loss(ours, targets.cuda(), rows.cuda(), weights.cuda())
    wanted = plain_feature_loss(theirs, targets, rows, weights)
    torch.testing.assert_close(loss.cpu(), wanted, rtol=1e-5, atol=1e-6)
    (3 * loss).backward()
    (3 * wanted).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=tolerance, atol=1e-9)
