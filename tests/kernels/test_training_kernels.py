"""The kernels of the training step against their plain twins, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from surgrec.configs.model import IMAGENET_MEAN, IMAGENET_STD
from surgrec.kernels.feature_loss import feature_loss, plain_feature_loss
from surgrec.kernels.patchify import patchify, patchify_packed, plain_patches
from surgrec.kernels.pixel_loss import pixel_loss, plain_errors
from surgrec.kernels.place_tokens import add_positions, place_tokens, plain_place_tokens
from surgrec.kernels.rotary import plain_rotate, rotate
from surgrec.kernels.triton_mode import INTERPRETED
from torch import Tensor
from torch.nn import functional

needs_interpreter = pytest.mark.skipif(
    not INTERPRETED, reason="test_kernels_in_tritons_interpreter runs it in a process of its own"
)
SHAPES = [(2, 16), (1, 8), (2, 14), (3, 4)]
"""Tubelets and patches; those that are no powers of two leave part of a kernel's block unused."""


def clips(tubelet: int, patch: int, count: int = 3) -> tuple[Tensor, Tensor]:
    """uint8 frames [count, T, H, W, 3] of 2 x 2 x 3 tokens, one of them flat; int64 tokens [count, 5]."""
    generator = torch.Generator().manual_seed(patch)
    shape = (count, 2 * tubelet, 2 * patch, 3 * patch, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    frames[:, :tubelet, :patch, :patch] = 99
    tokens = torch.stack([torch.randperm(12, generator=generator)[:5] for _ in range(count)])
    tokens[:, 0] = 0
    return frames, tokens


@needs_interpreter
@pytest.mark.parametrize(("tubelet", "patch"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_interpreted_patches(tubelet: int, patch: int, dtype: torch.dtype) -> None:
    frames, tokens = clips(tubelet, patch)
    rows = torch.arange(len(frames))[:, None].expand_as(tokens)
    wanted = plain_patches(frames, rows, tokens, tubelet, patch, IMAGENET_MEAN, IMAGENET_STD, dtype)
    found = patchify(frames, tokens, tubelet, patch, IMAGENET_MEAN, IMAGENET_STD, dtype)
    torch.testing.assert_close(found, wanted, rtol=1e-6 if dtype == torch.float32 else 1e-3, atol=1e-6)
    # Frames that are a view of others: a batch's every second clip.
    strided = patchify(frames[::2], tokens[::2], tubelet, patch, IMAGENET_MEAN, IMAGENET_STD, dtype)
    assert torch.equal(strided, found[::2])
    lengths = torch.tensor([2, 0, 3])
    packed = torch.cat([tokens[0, :2], tokens[2, 1:4]])
    several = patchify_packed(frames, packed, lengths, tubelet, patch, IMAGENET_MEAN, IMAGENET_STD, dtype)
    assert torch.equal(several, torch.cat([found[0, :2], found[2, 1:4]]))
    assert patchify(frames, tokens[:, :0], tubelet, patch, IMAGENET_MEAN, IMAGENET_STD).shape[1] == 0


@needs_interpreter
@pytest.mark.parametrize(("tubelet", "patch"), SHAPES)
@pytest.mark.parametrize("normalise", [True, False])
def test_interpreted_loss_and_its_gradient(tubelet: int, patch: int, normalise: bool) -> None:
    frames, tokens = clips(tubelet, patch)
    generator = torch.Generator().manual_seed(1)
    values = tubelet * patch**2 * 3
    predicted = torch.randn(*tokens.shape, values, generator=generator, requires_grad=True)
    loss = pixel_loss(predicted, frames, tokens, tubelet, patch, normalise)
    wanted = plain_errors(predicted, frames, tokens, tubelet, patch, normalise).sum() / predicted.numel()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    (expected,) = torch.autograd.grad(wanted, predicted)
    # One that is not scaled is as it was written with the loss; others are scaled where they lie.
    for scale in (1.0, 3.0, 0.0):
        predicted.grad = None
        loss = pixel_loss(predicted, frames, tokens, tubelet, patch, normalise)
        (scale * loss).backward()
        torch.testing.assert_close(predicted.grad, scale * expected, rtol=1e-5, atol=1e-9)
    half = predicted.detach().half().requires_grad_()
    pixel_loss(half, frames, tokens, tubelet, patch, normalise).backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.float16
    torch.testing.assert_close(half.grad.float(), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@needs_interpreter
def test_interpreted_loss_in_half_precision_has_a_gradient_for_a_loss_scaler() -> None:
    """The share of one value, 2e-5 and less, is no number of float16's; scaled up it is."""
    frames, tokens = clips(2, 16)
    predicted = torch.randn(*tokens.shape, 1536, dtype=torch.float16, requires_grad=True)
    (2.0**16 * pixel_loss(predicted, frames, tokens)).backward()
    exact = predicted.detach().double().requires_grad_()
    (2.0**16 * plain_errors(exact, frames, tokens, 2, 16, True).mean() / 1536).backward()
    assert predicted.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(predicted.grad.double(), exact.grad, rtol=3e-3, atol=1e-4)


@needs_interpreter
def test_interpreted_loss_is_differentiated_once_and_only_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames, tokens = clips(1, 8)
    predicted = torch.randn(*tokens.shape, 192, requires_grad=True)
    loss = pixel_loss(predicted, frames, tokens, 1, 8)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()
    made: list[torch.Size] = []
    monkeypatch.setattr(torch, "empty_like", lambda x, **options: made.append(x.shape))
    with torch.no_grad():
        alone = pixel_loss(predicted, frames, tokens, 1, 8)
    other = pixel_loss(predicted.detach(), frames, tokens, 1, 8)
    assert not made
    assert torch.equal(alone, loss)
    assert torch.equal(other, loss)


@needs_interpreter
@pytest.mark.parametrize(("heads", "width"), [(4, 64), (3, 24), (1, 6)])
def test_interpreted_rotation_and_its_gradient(heads: int, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    # Queries as the model has them: a third of one matrix product's result.
    qkv = torch.randn(2, 7, 3, heads, width, generator=generator, requires_grad=True)
    factors = torch.randn(2, 7, 2, width, generator=generator)
    weights = torch.randn(2, 7, heads, width, generator=generator)
    for part in (0, 1):
        ours, theirs = rotate(qkv[:, :, part], factors), plain_rotate(qkv[:, :, part], factors)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        grads = [torch.autograd.grad((turned * weights).sum(), qkv)[0] for turned in (ours, theirs)]
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=1e-6)
        packed = rotate(qkv[:, :, part].flatten(0, 1), factors.flatten(0, 1))
        assert torch.equal(packed, ours.flatten(0, 1))
    assert rotate(qkv[:, :, 0].half(), factors).dtype == torch.float16


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("visible", "masked", "width"), [(2, 5, 24), (3, 0, 16), (1, 9, 40)])
def test_interpreted_decoder_tokens(visible: int, masked: int, width: int, dtype: torch.dtype) -> None:
    check_placing(visible, masked, width, dtype)


def check_placing(visible: int, masked: int, width: int, dtype: torch.dtype) -> None:
    """Tokens and gradients against autograd through the plain twin."""
    generator = torch.Generator().manual_seed(width)
    start = torch.randn(3, visible, width, generator=generator).to(dtype).requires_grad_()
    token = torch.randn(width, generator=generator, requires_grad=True)
    table = torch.randn(12, width, generator=generator)
    order = torch.stack([torch.randperm(12, generator=generator) for _ in range(3)])[:, : visible + masked]
    weights = torch.randn(3, visible + masked, width, generator=generator)
    ours = place_tokens(start, token, table, order)
    theirs = plain_place_tokens(start, token, table, order)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    found, wanted = (torch.autograd.grad((x * weights).sum(), [start, token]) for x in (ours, theirs))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_decoder_tokens_without_a_kernel() -> None:
    check_placing(2, 5, 24, torch.float32)


def check_positions(shape: tuple[int, ...], width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(*shape, width, generator=generator).to(dtype).requires_grad_()
    table = torch.randn(12, width, generator=generator)
    tokens = torch.randint(0, 12, shape, generator=generator)
    weights = torch.randn(*shape, width, generator=generator)
    ours, theirs = add_positions(x, table, tokens), x + table[tokens]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    (found,), (wanted,) = (torch.autograd.grad((out * weights).sum(), x) for out in (ours, theirs))
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5), (17,), (0, 4)])
def test_interpreted_positions(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check_positions(shape, 24, dtype)


def test_positions_without_a_kernel() -> None:
    check_positions((3, 5), 24, torch.float16)


def check_feature_loss(count: int, width: int, dtype: torch.dtype) -> None:
    """Loss and gradient against autograd through the plain twin; some predictions hit their target."""
    generator = torch.Generator().manual_seed(width)
    targets = torch.randn(9, width, generator=generator)
    rows = torch.randint(0, 9, (count,), generator=generator)
    predicted = torch.randn(count, width, generator=generator).to(dtype)
    if count:
        targets[rows[0]] = predicted[0].float()
    predicted.requires_grad_()
    weights = torch.rand(count, generator=generator)
    ours, theirs = (f(predicted, targets, rows, weights) for f in (feature_loss, plain_feature_loss))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (found,), (wanted,) = (torch.autograd.grad(3 * loss, predicted) for loss in (ours, theirs))
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=1e-3 if dtype == torch.float16 else 1e-6, atol=1e-6)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("count", "width"), [(7, 24), (1, 64), (130, 16), (0, 8)])
def test_interpreted_feature_loss(count: int, width: int, dtype: torch.dtype) -> None:
    check_feature_loss(count, width, dtype)


