"""The kernels between a block's matrix products, and fused blocks, on a GPU, at the sizes of the presets."""

from __future__ import annotations

import copy

import pytest
import torch
from surgrec.kernels.add_norm import (
    add_norm,
    add_norm_backward,
    norm_of_sum,
    norm_of_sum_backward,
    plain_add_norm,
    plain_add_norm_backward,
    plain_norm_of_sum,
    plain_norm_of_sum_backward,
)
from surgrec.kernels.column_sums import column_sums
from surgrec.kernels.fold import folded, folded_backward, plain_folded, plain_folded_backward
from surgrec.kernels.gelu import gelu, gelu_backward, plain_gelu_backward
from surgrec.kernels.join_heads import join, plain_join, turn_
from surgrec.kernels.rotary import plain_rotate
from torch import Tensor, nn
from torch.nn import functional

from surgrec.models.block_ways import set_blocks
from surgrec.models.vit import Blocks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

WIDTHS = [192, 384, 768, 1024, 1280]
ROWS = 20_011
LOW = torch.bfloat16


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def same(ours: Tensor, theirs: Tensor, summed: int = 1) -> None:
    """Equal but for rounding, and for the order in which `summed` numbers of about 1 are added."""
    low = ours.dtype == LOW
    near = 2e-2 if low else 1e-5 * (1 + summed**0.5)
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=1.6e-2 if low else 1e-4, atol=near)


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("added", [False, True])
def test_sum_and_norm(columns: int, added: bool) -> None:
    stream = draw(ROWS, columns)
    rest, bias = (draw(ROWS, columns, dtype=LOW), draw(columns)) if added else (None, None)
    ours, theirs = (run(stream, rest, bias, 1e-6, LOW) for run in (add_norm, plain_add_norm))
    for one, other in zip(ours, theirs, strict=True):
        same(one, other)
    gradient, others = draw(ROWS, columns, dtype=LOW), draw(ROWS, columns, dtype=LOW)
    for used in (others, None):
        (found, sums), (expected, expected_sums) = (
            run(gradient, ours[1], ours[2], used, LOW, added)
            for run in (add_norm_backward, plain_add_norm_backward)
        )
        same(found, expected)
        assert (sums is None) == (not added)
        if sums is not None and expected_sums is not None:
            same(sums, expected_sums, ROWS)


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("share", [None, 0.9, 1.0])
def test_norm_of_some_rows_of_a_sum(columns: int, share: float | None) -> None:
    stream, rest, bias = draw(ROWS, columns), draw(ROWS, columns, dtype=LOW), draw(columns)
    order = torch.randperm(ROWS, device="cuda")
    picked = None if share is None else order[: round(share * ROWS)]
    arguments = (stream, rest, bias, 1e-6, LOW, picked)
    ours, theirs = norm_of_sum(*arguments), plain_norm_of_sum(*arguments)
    for one, other in zip(ours, theirs, strict=True):
        same(one, other)
    gradient = draw(len(ours[0]), columns, dtype=LOW)
    found, sums = norm_of_sum_backward(gradient, *ours, LOW, picked, ROWS)
    expected, expected_sums = plain_norm_of_sum_backward(gradient, *ours, LOW, picked, ROWS)
    same(found, expected)
    same(sums, expected_sums, ROWS)


@pytest.mark.parametrize("columns", [4 * width for width in WIDTHS])
def test_gelu(columns: int) -> None:
    x, gradient = draw(ROWS, columns, dtype=LOW), draw(ROWS, columns, dtype=LOW)
    same(gelu(x), functional.gelu(x))
    expected = plain_gelu_backward(gradient, x)
    found = gelu_backward(gradient, x)
    for one, other in zip(found[:2], expected[:2], strict=True):
        same(one, other)
    same(found[2], expected[2], ROWS)


