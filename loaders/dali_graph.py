"""The DALI graph: decoded clips of any size in, cropped, mirrored and resized clips of one size out.

    frames u8 [T,H,W,3] --external_source--> (copy to the GPU) --> resize of the window --> u8 [B,T,S,S,3]
    window: first and last corner --------------------------------------^

The resize is triangular with antialiasing, as PIL and torch's `interpolate(antialias=True)` do it; a window
whose left and right edges are exchanged comes out mirrored. On a machine without a GPU the same graph runs on
the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from surgrec.loaders.crop import CropWindows
from torch import Tensor
from torch.utils.dlpack import from_dlpack


class CropGraph:
    """Crops and resizes clips on one device. Not thread-safe: one thread calls it."""

    def __init__(self, size: int, max_clips: int, device: torch.device, threads: int) -> None:
        """size: height and width of the result. max_clips: most clips of one call. threads: of the CPU."""
        if size < 1 or max_clips < 1 or threads < 1:
            raise ValueError(
                f"size={size}, max_clips={max_clips}, threads={threads}: each must be at least 1"
            )
        self.device = device
        self.max_clips = max_clips
        gpu = device.type == "cuda"
        self._pipeline = Pipeline(
            batch_size=max_clips,
            num_threads=threads,
            device_id=device.index if gpu else None,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with self._pipeline:
            frames = fn.external_source(name="frames", layout="FHWC", no_copy=True)
            first = fn.external_source(name="first", no_copy=True)
            last = fn.external_source(name="last", no_copy=True)
            self._pipeline.set_outputs(
                fn.resize(
                    frames.gpu() if gpu else frames,
                    size=[size, size],
                    roi_start=first,
                    roi_end=last,
                    interp_type=types.DALIInterpType.INTERP_LINEAR,
                    antialias=True,
                )
            )
        self._pipeline.build()

    def __call__(self, frames: Sequence[NDArray[np.uint8]], windows: CropWindows) -> Tensor:
        """Crop, mirror and resize B clips; waits until the result is there.

        Args:
            frames: B arrays uint8 [T, H, W, 3], T alike, H and W each its own.
            windows: B windows that lie within the pictures.

        Returns:
            uint8 [B, T, size, size, 3] on the device. It is DALI's own memory, not a copy, and DALI takes it
            back when the tensor is freed, without regard to kernels that still read it: on a GPU, wait for
            them first, or copy.
        """
        if not len(frames) == len(windows) <= self.max_clips or not frames:
            raise ValueError(
                f"{len(frames)} clips and {len(windows)} windows; 1 to {self.max_clips} of both are needed"
            )
        for k, clip in enumerate(frames):
            _check(k, clip, frames[0].shape[0], windows)
        top, bottom = windows.top, windows.top + windows.height
        left, right = windows.left, windows.left + windows.width
        first = np.stack([top, np.where(windows.flip, right, left)], axis=1).astype(np.float32)
        last = np.stack([bottom, np.where(windows.flip, left, right)], axis=1).astype(np.float32)
        # DALI reads these in place; they outlive run, which waits for the result.
        whole = [np.ascontiguousarray(clip) for clip in frames]
        (output,) = self._pipeline.run(frames=whole, first=list(first), last=list(last))
        return from_dlpack(output.as_tensor())


def _check(k: int, clip: NDArray[np.uint8], length: int, windows: CropWindows) -> None:
    """DALI reads outside a picture without complaint, so that windows are checked here."""
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3 or clip.shape[0] != length:
        raise ValueError(f"clip {k} is {clip.dtype} {clip.shape}; uint8 [{length}, H, W, 3] is needed")
    bottom = windows.top[k] + windows.height[k]
    right = windows.left[k] + windows.width[k]
    if (
        min(windows.top[k], windows.left[k]) < 0
        or min(windows.height[k], windows.width[k]) < 1
        or bottom > clip.shape[1]
        or right > clip.shape[2]
    ):
        raise ValueError(
            f"window of clip {k}, rows {windows.top[k]}..{bottom} and columns {windows.left[k]}..{right}, "
            f"is not within its picture of {clip.shape[1]} x {clip.shape[2]}"
        )
