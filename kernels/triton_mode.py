"""Where Triton's kernels run: on a GPU; with TRITON_INTERPRET=1, as they are tested, on the CPU too."""

from __future__ import annotations

import os
from typing import Final

import torch

# Triton reads the variable when it sees a kernel, that is at its module's import.
INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"


def on_triton(device: torch.device) -> bool:
    """Whether a Triton kernel works on what lies on a device; else its plain PyTorch twin does."""
    return device.type == "cuda" or INTERPRETED
