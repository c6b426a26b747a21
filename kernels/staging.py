"""Memory through which a call's numbers go to the device, made once and filled again and again."""

from __future__ import annotations

import torch
from torch import Tensor


class Staging:
    """Words of the host, pinned for a GPU, and as many of the device; on the CPU they are the same ones.

    Filled and sent anew only after the stream has done the work that reads what was sent before.
    """

    __slots__ = ("_host", "_there", "words")

    def __init__(self, count: int, device: torch.device) -> None:
        """count: words of 8 bytes."""
        gpu = device.type == "cuda"
        self._host = torch.empty(count, dtype=torch.int64, pin_memory=gpu)
        self._there = torch.empty(count, dtype=torch.int64, device=device) if gpu else self._host
        self.words = self._host.numpy()
        """int64 [count]: what is to be sent."""

    @property
    def device(self) -> torch.device:
        return self._there.device

    def send(self) -> Tensor:
        """int64 [count] on the device, for work that the current stream does next; waits for nothing."""
        if self._there is not self._host:
            self._there.copy_(self._host, non_blocking=True)
        return self._there
