"""The kernels between the matrix products of a block against their plain twins, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable

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
from surgrec.kernels.fold import fold, folded, folded_backward, plain_folded, plain_folded_backward
from surgrec.kernels.gelu import gelu, gelu_backward, plain_gelu_backward
from surgrec.kernels.join_heads import join, plain_join, turn_
from surgrec.kernels.rotary import plain_rotate
from surgrec.kernels.triton_mode import INTERPRETED
from torch import Tensor
from torch.nn import functional

needs_interpreter = pytest.mark.skipif(
    not INTERPRETED, reason="test_kernels_in_tritons_interpreter runs it in a process of its own"
)
SHAPES = [(13, 48), (5, 24), (1, 64), (33, 16)]
"""Rows and columns; no powers of two, more rows than fit into one program's turn, and fewer."""


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(ours: object, theirs: object, half: bool = False) -> None:
    tolerance = {"rtol": 2e-3, "atol": 2e-3} if half else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(ours, theirs, **tolerance)


@needs_interpreter
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("low", [torch.float32, torch.float16])
def test_interpreted_sum_and_norm(
    rows: int, columns: int, added: bool, alone: bool, low: torch.dtype
) -> None:
    stream = draw(rows, columns) + 3
    rest, bias = (draw(rows, columns, seed=1, dtype=low), draw(columns, seed=2)) if added else (None, None)
    half = low == torch.float16
    ours = add_norm(stream, rest, bias, 1e-6, low)
    theirs = plain_add_norm(stream, rest, bias, 1e-6, low)
    for one, other in zip(ours, theirs, strict=True):
        same(one, other, half)
    assert ours[1].dtype == low
    assert added or ours[0] is stream
    gradient, others = draw(rows, columns, seed=3, dtype=low), draw(rows, columns, seed=4, dtype=low)
    used = None if alone else others
    for dtype in (torch.float32, low):
        found, sums = add_norm_backward(gradient, ours[1], ours[2], used, dtype, added)
        expected, expected_sums = plain_add_norm_backward(gradient, ours[1], ours[2], used, dtype, added)
        assert found.dtype == dtype
        same(found, expected, dtype == torch.float16)
        assert (sums is None) == (expected_sums is None) == (not added)
        if sums is not None:
            same(sums, expected_sums)


@needs_interpreter
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("share", [None, 0.0, 0.6, 1.0])
def test_interpreted_norm_of_some_rows_of_a_sum(rows: int, columns: int, share: float | None) -> None:
    stream, rest = draw(rows, columns) + 3, draw(rows, columns, seed=1, dtype=torch.float16)
    bias = draw(columns, seed=2)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(5))
    picked = None if share is None else order[: round(share * rows)]
    arguments = (stream, rest, bias, 1e-6, torch.float16, picked)
    ours = norm_of_sum(*arguments)
    for one, other in zip(ours, plain_norm_of_sum(*arguments), strict=True):
        same(one, other, half=True)
    # Every second of twice as many: in memory they are not side by side.
    loose = None if picked is None else picked.repeat_interleave(2)[::2]
    again = norm_of_sum(stream, rest, bias.repeat_interleave(2)[::2], 1e-6, torch.float16, loose)
    assert torch.equal(again[0], ours[0])
    gradient = draw(len(ours[0]), columns, seed=3, dtype=torch.float16)
    found, sums = norm_of_sum_backward(gradient, *ours, torch.float16, picked, rows)
    expected, expected_sums = plain_norm_of_sum_backward(gradient, *ours, torch.float16, picked, rows)
    same(found, expected, half=True)
    same(sums, expected_sums)
    assert found.shape == (rows, columns)
    if picked is not None:
        left = torch.ones(rows, dtype=torch.bool).index_fill(0, picked, False)
        assert not found[left].any()


@needs_interpreter
@pytest.mark.parametrize(("rows", "columns"), [*SHAPES, (40, 136)])
@pytest.mark.parametrize("low", [torch.float32, torch.float16])
def test_interpreted_gelu(rows: int, columns: int, low: torch.dtype) -> None:
    x, gradient = 2 * draw(rows, columns, dtype=low), draw(rows, columns, seed=1, dtype=low)
    half = low == torch.float16
    same(gelu(x), functional.gelu(x.float()).to(low), half)
    expected = plain_gelu_backward(gradient, x)
    for one, other in zip(gelu_backward(gradient, x), expected, strict=True):
        same(one, other, half)


@needs_interpreter
def test_interpreted_gelu_is_the_exact_one() -> None:
    x = torch.linspace(-12, 12, 40_001)
    exact = functional.gelu(x.double())
    assert float((gelu(x) - exact).abs().max()) < 5e-7
    found, activated, _ = gelu_backward(torch.ones(1, len(x)), x[None])
    wide = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(functional.gelu(wide).sum(), wide)
    assert float((found[0] - slope).abs().max()) < 1e-6
    assert torch.equal(activated[0], gelu(x))
    # The tanh that others take in its place is a thousand times farther off.
    assert float((functional.gelu(x, approximate="tanh") - exact).abs().max()) > 1e-4


