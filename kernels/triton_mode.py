"""Where Triton's kernels run: on a GPU; with TRITON_INTERPRET=1, as they are tested, on the CPU too."""

from __future__ import annotations

import os
from typing import Final

from torch import Tensor

# Triton reads the variable when it sees a kernel, that is at its module's import.
INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"


def on_triton(tensor: Tensor) -> bool:
    """Whether what is made from this tensor is made by a Triton kernel; else by its plain PyTorch twin."""
    return tensor.is_cuda or INTERPRETED