def test_feature_loss_refuses_what_does_not_fit() -> None:
    predicted, targets, rows = torch.zeros(3, 8), torch.zeros(5, 8), torch.zeros(3, dtype=torch.int64)
    check_feature_loss(7, 24, torch.float32)
    for wrong in ((torch.zeros(5, 7), rows, torch.ones(3)), (targets, rows[:2], torch.ones(3))):
        with pytest.raises(ValueError, match="do not fit"):
            feature_loss(predicted, *wrong)


@needs_interpreter
def test_interpreted_operators_hold_to_their_contract() -> None:
    """What torch.compile relies on: schemas, shapes without data, gradients."""
    frames, tokens = clips(1, 8)
    rows = torch.arange(len(frames))[:, None].expand_as(tokens).contiguous()
    ops = torch.ops.surgrec
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    mean, std = list(IMAGENET_MEAN), list(IMAGENET_STD)
    torch.library.opcheck(
        ops.patches, (frames, rows, tokens, 1, 8, mean, std, torch.float32), test_utils=tests
    )
    x = torch.randn(5, 2, 8, requires_grad=True)
    torch.library.opcheck(ops.rotate, (x, torch.randn(5, 2, 8), False), test_utils=tests)


def test_loss_is_the_mean_squared_error() -> None:
    from surgrec.kernels.pixel_target import pixel_target

    frames, tokens = clips(2, 16)
    predicted = torch.randn(*tokens.shape, 1536)
    for normalise in (True, False):
        wanted = functional.mse_loss(predicted, pixel_target(frames, tokens, normalise=normalise))
        torch.testing.assert_close(pixel_loss(predicted, frames, tokens, normalise=normalise), wanted)


@pytest.mark.parametrize("shape", [(3, 5, 1535), (3, 4, 1536), (2, 5, 1536), (3, 5)])
def test_predictions_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    frames, tokens = clips(2, 16)
    with pytest.raises(ValueError, match=r"\[B, N, 1536\] of \[B, N\] are needed"):
        pixel_loss(torch.zeros(shape), frames, tokens)


@pytest.mark.parametrize(
    ("x", "factors"), [((4, 2, 7), (4, 2, 7)), ((4, 2, 8), (3, 2, 8)), ((4, 2, 8), (4, 2, 6))]
)
def test_factors_that_do_not_fit_are_refused(x: tuple[int, ...], factors: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="an even d"):
        rotate(torch.zeros(x), torch.zeros(factors))


@pytest.mark.skipif(INTERPRETED, reason="runs the interpreter's tests, which run here already")
def test_kernels_in_tritons_interpreter(in_interpreter: Callable[[str, str, int], None]) -> None:
    in_interpreter(__file__, "interpreted", 42)
