"""Decoded planes to RGB clips: colour conversion, rotation, crop, mirror and antialiased resize in one pass.

    Y, Cb, Cr of any size --(down . plane . across: triangular filter)--> 3 planes [size, size] --matrix--> u8

The filter is that of DALI's `fn.resize(INTERP_LINEAR, antialias=True)` on a region of interest: output row i
looks at top + (i + 0.5) * s - 0.5, s = height / size, through a triangle of half width max(1, s) in pixels;
it sees the picture around the window, repeats the picture's outermost pixels beyond it, and its weights are
divided by their sum. Chroma belongs to whole pixels (it is repeated, not interpolated), so that the weight of
a chroma sample is the sum of the weights of its pixels. Filtering commutes with the colour matrix; only the
clamping to 0..255 comes after it instead of before.

`to_rgb` and `crop_clips` run Triton kernels on a GPU, and under TRITON_INTERPRET=1 on the CPU; otherwise the
plain PyTorch twins `plain_rgb` and `plain_crop`.
"""

# In Triton's kernels only the constants have types.
# mypy: allow-incomplete-defs

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from surgrec.kernels.colour import colour_matrix
from surgrec.kernels.planes import Colour, PlaneLayout, Planes, check_planes, subsampling
from torch import Tensor

Windows = tuple[NDArray, NDArray, NDArray, NDArray, NDArray]
"""Top, left, height, width and flip of B windows, each [B], in stored pixels of the upright picture."""

# Triton reads the variable when it sees the kernels below, that is now.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True, slots=True)
class Tiling:
    """How `crop_clips` cuts its work for the GPU; each a power of two.

    side: height and width of a program's output. taps: rows and columns of a plane that it reads at a time,
    at least 16, as tensor cores want it. warps: of a program.
    """

    side: int
    taps: int
    warps: int


TILING = Tiling(side=32, taps=32, warps=4)
_RGB_ROWS, _RGB_COLUMNS = 4, 256

# What the kernels know of a clip: int64 [_NUMBERS], first four per plane (address of the first sample of the
# upright picture of row 0, bytes from one picture, row and column to the next), then these fields. Where two
# numbers belong to one field, they are along rows and along columns.
_HEIGHT, _WIDTH = tl.constexpr(12), tl.constexpr(13)
_HALF = tl.constexpr(14)  # 1 where two pixels share a chroma sample
_PHASE = tl.constexpr(16)  # 1 where pixel 0 is the second of its two
_SECOND = tl.constexpr(18)  # bytes from the first to the second byte of a sample; 0 where there is one
_SHIFT = tl.constexpr(19)
_TOP = tl.constexpr(20)  # and left
_ROWS = tl.constexpr(22)  # and columns, of the window
_FLIP = tl.constexpr(24)
_NUMBERS = tl.constexpr(26)  # a multiple of 16 bytes: Triton compiles anew for other alignments
# And float32 [_REALS]: what makes a sample of the depth one of 8 bits, then matrix and bias for three such
# samples less _CENTRE. Half floats keep most of values around zero, and grey stays grey.
_REALS = tl.constexpr(16)  # 3 unused, for the same reason
_CENTRE = tl.constexpr(128.0)


def to_rgb(clip: Planes) -> Tensor:
    """RGB of a clip's frames: uint8 [T, H, W, 3], upright, contiguous, on the planes' device.

    Chroma is repeated, as FFmpeg's swscale does it for 8 bits where the size is even. (For odd sizes and more
    bits it interpolates 4:2:0 chroma between rows, and 4:2:x chroma of an odd width between columns.)
    The planes must be complete for the current stream, and stay until its work is done: whoever frees them
    earlier has called `record_stream`.

    Raises:
        ValueError: the planes, rows, colour or rotation do not fit each other.
    """
    if not _on_triton([clip]):
        return plain_rgb(clip)
    check_planes(0, clip, len(clip.rows), clip.device)
    height, width = clip.height, clip.width
    numbers, reals, rows = _upload([clip], np.zeros((1, 5), np.int64))
    out = torch.empty((len(clip.rows), height, width, 3), dtype=torch.uint8, device=clip.device)
    grid = (triton.cdiv(width, _RGB_COLUMNS), triton.cdiv(height, _RGB_ROWS), len(clip.rows))
    with torch.cuda.device_of(out):
        _rgb_kernel[grid](
            numbers,
            reals,
            rows,
            out,
            ROWS=_RGB_ROWS,
            COLUMNS=_RGB_COLUMNS,
            WIDE=_is_wide([clip]),
            num_warps=4,
        )
    return out


