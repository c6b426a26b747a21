"""Streams of the loader on a GPU."""

from __future__ import annotations

from typing import Final

import torch

PRIORITY: Final = -2
"""Above that of a training step, whose kernels fill the GPU for milliseconds each: what the loader queues is
short, and much waits for it. Streams of one priority share the GPU's queues, too, where one waits behind what
the other was given before. PyTorch hands out 32 streams of each priority in turn, then the first again; FSDP
has some of 0 and of -1."""
MEMORY_PRIORITY: Final = -3
"""Of streams that nothing is queued on."""


def loader_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream for the loader's work."""
    return torch.cuda.Stream(device, priority=PRIORITY)


def memory_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream for memory that decoders write to on streams of their own; no work may be queued on it.

    PyTorch gives memory that was freed on a stream to the next who asks there, before the work that is queued
    on the stream has read it. Where others queued work on this one, a decoder would overwrite what is theirs.
    """
    return torch.cuda.Stream(device, priority=MEMORY_PRIORITY)