@pytest.mark.parametrize("columns", WIDTHS)
def test_folding(columns: int) -> None:
    weight, bias, scale, shift = draw(4 * columns, columns), draw(4 * columns), draw(columns), draw(columns)
    for one, other in zip(
        folded(weight, bias, scale, shift, LOW), plain_folded(weight, bias, scale, shift, LOW), strict=True
    ):
        same(one, other)
    gradients = draw(4 * columns, columns, dtype=LOW), draw(4 * columns, dtype=LOW)
    found = folded_backward(*gradients, weight, scale, shift)
    for one, other in zip(found, plain_folded_backward(*gradients, weight, scale, shift), strict=True):
        same(one, other, 4 * columns)


@pytest.mark.parametrize(("heads", "width"), [(6, 64), (12, 64), (12, 32), (16, 64), (16, 80)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("heads_first", [False, True])
def test_joining(heads: int, width: int, turned: bool, heads_first: bool) -> None:
    parts = [draw(7, 1568, heads, width, dtype=LOW) for _ in range(3)]
    if heads_first:
        parts = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in parts]
    factors = draw(7 * 1568, 2, width) if turned else None
    # Kernels round what they have turned, and sum what they have not rounded yet.
    expected = plain_join(*(part.float() for part in parts), factors)
    found = join(*parts, factors)
    same(found[0], expected[0])
    same(found[1], expected[1], 7 * 1568)
    beside = torch.stack(parts, -3)
    found = join(*beside.unbind(-3), factors)
    assert found[0].data_ptr() == beside.data_ptr()
    same(found[0], expected[0])
    same(found[1], expected[1], 7 * 1568)
    if factors is not None:
        qkv = draw(7 * 1568, 3, heads, width, dtype=LOW)
        wanted = [plain_rotate(qkv[:, part].float(), factors) for part in (0, 1)] + [qkv[:, 2].float()]
        turn_(qkv, factors)
        same(qkv, torch.stack(wanted, 1))


@pytest.mark.parametrize(("rows", "columns"), [(1, 384), (176, 1536), (528, 3072), (4224, 1000)])
def test_column_sums(rows: int, columns: int) -> None:
    parts = draw(rows, columns)
    same(column_sums(parts), parts.double().sum(0), rows)
    assert torch.equal(column_sums(parts), column_sums(parts))


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16)])
@pytest.mark.parametrize("lengths", [None, [300, 420, 160, 520]])
@pytest.mark.parametrize("rotary", [False, True])
def test_fused_blocks_are_as_near_to_float32_as_plain_ones(
    width: int, heads: int, lengths: list[int] | None, rotary: bool
) -> None:
    """Their output as near as autocast's; their gradients as autocast's where the stream is in bf16.

    For such is the gradient of their stream: it is rounded once for each half of a block.
    """
    torch.manual_seed(0)
    plain = Blocks(3, width, heads, "zero", "auto", False).cuda()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.03)
    fused = copy.deepcopy(plain)
    set_blocks(fused, "fused")
    shape = (4, 350) if lengths is None else (sum(lengths),)
    x = draw(*shape, width)
    factors = draw(*shape, 2, width // heads) if rotary else None
    weights = draw(*shape, width)

    def run(blocks: Blocks, half: bool, stream_dtype: torch.dtype = torch.float32) -> list[Tensor]:
        start = x.to(stream_dtype).requires_grad_()
        with torch.autocast("cuda", LOW, enabled=half):
            stream, rest, bias = blocks(start, lengths, factors)
            out = stream if rest is None or bias is None else stream + rest + bias
        gradients = torch.autograd.grad((out.float() * weights).sum(), [start, *blocks.parameters()])
        return [out.detach().float(), *(gradient.float() for gradient in gradients)]

    exact, autocast, half, ours = run(plain, False), run(plain, True), run(plain, True, LOW), run(fused, True)
    names = ["output", "input", *(name for name, _ in plain.named_parameters())]
    for name, wanted, theirs, found in zip(names, exact, [autocast[0], *half[1:]], ours, strict=True):
        scale = wanted.norm().clamp(min=1e-8)
        error, allowed = float((found - wanted).norm() / scale), float((theirs - wanted).norm() / scale)
        assert error < max(1.2 * allowed, 2.0**-9), (name, error, allowed)
