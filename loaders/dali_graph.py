"""The DALI graph: decoded clips of any size in, cropped, mirrored and resized clips of one size out.

Two ways give the same pictures, up to two or three levels:

    "dali"     frames u8 [T,H,W,3] --external_source--> resize of the window ----> u8 [B,T,S,S,3]
               window: first and last corner ---------------^
    "fused"    planes --kernels/nv12_crop--> u8 [B,T,S,S,3] --external_source--> flip --> u8 [B,T,S,S,3]
               window, without the mirroring ---^               mirrored? -------^

The resize is triangular with antialiasing, as PIL and torch's `interpolate(antialias=True)` do it; in DALI's
resize, a window whose left and right edges are exchanged comes out mirrored. "dali" first has planes turned
into RGB by `kernels/nv12_crop.to_rgb`; since clips differ in size, DALI gets a list of them, which it copies
once more on a GPU. On a machine without a GPU the same graph runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from surgrec.kernels.clip_facts import make_staging
from surgrec.kernels.nv12_crop import crop_clips, to_rgb
from surgrec.kernels.planes import Colour, Planes
from surgrec.kernels.staging import Staging
from surgrec.kernels.windows import Windows, check_windows
from surgrec.loaders.crop import CropWindows
from torch import Tensor
from torch.utils.dlpack import from_dlpack

Pictures = NDArray[np.uint8] | Planes
"""One decoded clip: RGB uint8 [T, H, W, 3], or planes."""
Way = Literal["fused", "dali"]

_RGB = Colour("rgb", full_range=True)


def choose_way(crop: str, device: torch.device) -> Way:
    """What DataConfig.crop means on a device: the CPU has DALI's resize alone.

    Raises ValueError for a name that does not exist.
    """
    if crop not in ("auto", "fused", "dali"):
        raise ValueError(f"crop is {crop!r}; choose from auto, fused, dali")
    return "dali" if device.type == "cpu" or crop == "dali" else "fused"


@dataclass(frozen=True, slots=True)
class _Room:
    """What the fused way writes to, call after call. Making it anew would give the interpreter's lock away.

    cropped: uint8 [max_clips, T, size, size, 3], what DALI reads.
    """

    cropped: Tensor
    staging: Staging


class CropGraph:
    """Crops and resizes clips on one device. Not thread-safe: one thread calls it.

    On a GPU all work is queued on torch's current stream, or waits for it. The fused way keeps memory for
    max_clips results.
    """

    def __init__(
        self, size: int, max_clips: int, device: torch.device, threads: int, way: Way = "dali"
    ) -> None:
        """size: height and width of the result. max_clips: most clips of one call. threads: of the CPU."""
        if size < 1 or max_clips < 1 or threads < 1:
            raise ValueError(
                f"size={size}, max_clips={max_clips}, threads={threads}: each must be at least 1"
            )
        self.size = size
        self.device = device
        self.max_clips = max_clips
        self.way = way
        gpu = device.type == "cuda"
        self._done = torch.cuda.Event(blocking=True) if gpu else None
        self._room: _Room | None = None
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
            self._pipeline.set_outputs(_resize(frames, size) if way == "dali" else _flip(frames))
        self._pipeline.build()

    def __call__(self, clips: Sequence[Pictures], windows: CropWindows) -> Tensor:
        """Crop, mirror and resize B clips; waits until the result is there, so that the clips may be freed.

        Args:
            clips: B clips of T frames each, every one of its own size: arrays uint8 [T, H, W, 3], or planes
                on the graph's device that are complete.
            windows: B windows that lie within the upright pictures.

        Returns:
            uint8 [B, T, size, size, 3] on the device. It is DALI's own memory, not a copy, and DALI takes it
            back when the tensor is freed, without regard to kernels that still read it: on a GPU, wait for
            them first, or copy.

        Raises:
            ValueError: too many clips or none, clips that differ in T, are of another type or on another
                device, or a window that leaves its picture.
        """
        if not len(clips) == len(windows) <= self.max_clips or not clips:
            raise ValueError(
                f"{len(clips)} clips and {len(windows)} windows; 1 to {self.max_clips} of both are needed"
            )
        length = _length(clips[0])
        for k, clip in enumerate(clips):
            self._check(k, clip, length)
        inputs = self._for_resize(clips, windows) if self.way == "dali" else self._cropped(clips, windows)
        # DALI reads the inputs in place, and does not wait for the stream that makes them. They outlive run,
        # which waits for the result.
        self._wait()
        (output,) = self._pipeline.run(**inputs)
        return from_dlpack(output.as_tensor())

    def prepare(self, frames: int) -> None:
        """Crops a black clip of so many frames, so that the first real ones do not wait for kernels to be
        compiled or loaded."""
        side = np.full(1, 16, np.int32)
        nothing = np.zeros(1, np.int32)
        windows = CropWindows(nothing, nothing, side, side, nothing.astype(bool))
        self([np.zeros((frames, 16, 16, 3), np.uint8)], windows)

    def _wait(self) -> None:
        """Sleeps until torch's current stream has done its work."""
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(self.device))
            self._done.synchronize()

    def _for_resize(self, clips: Sequence[Pictures], windows: CropWindows) -> dict[str, Any]:
        """Inputs of _resize: RGB clips, and the corners of the windows, exchanged for mirrored clips."""
        # DALI reads outside a picture without complaint.
        check_windows(_columns(windows), [_size(clip) for clip in clips])
        top, bottom = windows.top, windows.top + windows.height
        left, right = windows.left, windows.left + windows.width
        first = np.stack([top, np.where(windows.flip, right, left)], axis=1).astype(np.float32)
        last = np.stack([bottom, np.where(windows.flip, left, right)], axis=1).astype(np.float32)
        frames = [self._input(to_rgb(clip) if isinstance(clip, Planes) else clip) for clip in clips]
        return {"frames": frames, "first": list(first), "last": list(last)}

    def _cropped(self, clips: Sequence[Pictures], windows: CropWindows) -> dict[str, Any]:
        """Inputs of _flip: clips that the kernel cropped and resized, and which of them to mirror."""
        boxes = (*_columns(windows)[:4], np.zeros_like(windows.flip))
        planes = [clip if isinstance(clip, Planes) else self._planes(clip) for clip in clips]
        room = self._room_for(_length(clips[0]))
        cropped = crop_clips(planes, boxes, self.size, room.cropped[: len(clips)], staging=room.staging)
        return {"frames": self._input(cropped), "flip": windows.flip.astype(np.int32)}

    def _room_for(self, length: int) -> _Room:
        """For clips of so many frames. A call waits for its work, so that the next one may write to it."""
        if self._room is None or self._room.cropped.shape[1] != length:
            shape = (self.max_clips, length, self.size, self.size, 3)
            self._room = _Room(
                torch.empty(shape, dtype=torch.uint8, device=self.device),
                make_staging(self.max_clips, length, self.device),
            )
        return self._room

    def _planes(self, clip: NDArray[np.uint8]) -> Planes:
        """An RGB array as planes, on the device."""
        red, green, blue = self._tensor(clip).unbind(3)
        return Planes((red, green, blue), tuple(range(len(clip))), _RGB)

    def _input(self, frames: Tensor | NDArray[np.uint8]) -> Tensor | NDArray[np.uint8]:
        """As external_source takes it: for a torch tensor on the CPU it would ask for a GPU's stream."""
        if self.device.type == "cuda":
            return (self._tensor(frames) if isinstance(frames, np.ndarray) else frames).contiguous()
        return np.ascontiguousarray(frames if isinstance(frames, np.ndarray) else frames.numpy())

    def _tensor(self, clip: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(clip)).to(self.device)

    def _check(self, k: int, clip: Pictures, length: int) -> None:
        if isinstance(clip, Planes):
            if len(clip.rows) != length or clip.device != self.device:
                raise ValueError(
                    f"clip {k} has {len(clip.rows)} frames on {clip.device}; {length} on {self.device} are "
                    f"needed"
                )
        elif clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3 or clip.shape[0] != length:
            raise ValueError(f"clip {k} is {clip.dtype} {clip.shape}; uint8 [{length}, H, W, 3] is needed")


def _length(clip: Pictures) -> int:
    return len(clip.rows) if isinstance(clip, Planes) else clip.shape[0]


def _size(clip: Pictures) -> tuple[int, int]:
    """Height and width of the upright picture."""
    return (clip.height, clip.width) if isinstance(clip, Planes) else (clip.shape[1], clip.shape[2])


def _columns(windows: CropWindows) -> Windows:
    return windows.top, windows.left, windows.height, windows.width, windows.flip


def _resize(frames: Any, size: int) -> Any:
    return fn.resize(
        frames,
        size=[size, size],
        roi_start=fn.external_source(name="first", no_copy=True),
        roi_end=fn.external_source(name="last", no_copy=True),
        interp_type=types.DALIInterpType.INTERP_LINEAR,
        antialias=True,
    )


def _flip(frames: Any) -> Any:
    return fn.flip(frames, horizontal=fn.external_source(name="flip", no_copy=True), vertical=0)
