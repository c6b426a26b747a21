"""Lengths and starts of packed sequences on the device, sent once for all layers of a pass."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

Sizes = tuple[int, ...]
KEPT = 64
"""Tensors of each kind that are kept."""


def starts_of(
    sizes: Sizes, device: torch.device, dtype: torch.dtype = torch.int32, stride: int = 1
) -> Tensor:
    """[len + 1], where each sequence starts, and the end, times `stride`."""
    return _starts(sizes, device, dtype, stride, stream_of(device))


def lengths_of(sizes: Sizes, device: torch.device) -> Tensor:
    """int32 [len]."""
    return _lengths(sizes, device, stream_of(device))


# By stream: another one would not wait for the copy that this one makes.
@functools.lru_cache(maxsize=KEPT)
def _starts(sizes: Sizes, device: torch.device, dtype: torch.dtype, stride: int, _: int) -> Tensor:
    return _sent(torch.tensor([0, *itertools.accumulate(sizes)], dtype=dtype) * stride, device)


@functools.lru_cache(maxsize=KEPT)
def _lengths(sizes: Sizes, device: torch.device, _: int) -> Tensor:
    return _sent(torch.tensor(sizes, dtype=torch.int32), device)


def stream_of(device: torch.device) -> int:
    """The current stream of a GPU, as a key for what was sent on it; 0 on the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    # Only from pinned memory does the copy not wait for what the GPU is doing.
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers
