"""Where Triton's kernels run: on a GPU; with TRITON_INTERPRET=1, as they are tested, on the CPU too."""

from __future__ import annotations

import functools
import os
from typing import Final

import torch

# Triton reads the variable when it sees a kernel, that is at its module's import.
INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"


WARPS_PER_MULTIPROCESSOR: Final = 16
"""Of 32 threads with up to 128 registers each, so that all of them run at once."""
WIDEST: Final = 8
"""Warps of a program."""
OF_A_WARP: Final = 256
"""Values of a row that a warp has, eight to a thread: 16 bytes of bf16."""


def programs_at_once(device: torch.device, warps: int = 4) -> int:
    """Among how many programs to divide what is summed up, so that none waits for another to end."""
    if device.type != "cuda":
        return 3  # as it is tested
    return WARPS_PER_MULTIPROCESSOR // warps * _multiprocessors(device)


def warps_across(width: int) -> int:
    """Warps that lie side by side along a row of so many values, a power of two.

    No two of them have values of one column: sums over rows need no memory that warps share.
    """
    return max(1, min(WIDEST, width // OF_A_WARP))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def on_triton(device: torch.device) -> bool:
    """Whether a Triton kernel works on what lies on a device; else its plain PyTorch twin does."""
    return device.type == "cuda" or INTERPRETED
