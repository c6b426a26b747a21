"""Where Triton's kernels run: on a GPU; with TRITON_INTERPRET=1, as they are tested, on the CPU too."""

from __future__ import annotations

import functools
import os
from typing import Final

import torch

# Triton reads the variable when it sees a kernel, that is at its module's import.
INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"


PROGRAMS_PER_MULTIPROCESSOR: Final = 4
"""Of 128 threads with up to 128 registers each, so that all of them run at once."""


def programs_at_once(device: torch.device) -> int:
    """Among how many programs to divide what is summed up, so that none waits for another to end."""
    if device.type != "cuda":
        return 3  # as it is tested
    return PROGRAMS_PER_MULTIPROCESSOR * _multiprocessors(device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def on_triton(device: torch.device) -> bool:
    """Whether a Triton kernel works on what lies on a device; else its plain PyTorch twin does."""
    return device.type == "cuda" or INTERPRETED
