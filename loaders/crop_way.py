"""Which way decoded clips are cropped, and what does it.

Two ways give the same pictures, up to two or three levels:

    "fused"    planes --kernels/nv12_crop--------------------> u8 [B,T,S,S,3]        (loaders/fused_crop.py)
    "dali"     planes --to_rgb--> RGB --DALI's resize, flip--> u8 [B,T,S,S,3]        (loaders/dali_graph.py)

The fused way leaves nothing for DALI to do. As long as DALI mirrored what the kernel had cropped, that took
17 of a clip's 43 microseconds on an H200 that trained a ViT-B, and made the thread wait that makes batches;
bench/crop.py measures both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from surgrec.loaders.crop import CropWindows
from surgrec.loaders.pictures import Pictures
from torch import Tensor

Way = Literal["fused", "dali"]


class Crop(Protocol):
    """Crops clips on one device: a FusedCrop or a CropGraph."""

    @property
    def size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def max_clips(self) -> int: ...
    def __call__(
        self, clips: Sequence[Pictures], windows: CropWindows, out: Tensor | None = None
    ) -> Tensor: ...
    def prepare(self, frames: int) -> None: ...


def choose_way(crop: str, device: torch.device) -> Way:
    """What DataConfig.crop means on a device: the CPU has DALI's resize alone.

    Raises ValueError for a name that does not exist.
    """
    if crop not in ("auto", "fused", "dali"):
        raise ValueError(f"crop is {crop!r}; choose from auto, fused, dali")
    return "dali" if device.type == "cpu" or crop == "dali" else "fused"


def make_crop(size: int, max_clips: int, device: torch.device, threads: int, crop: str) -> Crop:
    """What crops clips as DataConfig.crop says. size: height and width of the result. max_clips: most clips
    of one call. threads: of the CPU.

    Raises ValueError for a name that does not exist, or a number below 1.
    """
    if choose_way(crop, device) == "fused":
        from surgrec.loaders.fused_crop import FusedCrop

        return FusedCrop(size, max_clips, device)
    from surgrec.loaders.dali_graph import CropGraph

    return CropGraph(size, max_clips, device, threads)
