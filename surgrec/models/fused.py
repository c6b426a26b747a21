"""A transformer block as two functions with gradients of their own, attention between them.

    stream, rest, bias --> enter --> stream, carrier, q, k, v
                                        |       |        |
                                        |       |    attention
                                        |       |        |
                       stream, rest <-- leave --+--------+
                            |
                       bias +--> enter of the next block, or finish

`rest` is what a block's MLP gave, not yet added to the stream, and `bias` the bias that belongs to it: the
sum is made together with the next norm, in one pass.

The stream is a sum in its own, wide dtype; its gradient is that of each of its summands, and goes back with
one of them alone, in the dtype of matrix products: between blocks with `rest`, within a block with `carrier`
(the norm's output, which is kept in any case). The stream itself has no gradient, but for the one that the
first block is given.

What is kept for the backward pass is, for each token, the outputs of both norms and the four times wider
values before the GELU, beside what attention keeps: ten times the model's width. The mathematics are those of
`vit.Block`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from surgrec.kernels.add_norm import add_norm, add_norm_backward, norm_of_sum, norm_of_sum_backward
from surgrec.kernels.join_heads import join, turn_
from surgrec.kernels.mlp_products import linear_gelu, linear_gelu_backward
from surgrec.kernels.products import data_gradient, product, weight_gradient

Gradients = tuple[Tensor | None, ...]


def enter(
    stream: Tensor,
    rest: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    first_bias: Tensor,
    heads: int,
    epsilon: float,
    factors: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """From the stream to queries, keys and values.

    Args:
        stream: [..., D]; rest: [..., D] and bias [D], still to be added to it, or both None. Only where they
            are None has the stream a gradient.
        weight: [3 D, D], with the norm folded in (kernels/fold.py).
        first_bias: of queries, [D]; with factors of queries and keys, [2 D]. That of values is left to
            `leave`, as a part of the projection's: what attention weighs adds up to one.
        heads: that D divides into.
        epsilon: the norm's.
        factors: [..., 2, d] for rotary positions, or None.

    Returns:
        (the sum [..., D], without a gradient; the carrier of its gradient, [..., D], for `leave`; queries,
        keys and values, each [..., heads, d], side by side in memory). Going back, the memory of their
        gradients is used again: who keeps them finds them turned back.
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _Enter.apply(
        stream, rest, bias, weight, first_bias, heads, epsilon, factors
    )
    return found