def crop_clips(
    clips: Sequence[Planes],
    windows: Windows,
    size: int,
    out: Tensor | None = None,
    tiling: Tiling = TILING,
) -> Tensor:
    """Crops, mirrors and resizes B clips of T frames; nothing waits for the device.

    The planes must be complete for the current stream, and stay until its work is done. Clips may differ in
    all but T and device.

    Args:
        clips: B clips.
        windows: B windows that lie within the upright pictures; flip mirrors left to right.
        size: height and width of the result.
        out: where to write: uint8 [B, T, size, size, 3], contiguous, on the clips' device; None makes it.
        tiling: for the GPU; the result does not depend on it but for rounding.

    Returns:
        uint8 [B, T, size, size, 3], the values rounded half up.

    Raises:
        ValueError: a window leaves its picture, or clips or `out` do not fit.
    """
    boxes = _check(clips, windows, size, out)
    if not _on_triton(clips):
        return _plain_crop(clips, boxes, size, out)
    frames = len(clips[0].rows)
    if out is None:
        shape = (len(clips), frames, size, size, 3)
        out = torch.empty(shape, dtype=torch.uint8, device=clips[0].device)
    numbers, reals, rows = _upload(clips, boxes)
    grid = (triton.cdiv(size, tiling.side) ** 2, frames, len(clips))
    with torch.cuda.device_of(out):
        _crop_kernel[grid](
            numbers,
            reals,
            rows,
            out,
            size,
            frames,
            SIDE=tiling.side,
            TAPS=tiling.taps,
            WIDE=_is_wide(clips),
            num_warps=tiling.warps,
            num_stages=1,
        )
    return out