@needs_interpreter
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("low", [torch.float32, torch.float16])
def test_interpreted_folding(rows: int, columns: int, biased: bool, low: torch.dtype) -> None:
    weight, scale, shift = draw(rows, columns), draw(columns, seed=1), draw(columns, seed=2)
    bias = draw(rows, seed=3) if biased else None
    for one, other in zip(
        folded(weight, bias, scale, shift, low), plain_folded(weight, bias, scale, shift, low), strict=True
    ):
        assert one.dtype == low
        same(one, other, low == torch.float16)
    gradients = draw(rows, columns, seed=4, dtype=low), draw(rows, seed=5, dtype=low)
    ours = folded_backward(*gradients, weight, scale, shift)
    for one, other in zip(ours, plain_folded_backward(*gradients, weight, scale, shift), strict=True):
        assert one.dtype == torch.float32
        same(one, other)


@needs_interpreter
@pytest.mark.parametrize(("heads", "width"), [(4, 16), (3, 8), (1, 6)])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("layout", ["batch", "heads first", "unlike", "packed"])
def test_interpreted_joining(heads: int, width: int, turned: bool, layout: str) -> None:
    shape = (14, heads, width) if layout == "packed" else (2, 7, heads, width)
    parts = [draw(*shape, seed=seed) for seed in range(3)]
    if layout == "heads first":  # as attention's own gradients may lie
        parts = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in parts]
    if layout == "unlike":
        parts[1] = parts[1].transpose(1, 2).contiguous().transpose(1, 2)
    factors = draw(14, 2, width, seed=4) if turned else None
    q, k, v = parts
    for one, other in zip(join(q, k, v, factors), plain_join(q, k, v, factors), strict=True):
        same(one, other)


@needs_interpreter
@pytest.mark.parametrize(("heads", "width"), [(4, 16), (3, 8), (1, 6)])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("shape", [(14,), (2, 7)])
def test_interpreted_joining_of_what_lies_side_by_side(
    heads: int, width: int, turned: bool, shape: tuple[int, ...]
) -> None:
    memory = draw(*shape, 3, heads, width)
    factors = draw(14, 2, width, seed=4) if turned else None
    expected = plain_join(*memory.clone().unbind(-3), factors)
    found = join(*memory.unbind(-3), factors)
    assert found[0].data_ptr() == memory.data_ptr()
    for one, other in zip(found, expected, strict=True):
        same(one, other)
    # Only nearly so: keys and values the other way round.
    q, k, v = memory.unbind(-3)
    assert join(q, v, k, factors)[0].data_ptr() != memory.data_ptr()


@needs_interpreter
@pytest.mark.parametrize("rows", [1, 3, 128, 300])
@pytest.mark.parametrize("columns", [1, 32, 100])
def test_interpreted_column_sums(rows: int, columns: int) -> None:
    parts = draw(rows, columns)
    same(column_sums(parts), parts.sum(0))


@needs_interpreter
@pytest.mark.parametrize(("heads", "width"), [(4, 16), (3, 8), (1, 6)])
def test_interpreted_turning_in_place(heads: int, width: int) -> None:
    qkv, factors = draw(11, 3, heads, width), draw(11, 2, width, seed=1)
    expected = [plain_rotate(qkv[:, part], factors) for part in (0, 1)] + [qkv[:, 2].clone()]
    turn_(qkv, factors)
    same(qkv, torch.stack(expected, 1))


def test_twins_are_the_gradients_that_autograd_finds() -> None:
    stream, rest, bias = (
        draw(*shape, seed=n).double().requires_grad_() for n, shape in enumerate([(5, 8), (5, 8), (8,)])
    )
    total = stream + rest + bias
    norm = functional.layer_norm(total, (8,), eps=1e-6)
    found = plain_add_norm(stream, rest, bias, 1e-6, torch.float64)
    same(found[0], total)
    same(found[1], norm)
    of_norm, of_total = draw(5, 8, seed=7).double(), draw(5, 8, seed=8).double()
    expected = torch.autograd.grad([norm, total], [stream, rest, bias], [of_norm, of_total])
    kept = found[1].detach(), found[2].detach()
    gradient, sums = plain_add_norm_backward(of_norm, *kept, of_total, torch.float64, True)
    same((gradient, gradient, sums), expected)
    x = draw(6, 4).double().requires_grad_()
    gradient = draw(6, 4, seed=1).double()
    (of_x,) = torch.autograd.grad(functional.gelu(x), x, gradient)
    same(plain_gelu_backward(gradient, x.detach()), (of_x, functional.gelu(x.detach()), of_x.sum(0)))


@pytest.mark.parametrize("biased", [True, False])
def test_folding_changes_nothing_but_the_order(biased: bool) -> None:
    layer, norm = torch.nn.Linear(6, 4, bias=biased).double(), torch.nn.LayerNorm(6).double()
    for parameter in (*layer.parameters(), *norm.parameters()):
        torch.nn.init.normal_(parameter)
    x = draw(5, 6).double()
    weights = draw(5, 4, seed=1).double()
    expected = layer(norm(x))
    gradients = torch.autograd.grad((expected * weights).sum(), [*layer.parameters(), *norm.parameters()])
    weight, bias = fold(layer.weight, layer.bias if biased else None, norm.weight, norm.bias, torch.float64)
    ours = functional.linear(functional.layer_norm(x, (6,), eps=norm.eps), weight, bias)
    same(ours, expected)
    same(
        torch.autograd.grad((ours * weights).sum(), [*layer.parameters(), *norm.parameters()]),
        gradients,
    )


@pytest.mark.skipif(INTERPRETED, reason="runs the interpreter's tests, which run here already")
def test_kernels_in_tritons_interpreter(in_interpreter: Callable[[str, str, int], None]) -> None:
    in_interpreter(__file__, "interpreted", 126)