def leave(
    stream: Tensor,
    carrier: Tensor,
    attended: Tensor,
    projection: Tensor,
    projection_bias: Tensor,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """From what attention gave to what the MLP gives.

    Args:
        stream, carrier: [..., D], as `enter` gave them.
        attended: [..., heads, d].
        projection, projection_bias: attention's output layer, [D, D] and [D]; in the latter the bias of
            values, which `enter` left.
        first, first_bias: the MLP's first layer, [F, D] and [F], with the norm folded in.
        second: the MLP's second layer, [D, F]; its bias is left to whoever adds the result to the stream.
        epsilon: the norm's.

    Returns:
        (the stream with attention's part added, [..., D], without a gradient; the MLP's part, [..., D], with
        the gradient of both).
    """
    found: tuple[Tensor, Tensor] = _Leave.apply(
        stream,
        carrier,
        attended,
        projection,
        projection_bias,
        first,
        first_bias,
        second,
        epsilon,
        torch.is_grad_enabled(),  # within the function it never is
    )
    return found


def finish(
    stream: Tensor, rest: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype, picked: Tensor | None
) -> Tensor:
    """The sum of what blocks gave, normalised without weight and bias: [..., D] of a dtype.

    Where rows are picked, int64 [K] of all tokens in their order, no two the same: [K, D], of those only.
    """
    found: Tensor = _Finish.apply(stream, rest, bias, epsilon, dtype, picked)
    return found


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        stream: Tensor,
        rest: Tensor | None,
        bias: Tensor | None,
        weight: Tensor,
        first_bias: Tensor,
        heads: int,
        epsilon: float,
        factors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        shape = stream.shape
        total, normalised, scale = add_norm(stream, rest, bias, epsilon, weight.dtype)
        with torch.autocast(stream.device.type, enabled=False):
            whole = functional.pad(first_bias, (0, len(weight) - len(first_bias)))
            qkv = product(normalised, weight, whole).unflatten(-1, (3, heads, -1))
        table = None if factors is None else factors.flatten(0, -3)
        if table is not None:
            turn_(qkv, table)
        ctx.save_for_backward(normalised, scale, weight, table)
        ctx.first = rest is None
        ctx.dtype = stream.dtype if rest is None else rest.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        q, k, v = qkv.unflatten(0, shape[:-1]).unbind(-3)
        if rest is None:  # it is the stream itself, which autograd knows already
            total = total.view(shape)
        ctx.mark_non_differentiable(total)
        ctx.set_materialize_grads(False)
        return total, normalised.view(shape), q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None, carried: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Gradients:
        normalised, scale, weight, table = ctx.saved_tensors
        joined, bias_sums = join(q, k, v, table)
        flat = joined.flatten(1)
        out, sums = add_norm_backward(
            data_gradient(flat, weight),
            normalised,
            scale,
            carried.flatten(0, -2),
            ctx.dtype,
            not ctx.first,
        )
        out = out.view(carried.shape)
        return (
            out if ctx.first else None,
            None if ctx.first else out,
            None if sums is None else sums.to(ctx.bias_dtype),
            weight_gradient(flat, normalised) if ctx.needs_input_grad[3] else None,
            bias_sums.to(weight.dtype),
            None,
            None,
            None,
        )


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        stream: Tensor,
        carrier: Tensor,
        attended: Tensor,
        projection: Tensor,
        projection_bias: Tensor,
        first: Tensor,
        first_bias: Tensor,
        second: Tensor,
        epsilon: float,
        differentiated: bool,
    ) -> tuple[Tensor, Tensor]:
        shape = stream.shape
        keep = differentiated and any(ctx.needs_input_grad)
        with torch.autocast(stream.device.type, enabled=False):
            added = product(attended.flatten(-2), projection)
            total, normalised, scale = add_norm(stream, added, projection_bias, epsilon, first.dtype)
            hidden, activated = linear_gelu(normalised, first, first_bias, keep)
            # Not a view of the rows: FSDP warns of those.
            out = product(activated.view(*shape[:-1], len(first)), second)
        ctx.save_for_backward(attended, normalised, scale, hidden, projection, first, second)
        ctx.bias_dtype = projection_bias.dtype
        ctx.mark_non_differentiable(total)
        ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None, gradient: Tensor) -> Gradients:
        attended, normalised, scale, hidden, projection, first, second = ctx.saved_tensors
        rest = gradient.flatten(0, -2)
        wanted = ctx.needs_input_grad
        hidden_gradient, activated, first_bias = linear_gelu_backward(rest, second, hidden)
        second_gradient = weight_gradient(rest, activated) if wanted[7] else None
        del activated
        first_gradient = weight_gradient(hidden_gradient, normalised) if wanted[5] else None
        inner = data_gradient(hidden_gradient, first)
        del hidden_gradient
        out, sums = add_norm_backward(inner, normalised, scale, rest, projection.dtype, True)
        assert sums is not None
        rows = attended.flatten(-2).flatten(0, -2)
        return (
            None,
            out.view(gradient.shape),
            data_gradient(out, projection).view(attended.shape),
            weight_gradient(out, rows) if wanted[3] else None,
            sums.to(ctx.bias_dtype),
            first_gradient,
            first_bias.to(first.dtype),
            second_gradient,
            None,
            None,
        )


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        stream: Tensor,
        rest: Tensor,
        bias: Tensor,
        epsilon: float,
        dtype: torch.dtype,
        picked: Tensor | None,
    ) -> Tensor:
        normalised, scale = norm_of_sum(stream, rest, bias, epsilon, dtype, picked)
        ctx.save_for_backward(normalised, scale, picked)
        ctx.shape, ctx.dtypes = rest.shape, (rest.dtype, bias.dtype)
        return normalised.view(stream.shape) if picked is None else normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        normalised, scale, picked = ctx.saved_tensors
        dtype, of_bias = ctx.dtypes
        out, sums = norm_of_sum_backward(
            gradient.flatten(0, -2), normalised, scale, dtype, picked, ctx.shape[:-1].numel()
        )
        return None, out.view(ctx.shape), sums.to(of_bias), None, None, None