def plain_rgb(clip: Planes) -> Tensor:
    """`to_rgb` in plain PyTorch, on any device."""
    check_planes(0, clip, len(clip.rows), clip.device)
    out = torch.empty((len(clip.rows), clip.height, clip.width, 3), dtype=torch.uint8)
    out = out.to(clip.device)
    height, width = clip.planes[0].shape[1:]
    for number, row in enumerate(clip.rows):
        samples = []
        for plane in clip.planes:
            sample = _values(plane[row], clip.colour.shift)
            for axis, length in enumerate((height, width)):
                if sample.shape[axis] != length:
                    sample = sample.repeat_interleave(2, axis).narrow(axis, 0, length)
            samples.append(sample)
        picture = _rounded(torch.stack(samples), clip)
        out[number] = torch.rot90(picture, -clip.rotation // 90, (0, 1))
    return out


def plain_crop(clips: Sequence[Planes], windows: Windows, size: int, out: Tensor | None = None) -> Tensor:
    """`crop_clips` in plain PyTorch, on any device."""
    return _plain_crop(clips, _check(clips, windows, size, out), size, out)


def _plain_crop(clips: Sequence[Planes], boxes: NDArray[np.int64], size: int, out: Tensor | None) -> Tensor:
    device = clips[0].device
    if out is None:
        out = torch.empty((len(clips), len(clips[0].rows), size, size, 3), dtype=torch.uint8, device=device)
    for b, clip in enumerate(clips):
        top, left, height, width, flip = boxes[b].tolist()
        half_y, half_x, phase_y, phase_x = subsampling(clip)
        filters = []
        for number, plane in enumerate(clip.planes):
            rows, columns = plane.shape[:0:-1] if clip.rotation % 180 else plane.shape[1:]
            chroma = number > 0
            down = _filter(top, height, size, rows, chroma * half_y, chroma * phase_y)
            across = _filter(left, width, size, columns, chroma * half_x, chroma * phase_x)
            filters.append((down.to(device), across.to(device)))
        for t, row in enumerate(clip.rows):
            resized = []
            for plane, (down, across) in zip(clip.planes, filters, strict=True):
                sample = _values(plane[row], clip.colour.shift)
                resized.append(down @ torch.rot90(sample, -clip.rotation // 90, (0, 1)) @ across.T)
            picture = _rounded(torch.stack(resized), clip)
            out[b, t] = picture.flip(1) if flip else picture
    return out


def _filter(start: int, extent: int, size: int, samples: int, half: int, phase: int) -> Tensor:
    """float32 [size, samples]: weights of a plane's samples along one axis for each output pixel.

    half, phase: pixel k of the picture lies in sample (k + phase) >> half.
    """
    scale = extent / size
    radius = max(1.0, scale)
    centre = start + (torch.arange(size, dtype=torch.float64) + 0.5) * scale - 0.5
    pixels = torch.arange(math.ceil(start - 0.5 - radius), math.floor(start + extent + radius) + 1)
    weights = (1 - (pixels - centre[:, None]).abs() / radius).clamp(min=0)
    weights /= weights.sum(1, keepdim=True)
    sample = ((pixels + phase) >> half).clamp(0, samples - 1)
    return torch.zeros(size, samples, dtype=torch.float64).index_add_(1, sample, weights).float()


def _values(plane: Tensor, shift: int) -> Tensor:
    """float32 of stored values. (PyTorch has no shift of uint16.)"""
    return (plane.to(torch.int32) >> shift).float()


def _rounded(samples: Tensor, clip: Planes) -> Tensor:
    """uint8 [h, w, 3] from float32 [3, h, w] of Y, Cb, Cr."""
    matrix, bias = (torch.from_numpy(part.astype(np.float32)) for part in colour_matrix(clip.colour))
    rgb = torch.einsum("cp,phw->hwc", matrix.to(samples.device), samples) + bias.to(samples.device)
    return (rgb + 0.5).floor().clamp(0, 255).byte()


def _on_triton(clips: Sequence[Planes]) -> bool:
    return clips[0].device.type == "cuda" or _INTERPRETED


def _is_wide(clips: Sequence[Planes]) -> bool:
    return any(clip.dtype != torch.uint8 for clip in clips)


def _check(clips: Sequence[Planes], windows: Windows, size: int, out: Tensor | None) -> NDArray[np.int64]:
    """int64 [B, 5]: the windows, of which it is sure that they lie within their pictures."""
    if not clips or size < 1 or len(windows) != 5 or any(len(part) != len(clips) for part in windows):
        raise ValueError(
            f"{len(clips)} clips, windows of {[len(part) for part in windows]} values and size {size}; "
            f"a clip or more, five values for each and a size of at least 1 are needed"
        )
    length, device = len(clips[0].rows), clips[0].device
    for b, clip in enumerate(clips):
        check_planes(b, clip, length, device)
    boxes = np.stack(windows, axis=1).astype(np.int64)
    pictures = np.array([(clip.height, clip.width) for clip in clips])
    first, extent = boxes[:, :2], boxes[:, 2:4]
    bad = ((first < 0) | (extent < 1) | (first + extent > pictures)).any(1)
    if bad.any():
        b = int(bad.argmax())
        top, left, height, width = boxes[b, :4]
        raise ValueError(
            f"window of clip {b}, rows {top}..{top + height} and columns {left}..{left + width}, is not "
            f"within its picture of {pictures[b, 0]} x {pictures[b, 1]}"
        )
    shape = (len(clips), length, size, size, 3)
    if out is not None and (
        out.shape != shape or out.dtype != torch.uint8 or out.device != device or not out.is_contiguous()
    ):
        raise ValueError(
            f"out is {out.dtype} {tuple(out.shape)} on {out.device}; contiguous uint8 {shape} on {device} is "
            f"needed"
        )
    return boxes


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


def _upload(clips: Sequence[Planes], boxes: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernels know of B clips: int64 [B, _NUMBERS], float32 [B, _REALS], and rows, int32 [B, T].

    One pinned buffer, one copy; PyTorch keeps the buffer until the copy is done.
    """
    count, device = len(clips), clips[0].device
    sizes = (8 * count * _NUMBERS.value, 4 * count * _REALS.value, 4 * count * len(clips[0].rows))
    buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    view = buffer.numpy()
    numbers = view[: sizes[0]].view(np.int64).reshape(count, _NUMBERS.value)
    reals = view[sizes[0] : sizes[0] + sizes[1]].view(np.float32).reshape(count, _REALS.value)
    numbers[:, : _TOP.value] = [_numbers(clip) for clip in clips]
    numbers[:, _TOP.value : _FLIP.value + 1] = boxes
    reals[:, :13] = [_reals(clip.colour) for clip in clips]
    view[sizes[0] + sizes[1] :].view(np.int32)[:] = [row for clip in clips for row in clip.rows]
    there = buffer.to(device, non_blocking=True).split(sizes)
    return there[0].view(torch.int64), there[1].view(torch.float32), there[2].view(torch.int32)


def _numbers(clip: Planes) -> list[int]:
    """The fields of _NUMBERS before _TOP."""
    planes = [number for plane in clip.layouts() for number in _geometry(plane, clip.rotation)]
    second = clip.dtype.itemsize - 1
    return [*planes, clip.height, clip.width, *subsampling(clip), second, clip.colour.shift]


@functools.lru_cache(maxsize=256)
def _reals(colour: Colour) -> NDArray[np.float64]:
    matrix, bias = colour_matrix(colour)
    step = 2.0 ** (colour.depth - 8)
    return np.concatenate(([1 / step], (matrix * step).ravel(), bias + matrix.sum(1) * step * _CENTRE.value))


@triton.jit
def _read(numbers, reals, address, inside, WIDE: tl.constexpr):
    """float32 samples in units of 8 bits, less _CENTRE. A sample of two bytes is read byte by byte."""
    value = tl.load(address, mask=inside, other=0).to(tl.int32)
    if WIDE:
        second = tl.load(numbers + _SECOND).to(tl.int32)
        high = tl.load(address + second, mask=inside, other=0).to(tl.int32)
        value = (value + high * (second * 256)) >> tl.load(numbers + _SHIFT).to(tl.int32)
    return value.to(tl.float32) * tl.load(reals) - _CENTRE


@triton.jit
def _store_rgb(y, u, v, reals, address, inside):
    """Colour matrix, rounding and clamping of one block of pixels."""
    for c in tl.static_range(3):
        level = (
            y * tl.load(reals + 1 + 3 * c) + u * tl.load(reals + 2 + 3 * c) + v * tl.load(reals + 3 + 3 * c)
        )
        level = tl.floor(level + tl.load(reals + 10 + c) + 0.5)
        level = tl.minimum(tl.maximum(level, 0.0), 255.0)
        tl.store(address + c, level.to(tl.int32).to(tl.uint8), mask=inside)


@triton.jit
def _plane(numbers, picture, PLANE: tl.constexpr):
    """Pointer to the first sample of a picture, bytes to the next row and to the next column."""
    field = numbers + 4 * PLANE
    start = tl.load(field).to(tl.pointer_type(tl.uint8)) + picture * tl.load(field + 1)
    return start, tl.load(field + 2).to(tl.int32), tl.load(field + 3).to(tl.int32)


@triton.jit
def _axis(numbers, AXIS: tl.constexpr, first, size, SIDE: tl.constexpr):
    """Filter of SIDE output pixels from `first` on, along rows (AXIS 0) or columns (1).

    Their centres [SIDE] in pixels of the picture; 1 / the filter's half width; 1 / the sum of its weights
    [SIDE]; first and last pixel of the picture that may weigh something for one of them.
    """
    start = tl.load(numbers + _TOP + AXIS).to(tl.float32)
    step = tl.load(numbers + _ROWS + AXIS).to(tl.float32) / size
    radius = tl.maximum(step, 1.0)
    slope = 1.0 / radius
    zero = start + 0.5 * step - 0.5
    centre = zero + (first + tl.arange(0, SIDE)).to(tl.float32) * step
    last = tl.minimum(first + SIDE, size) - 1
    low = tl.floor(zero + first.to(tl.float32) * step - radius).to(tl.int32)
    high = tl.ceil(zero + last.to(tl.float32) * step + radius).to(tl.int32)
    # The sum of 1 - |k - centre| / radius over the pixels k from a to m, and from m + 1 to b.
    a, m, b = tl.ceil(centre - radius), tl.floor(centre), tl.floor(centre + radius)
    left = (m - a + 1.0) * (1.0 - (centre - 0.5 * (a + m)) * slope)
    right = (b - m) * (1.0 - (0.5 * (m + 1.0 + b) - centre) * slope)
    return centre, slope, 1.0 / (left + right), low, high


@triton.jit
def _weights(sample, half, phase, centre, slope, norm, CHROMA: tl.constexpr):
    """Weight of samples of a plane; int32 `sample` and the output pixels' `centre` broadcast."""
    if CHROMA:
        pixel = (sample << half) - phase
        weight = tl.maximum(1.0 - tl.abs(pixel.to(tl.float32) - centre) * slope, 0.0)
        other = tl.maximum(1.0 - tl.abs((pixel + 1).to(tl.float32) - centre) * slope, 0.0)
        weight += other * half.to(tl.float32)
    else:
        weight = tl.maximum(1.0 - tl.abs(sample.to(tl.float32) - centre) * slope, 0.0)
    return weight * norm


@triton.jit
def _resize_plane(
    numbers,
    reals,
    picture,
    tile_y,
    tile_x,
    size,
    PLANE: tl.constexpr,
    SIDE: tl.constexpr,
    TAPS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """float32 [SIDE, SIDE] of one plane: down @ plane @ across, in blocks of TAPS x TAPS samples."""
    CHROMA: tl.constexpr = PLANE > 0
    centre_y, slope_y, norm_y, low_y, high_y = _axis(numbers, 0, tile_y, size, SIDE)
    centre_x, slope_x, norm_x, low_x, high_x = _axis(numbers, 1, tile_x, size, SIDE)
    half_y, half_x, phase_y, phase_x = 0, 0, 0, 0
    rows = tl.load(numbers + _HEIGHT).to(tl.int32)
    columns = tl.load(numbers + _WIDTH).to(tl.int32)
    if CHROMA:
        half_y = tl.load(numbers + _HALF).to(tl.int32)
        half_x = tl.load(numbers + _HALF + 1).to(tl.int32)
        phase_y = tl.load(numbers + _PHASE).to(tl.int32)
        phase_x = tl.load(numbers + _PHASE + 1).to(tl.int32)
        rows = (rows + half_y) >> half_y
        columns = (columns + half_x) >> half_x
        low_y = (low_y + phase_y) >> half_y
        low_x = (low_x + phase_x) >> half_x
        high_y = (high_y + phase_y) >> half_y
        high_x = (high_x + phase_x) >> half_x
    start, row_bytes, column_bytes = _plane(numbers, picture, PLANE)
    steps = tl.arange(0, TAPS)
    result = tl.zeros((SIDE, SIDE), dtype=tl.float32)
    for block_x in range(low_x, high_x + 1, TAPS):
        x = block_x + steps
        # Beyond the picture its outermost samples are repeated.
        column = tl.minimum(tl.maximum(x, 0), columns - 1) * column_bytes
        part = tl.zeros((SIDE, TAPS), dtype=tl.float32)
        for block_y in range(low_y, high_y + 1, TAPS):
            y = block_y + steps
            row = tl.minimum(tl.maximum(y, 0), rows - 1) * row_bytes
            inside = (y <= high_y)[:, None] & (x <= high_x)[None, :]
            samples = _read(numbers, reals, start + (row[:, None] + column[None, :]), inside, WIDE)
            down = _weights(y[None, :], half_y, phase_y, centre_y[:, None], slope_y, norm_y[:, None], CHROMA)
            part = tl.dot(down.to(tl.float16), samples.to(tl.float16), part)
        across = _weights(x[:, None], half_x, phase_x, centre_x[None, :], slope_x, norm_x[None, :], CHROMA)
        result = tl.dot(part.to(tl.float16), across.to(tl.float16), result)
    return result


@triton.jit
def _crop_kernel(
    numbers, reals, rows, out, size, frames, SIDE: tl.constexpr, TAPS: tl.constexpr, WIDE: tl.constexpr
):
    """One program: a tile of SIDE x SIDE pixels of one frame of one clip."""
    tiles = tl.cdiv(size, SIDE)
    tile_y = tl.program_id(0) // tiles * SIDE
    tile_x = tl.program_id(0) % tiles * SIDE
    frame = tl.program_id(1)
    clip = tl.program_id(2)
    numbers += clip * _NUMBERS
    reals += clip * _REALS
    picture = tl.load(rows + clip * frames + frame).to(tl.int64)
    y = _resize_plane(numbers, reals, picture, tile_y, tile_x, size, 0, SIDE, TAPS, WIDE)
    u = _resize_plane(numbers, reals, picture, tile_y, tile_x, size, 1, SIDE, TAPS, WIDE)
    v = _resize_plane(numbers, reals, picture, tile_y, tile_x, size, 2, SIDE, TAPS, WIDE)
    row = tile_y + tl.arange(0, SIDE)
    column = tile_x + tl.arange(0, SIDE)
    inside = (row < size)[:, None] & (column < size)[None, :]
    flip = tl.load(numbers + _FLIP).to(tl.int32)
    column = tl.where(flip != 0, size - 1 - column, column)
    out += (clip * frames + frame).to(tl.int64) * size * size * 3
    _store_rgb(y, u, v, reals, out + (row[:, None] * size + column[None, :]) * 3, inside)


@triton.jit
def _sample(numbers, reals, picture, y, x, inside, PLANE: tl.constexpr, WIDE: tl.constexpr):
    """Samples of one plane that rows y and columns x of the picture lie in: float32 [rows, columns]."""
    start, row_bytes, column_bytes = _plane(numbers, picture, PLANE)
    if PLANE > 0:
        y = (y + tl.load(numbers + _PHASE).to(tl.int32)) >> tl.load(numbers + _HALF).to(tl.int32)
        x = (x + tl.load(numbers + _PHASE + 1).to(tl.int32)) >> tl.load(numbers + _HALF + 1).to(tl.int32)
    return _read(numbers, reals, start + (y * row_bytes + x * column_bytes), inside, WIDE)


@triton.jit
def _rgb_kernel(numbers, reals, rows, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """One program: a block of ROWS x COLUMNS pixels of one frame of one clip."""
    frame = tl.program_id(2)
    picture = tl.load(rows + frame).to(tl.int64)
    height = tl.load(numbers + _HEIGHT).to(tl.int32)
    width = tl.load(numbers + _WIDTH).to(tl.int32)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < height) & (column < width)
    y = _sample(numbers, reals, picture, row, column, inside, 0, WIDE)
    u = _sample(numbers, reals, picture, row, column, inside, 1, WIDE)
    v = _sample(numbers, reals, picture, row, column, inside, 2, WIDE)
    out += frame.to(tl.int64) * height * width * 3
    _store_rgb(y, u, v, reals, out + (row * width + column) * 3, inside)
