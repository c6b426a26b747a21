"""Streams of the loader on a GPU."""

from __future__ import annotations

from typing import Final

import torch

PRIORITY: Final = -1
"""Above that of a training step, whose kernels fill the GPU for milliseconds each: what the loader queues is
short, and much waits for it. Streams of one priority share the GPU's queues, too, where one waits behind what
the other was given before."""


def loader_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream for the loader's work."""
    return torch.cuda.Stream(device, priority=PRIORITY)
