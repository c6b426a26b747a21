"""FusedCrop: decoded planes of any size to cropped, mirrored and resized clips by one kernel, on a GPU.

    planes --kernels/nv12_crop--> u8 [B,T,S,S,3], in the caller's memory

Nothing waits for the GPU: a thread that waits gives the interpreter's lock away, and where dozens of threads
decode it waits long to have it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from surgrec.kernels.clip_facts import make_staging
from surgrec.kernels.nv12_crop import crop_clips
from surgrec.kernels.planes import Colour, Planes
from surgrec.kernels.staging import Staging
from surgrec.loaders.crop import CropWindows
from surgrec.loaders.pictures import Pictures, black_clip, check_clips, columns_of, on_device
from torch import Tensor

CALLS_AHEAD: Final = 16
"""Calls whose numbers may be on their way to the GPU; the next one waits for the first of them."""

_RGB = Colour("rgb", full_range=True)


@dataclass(slots=True)
class _Slot:
    """What one call's numbers go through, and how far the GPU is with them."""

    staging: Staging
    read: torch.cuda.Event | None = None


class FusedCrop:
    """Crops and resizes clips on one device. Not thread-safe: one thread calls it."""

    def __init__(self, size: int, max_clips: int, device: torch.device) -> None:
        """size: height and width of the result. max_clips: most clips of one call."""
        if size < 1 or max_clips < 1:
            raise ValueError(f"size={size}, max_clips={max_clips}: each must be at least 1")
        self.size = size
        self.device = device
        self.max_clips = max_clips
        self._slots: list[_Slot] = []
        self._length = 0
        self._calls = 0

    def __call__(self, clips: Sequence[Pictures], windows: CropWindows, out: Tensor | None = None) -> Tensor:
        """Crop, mirror and resize B clips. As CropGraph, but that the work is only queued on the current
        stream: planes must stay as they are until it is done. (Arrays are copied to a GPU first, which is
        waited for.)"""
        length = check_clips(clips, windows, self.max_clips, self.device)
        planes = [clip if isinstance(clip, Planes) else self._planes(clip) for clip in clips]
        slot = self._slot(length)
        out = crop_clips(planes, columns_of(windows), self.size, out, staging=slot.staging)
        if self.device.type == "cuda":
            slot.read = slot.read or torch.cuda.Event(blocking=True)
            slot.read.record(torch.cuda.current_stream(self.device))
        return out

    def prepare(self, frames: int) -> None:
        """Crops a black clip of so many frames, so that the first real ones do not wait for the kernel to be
        compiled or loaded."""
        self(*black_clip(frames))

    def _slot(self, length: int) -> _Slot:
        """What is free for a call of so many frames."""
        if length != self._length:
            for slot in self._slots:
                _finish(slot)
            self._slots = [
                _Slot(make_staging(self.max_clips, length, self.device)) for _ in range(CALLS_AHEAD)
            ]
            self._length = length
        slot = self._slots[self._calls % CALLS_AHEAD]
        self._calls += 1
        _finish(slot)
        return slot

    def _planes(self, clip: Pictures) -> Planes:
        """An RGB array as planes, on the device."""
        assert not isinstance(clip, Planes)
        red, green, blue = on_device(clip, self.device).unbind(3)
        return Planes((red, green, blue), tuple(range(len(clip))), _RGB)


def _finish(slot: _Slot) -> None:
    if slot.read is not None:
        slot.read.synchronize()
