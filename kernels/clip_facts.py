"""What the kernels of `nv12_crop` know of their clips: written on the host, read by each program."""

# In Triton's kernels only the constants have types.
# mypy: allow-incomplete-defs

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from surgrec.kernels.colour import colour_matrix
from surgrec.kernels.planes import Colour, Layouts, PlaneLayout, Planes, subsampling
from surgrec.kernels.staging import Staging

# What the kernels know of B clips lies in one piece of memory: numbers of each, reals of each, rows of each,
# int32 [T]. Numbers are int64 [NUMBERS], first four per plane (address of the first sample of the upright
# picture of row 0, bytes from one picture, row and column to the next), then these fields. Where two numbers
# belong to one field, they are along rows and along columns.
HEIGHT, WIDTH = tl.constexpr(12), tl.constexpr(13)
HALF = tl.constexpr(14)  # 1 where two pixels share a chroma sample
PHASE = tl.constexpr(16)  # 1 where pixel 0 is the second of its two
SECOND = tl.constexpr(18)  # bytes from the first to the second byte of a sample; 0 where there is one
SHIFT = tl.constexpr(19)
TOP = tl.constexpr(20)  # and left
ROWS = tl.constexpr(22)  # and columns, of the window
FLIP = tl.constexpr(24)
NUMBERS = tl.constexpr(25)
# Reals are float32 [REALS]: what makes a sample of the depth one of 8 bits, then matrix and bias for three
# such samples less CENTRE. Half floats keep most of values around zero, and grey stays grey.
REALS = tl.constexpr(13)
CENTRE = tl.constexpr(128.0)


def make_staging(clips: int, frames: int, device: torch.device) -> Staging:
    """For `crop_clips` of up to that many clips of up to that many frames."""
    return Staging(_words(clips, frames), device)


def _geometry(plane: PlaneLayout, rotation: int) -> tuple[int, int, int, int]:
    """Address of the first sample of the upright picture of row 0; bytes to the next picture, row, column."""
    picture, row, column = (step * plane.item for step in plane.strides)
    down, right = (plane.shape[1] - 1) * row, (plane.shape[2] - 1) * column
    start = plane.address
    if rotation == 90:
        return start + down, picture, column, -row
    if rotation == 180:
        return start + down + right, picture, -row, -column
    if rotation == 270:
        return start + right, picture, -column, row
    return start, picture, row, column


def _words(clips: int, frames: int) -> int:
    """Words of 8 bytes that hold what the kernels know of so many clips."""
    return clips * NUMBERS.value + -(-clips * (REALS.value + frames) // 2)


def fill_facts(
    staging: Staging, clips: Sequence[Planes], layouts: Sequence[Layouts], boxes: NDArray[np.int64]
) -> None:
    """Writes what the kernels know of B clips of T frames. Raises ValueError where it does not fit."""
    count, frames = len(clips), len(clips[0].rows)
    if len(staging.words) < _words(count, frames) or staging.device != clips[0].device:
        raise ValueError(
            f"the staging has {len(staging.words)} words on {staging.device}; {count} clips of {frames} "
            f"frames on {clips[0].device} take {_words(count, frames)}"
        )
    first = count * NUMBERS.value
    numbers = staging.words[:first].reshape(count, -1)
    halves = staging.words[first:].view(np.int32)
    reals = halves[: count * REALS.value].view(np.float32).reshape(count, -1)
    rows = halves[count * REALS.value : count * (REALS.value + frames)]
    numbers[:, : TOP.value] = [_numbers(*both) for both in zip(clips, layouts, strict=True)]
    numbers[:, TOP.value :] = boxes
    reals[:] = [_reals(clip.colour) for clip in clips]
    rows[:] = [row for clip in clips for row in clip.rows]


def _numbers(clip: Planes, layouts: Layouts) -> list[int]:
    """The fields of NUMBERS before TOP."""
    planes = [number for plane in layouts for number in _geometry(plane, clip.rotation)]
    halves = subsampling(layouts, clip.rotation)
    return [*planes, clip.height, clip.width, *halves, layouts[0].item - 1, clip.colour.shift]


@functools.lru_cache(maxsize=256)
def _reals(colour: Colour) -> NDArray[np.float64]:
    matrix, bias = colour_matrix(colour)
    step = 2.0 ** (colour.depth - 8)
    return np.concatenate(([1 / step], (matrix * step).ravel(), bias + matrix.sum(1) * step * CENTRE.value))


@triton.jit
def facts_of(facts, clip, clips, frames):
    """Numbers, reals and rows of one of the clips."""
    reals = (facts + clips * NUMBERS).to(tl.pointer_type(tl.float32))
    rows = (reals + clips * REALS).to(tl.pointer_type(tl.int32))
    return facts + clip * NUMBERS, reals + clip * REALS, rows + clip * frames


@triton.jit
def read_samples(numbers, reals, address, inside, WIDE: tl.constexpr):
    """float32 samples in units of 8 bits, less CENTRE. A sample of two bytes is read byte by byte."""
    value = tl.load(address, mask=inside, other=0).to(tl.int32)
    if WIDE:
        second = tl.load(numbers + SECOND).to(tl.int32)
        high = tl.load(address + second, mask=inside, other=0).to(tl.int32)
        value = (value + high * (second * 256)) >> tl.load(numbers + SHIFT).to(tl.int32)
    return value.to(tl.float32) * tl.load(reals) - CENTRE


@triton.jit
def plane_of(numbers, picture, PLANE: tl.constexpr):
    """Pointer to the first sample of a picture, bytes to the next row and to the next column."""
    field = numbers + 4 * PLANE
    start = tl.load(field).to(tl.pointer_type(tl.uint8)) + picture * tl.load(field + 1)
    return start, tl.load(field + 2).to(tl.int32), tl.load(field + 3).to(tl.int32)
