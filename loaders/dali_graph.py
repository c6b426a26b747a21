"""The DALI graph: decoded clips of any size in, cropped, mirrored and resized clips of one size out.

    frames u8 [T,H,W,3] --external_source--> resize of the window ----> u8 [B,T,S,S,3]
    window: first and last corner ---------------^

The resize is triangular with antialiasing, as PIL and torch's `interpolate(antialias=True)` do it; in DALI's
resize, a window whose left and right edges are exchanged comes out mirrored. Planes are turned into RGB by
`kernels/nv12_crop.to_rgb` first; since clips differ in size, DALI gets a list of them, which it copies once
more on a GPU. On a machine without a GPU the same graph runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from surgrec.kernels.nv12_crop import to_rgb
from surgrec.kernels.planes import Planes
from surgrec.kernels.windows import check_windows
from surgrec.loaders.crop import CropWindows
from surgrec.loaders.pictures import Pictures, black_clip, check_clips, columns_of, on_device, size_of
from torch import Tensor
from torch.utils.dlpack import from_dlpack


class CropGraph:
    """Crops and resizes clips on one device. Not thread-safe: one thread calls it.

    On a GPU all work is queued on torch's current stream, or waits for it.
    """

    def __init__(self, size: int, max_clips: int, device: torch.device, threads: int) -> None:
        """size: height and width of the result. max_clips: most clips of one call. threads: of the CPU."""
        if size < 1 or max_clips < 1 or threads < 1:
            raise ValueError(
                f"size={size}, max_clips={max_clips}, threads={threads}: each must be at least 1"
            )
        self.size = size
        self.device = device
        self.max_clips = max_clips
        gpu = device.type == "cuda"
        self._done = torch.cuda.Event(blocking=True) if gpu else None
        self._pipeline = Pipeline(
            batch_size=max_clips,
            num_threads=threads,
            device_id=device.index if gpu else None,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with self._pipeline:
            frames = fn.external_source(
                name="frames", layout="FHWC", device="gpu" if gpu else "cpu", no_copy=True
            )
            self._pipeline.set_outputs(_resize(frames, size))
        self._pipeline.build()

    def __call__(self, clips: Sequence[Pictures], windows: CropWindows, out: Tensor | None = None) -> Tensor:
        """Crop, mirror and resize B clips; waits until the result is there.

        Args:
            clips: B clips of T frames each, every one of its own size: arrays uint8 [T, H, W, 3], or planes
                on the graph's device that are complete for the current stream.
            windows: B windows that lie within the upright pictures.
            out: where to write: uint8 [B, T, size, size, 3] on the device; None makes it.

        Returns:
            uint8 [B, T, size, size, 3] on the device: `out`, where it was given.

        Raises:
            ValueError: too many clips or none, clips that differ in T, are of another type or on another
                device, a window that leaves its picture, or an `out` that does not fit.
        """
        check_clips(clips, windows, self.max_clips, self.device)
        # DALI reads outside a picture without complaint.
        check_windows(columns_of(windows), [size_of(clip) for clip in clips])
        top, bottom = windows.top, windows.top + windows.height
        left, right = windows.left, windows.left + windows.width
        first = np.stack([top, np.where(windows.flip, right, left)], axis=1).astype(np.float32)
        last = np.stack([bottom, np.where(windows.flip, left, right)], axis=1).astype(np.float32)
        frames = [self._input(to_rgb(clip) if isinstance(clip, Planes) else clip) for clip in clips]
        # DALI reads the inputs in place, and does not wait for the stream that makes them. They outlive run,
        # which waits for the result.
        self._wait()
        (output,) = self._pipeline.run(frames=frames, first=list(first), last=list(last))
        cropped = from_dlpack(output.as_tensor())
        if out is None:
            out = torch.empty(cropped.shape, dtype=torch.uint8, device=self.device)
        elif out.shape != cropped.shape or out.dtype != torch.uint8 or out.device != self.device:
            raise ValueError(
                f"out is {out.dtype} {tuple(out.shape)} on {out.device}; uint8 {tuple(cropped.shape)} on"
                f" {self.device} is needed"
            )
        out.copy_(cropped)
        self._wait()  # DALI takes `cropped` back without regard to the copy
        return out

    def prepare(self, frames: int) -> None:
        """Crops a black clip of so many frames, so that the first real ones do not wait for kernels to be
        compiled or loaded."""
        self(*black_clip(frames))

    def _wait(self) -> None:
        """Sleeps until torch's current stream has done its work."""
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(self.device))
            self._done.synchronize()

    def _input(self, frames: Tensor | NDArray[np.uint8]) -> Tensor | NDArray[np.uint8]:
        """As external_source takes it: for a torch tensor on the CPU it would ask for a GPU's stream."""
        if self.device.type == "cuda":
            return on_device(frames, self.device) if isinstance(frames, np.ndarray) else frames.contiguous()
        return np.ascontiguousarray(frames if isinstance(frames, np.ndarray) else frames.numpy())


def _resize(frames: Any, size: int) -> Any:
    return fn.resize(
        frames,
        size=[size, size],
        roi_start=fn.external_source(name="first", no_copy=True),
        roi_end=fn.external_source(name="last", no_copy=True),
        interp_type=types.DALIInterpType.INTERP_LINEAR,
        antialias=True,
    )
