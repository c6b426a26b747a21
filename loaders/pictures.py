"""Decoded clips as the crops take them, and what is checked of them first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from surgrec.kernels.planes import Planes
from surgrec.kernels.windows import Windows
from surgrec.loaders.crop import CropWindows
from torch import Tensor

Pictures = NDArray[np.uint8] | Planes
"""One decoded clip: RGB uint8 [T, H, W, 3], or planes."""


def check_clips(clips: Sequence[Pictures], windows: CropWindows, most: int, device: torch.device) -> int:
    """T of clips that can be cropped in one call on a device, of which `most` are the most.

    Raises ValueError for too many clips or none, clips that differ in T, are of another type or elsewhere.
    """
    if not len(clips) == len(windows) <= most or not clips:
        raise ValueError(f"{len(clips)} clips and {len(windows)} windows; 1 to {most} of both are needed")
    length = length_of(clips[0])
    for k, clip in enumerate(clips):
        if isinstance(clip, Planes):
            if len(clip.rows) != length or clip.device != device:
                raise ValueError(
                    f"clip {k} has {len(clip.rows)} frames on {clip.device}; {length} on {device} are needed"
                )
        elif clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3 or clip.shape[0] != length:
            raise ValueError(f"clip {k} is {clip.dtype} {clip.shape}; uint8 [{length}, H, W, 3] is needed")
    return length


def length_of(clip: Pictures) -> int:
    """T."""
    return len(clip.rows) if isinstance(clip, Planes) else clip.shape[0]


def size_of(clip: Pictures) -> tuple[int, int]:
    """Height and width of the upright picture."""
    return (clip.height, clip.width) if isinstance(clip, Planes) else (clip.shape[1], clip.shape[2])


def on_device(clip: NDArray[np.uint8], device: torch.device) -> Tensor:
    """An RGB array on a device, contiguous."""
    return torch.from_numpy(np.ascontiguousarray(clip)).to(device)


def columns_of(windows: CropWindows) -> Windows:
    """Windows as the kernels take them."""
    return windows.top, windows.left, windows.height, windows.width, windows.flip


def black_clip(frames: int) -> tuple[list[Pictures], CropWindows]:
    """A small black clip and its whole picture, to try a crop with."""
    side = np.full(1, 16, np.int32)
    nothing = np.zeros(1, np.int32)
    windows = CropWindows(nothing, nothing, side, side, nothing.astype(bool))
    return [np.zeros((frames, 16, 16, 3), np.uint8)], windows
