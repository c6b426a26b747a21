"""Token numbers of sequences of different lengths, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Sequences of token numbers, with lengths on the host for attention and on the device for indexing.

    tokens int64 [sum of lengths]; lengths; device_lengths int64 [len(lengths)], on the device of tokens.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    device_lengths: Tensor

    @classmethod
    def join(cls, tokens: Sequence[Tensor], lengths: Sequence[Tensor], device: torch.device) -> Packed:
        """Of tensors on the CPU, several packs one after the other."""
        all_lengths = torch.cat(list(lengths))
        return cls(
            _send(torch.cat(list(tokens)), device), tuple(all_lengths.tolist()), _send(all_lengths, device)
        )

    def repeat(self, rows: Tensor) -> Tensor:
        """One row for each sequence, [len(lengths), ...], to one for each token of it."""
        return rows.repeat_interleave(self.device_lengths, dim=0, output_size=len(self.tokens))


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows] for rows int64 [K] of which no two are the same.

    So the gradient is written where it belongs at once; PyTorch, which cannot know, sorts the rows to add up.
    """
    taken: Tensor = _TakeRows.apply(x, rows)
    return taken


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, rows: Tensor) -> Tensor:
        return x.index_select(0, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.count = len(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        shape = (ctx.count, *gradient.shape[1:])
        out = gradient.new_empty(shape) if len(rows) == ctx.count else gradient.new_zeros(shape)
        return out.index_copy_(0, rows, gradient), None


def _send(values: Tensor, device: torch.device) -> Tensor:
    # Only from pinned memory does the copy not wait for what the GPU is doing.
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
