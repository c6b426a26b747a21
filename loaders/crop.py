"""Crop windows: random-resized crop and centre crop on the picture as displayed.

A window is a pure function of (seed, sample). Share of the area and aspect ratio are drawn as in
torchvision's RandomResizedCrop (Szegedy et al., "Going deeper with convolutions", 2015): area uniform, aspect
log-uniform, ten tries, then the largest central window of an allowed aspect. Aspect means width to height on
a screen; where pixels are not square (sample aspect ratio, sar), the window in stored pixels is narrower by
that factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from surgrec.kernels.counter_rng import mix64, stream_key, to_unit

TRIES = 10

_STREAMS = ("crop.area", "crop.aspect", "crop.left", "crop.top", "crop.flip")


@dataclass(frozen=True, slots=True)
class CropWindows:
    """Windows of B clips in stored pixels, each int32 [B], and whether the clip is mirrored, bool [B]."""

    top: NDArray[np.int32]
    left: NDArray[np.int32]
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    flip: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.top)


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """Draws windows for sample numbers.

    seed: its streams are "crop.area", "crop.aspect", "crop.left", "crop.top" and "crop.flip".

    scale: smallest and largest share of the picture's area, in (0, 1].
    aspect: smallest and largest width-to-height ratio as displayed, above 0.
    flip: whether half of the clips are mirrored left to right.
    """

    seed: int
    scale: tuple[float, float]
    aspect: tuple[float, float]
    flip: bool

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop scale is {low}..{high}; 0 < smallest <= largest <= 1 is needed")
        low, high = self.aspect
        if not (0 < low <= high and math.isfinite(high)):
            raise ValueError(f"crop aspect is {low}..{high}; 0 < smallest <= largest is needed")

    def windows(
        self, samples: ArrayLike, widths: ArrayLike, heights: ArrayLike, sar: ArrayLike
    ) -> CropWindows:
        """Windows of B clips.

        Args:
            samples: [B] sample numbers.
            widths, heights: [B] size of the upright pictures in stored pixels.
            sar: [B] width to height of a pixel of the upright picture; 1 for square pixels.
        """
        keys = np.array([stream_key(self.seed, name) for name in _STREAMS], np.uint64)
        numbers = np.asarray(samples, np.int64)
        w, h, pixel = _geometry(widths, heights, sar)
        boxes = _draw_windows(keys, numbers, w, h, pixel, *map(float, self.scale), *map(float, self.aspect))
        flip = boxes[:, 4].astype(bool) if self.flip else np.zeros(len(numbers), bool)
        return CropWindows(boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3], flip)


def centre_windows(widths: ArrayLike, heights: ArrayLike, sar: ArrayLike) -> CropWindows:
    """The largest central window that is square as displayed, of B pictures as in RandomCrop.windows."""
    w, h, pixel = _geometry(widths, heights, sar)
    boxes = np.array([_centre(*item, 1.0, 1.0) for item in zip(w, h, pixel, strict=True)], np.int32)
    boxes = boxes.reshape(-1, 4)  # [0, 4] where there are no pictures
    return CropWindows(boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3], np.zeros(len(boxes), bool))


def display_sar(sar: tuple[int, int], rotation: int) -> float:
    """Width to height of a pixel once the picture is turned upright by `rotation` degrees."""
    ratio = sar[0] / sar[1] if sar[0] > 0 and sar[1] > 0 else 1.0
    return 1.0 / ratio if rotation % 180 == 90 else ratio


def _geometry(
    widths: ArrayLike, heights: ArrayLike, sar: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    w, h, pixel = np.asarray(widths, np.int64), np.asarray(heights, np.int64), np.asarray(sar, np.float64)
    bad = np.flatnonzero((w < 1) | (h < 1) | ~np.isfinite(pixel) | (pixel <= 0))
    if len(bad):
        k = bad[0]
        raise ValueError(f"picture {k} is {w[k]} x {h[k]} with pixels of aspect {pixel[k]}: nothing to crop")
    return w, h, pixel


@numba.njit(cache=True)
def _draw_windows(keys, samples, widths, heights, sar, scale_low, scale_high, aspect_low, aspect_high):
    """int32 [B, 5]: top, left, height, width, flip."""
    boxes = np.empty((len(samples), 5), np.int32)
    log_low, log_high = math.log(aspect_low), math.log(aspect_high)
    for k in range(len(samples)):
        width, height = widths[k], heights[k]
        # A stream of its own for each sample; its counter numbers the tries.
        area_key = mix64(keys[0], samples[k])
        aspect_key = mix64(keys[1], samples[k])
        found = False
        for attempt in range(TRIES):
            area = width * height * (scale_low + (scale_high - scale_low) * to_unit(mix64(area_key, attempt)))
            aspect = math.exp(log_low + (log_high - log_low) * to_unit(mix64(aspect_key, attempt)))
            w = round(math.sqrt(area * aspect / sar[k]))
            h = round(math.sqrt(area * sar[k] / aspect))
            if 0 < w <= width and 0 < h <= height:
                left = int(to_unit(mix64(keys[2], samples[k])) * (width - w + 1))
                top = int(to_unit(mix64(keys[3], samples[k])) * (height - h + 1))
                found = True
                break
        if not found:
            top, left, h, w = _centre(width, height, sar[k], aspect_low, aspect_high)
        boxes[k, 0], boxes[k, 1], boxes[k, 2], boxes[k, 3] = top, left, h, w
        boxes[k, 4] = mix64(keys[4], samples[k]) >> np.uint64(63)
    return boxes


@numba.njit(cache=True)
def _centre(width, height, sar, aspect_low, aspect_high):
    """Top, left, height, width of the largest central window whose displayed aspect is within the bounds."""
    aspect = width * sar / height
    w, h = width, height
    if aspect < aspect_low:
        h = min(height, max(1, round(width * sar / aspect_low)))
    elif aspect > aspect_high:
        w = min(width, max(1, round(height * aspect_high / sar)))
    return (height - h) // 2, (width - w) // 2, h, w
