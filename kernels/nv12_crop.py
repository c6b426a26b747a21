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

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from surgrec.kernels.clip_facts import (
    FLIP,
    HALF,
    HEIGHT,
    PHASE,
    ROWS,
    TOP,
    WIDTH,
    facts_of,
    fill_facts,
    make_staging,
    plane_of,
    read_samples,
)
from surgrec.kernels.colour import colour_matrix
from surgrec.kernels.planes import Layouts, Planes, check_planes, subsampling
from surgrec.kernels.staging import Staging
from surgrec.kernels.triton_mode import on_triton
from surgrec.kernels.windows import Windows, check_windows
from torch import Tensor


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


def to_rgb(clip: Planes) -> Tensor:
    """RGB of a clip's frames: uint8 [T, H, W, 3], upright, contiguous, on the planes' device.

    Chroma is repeated, as FFmpeg's swscale does it for 8 bits where the size is even. (For odd sizes and more
    bits it interpolates 4:2:0 chroma between rows, and 4:2:x chroma of an odd width between columns.)
    The planes must be complete for the current stream, and stay until its work is done: whoever frees them
    earlier has called `record_stream`.

    Raises:
        ValueError: the planes, rows, colour or rotation do not fit each other.
    """
    if not on_triton(clip.device):
        return plain_rgb(clip)
    layouts = [check_planes(0, clip, len(clip.rows), clip.device)]
    height, width = clip.height, clip.width
    staging = make_staging(1, len(clip.rows), clip.device)
    fill_facts(staging, [clip], layouts, np.zeros((1, 5), np.int64))
    out = torch.empty((len(clip.rows), height, width, 3), dtype=torch.uint8, device=clip.device)
    grid = (triton.cdiv(width, _RGB_COLUMNS), triton.cdiv(height, _RGB_ROWS), len(clip.rows))
    with torch.cuda.device_of(out):
        _rgb_kernel[grid](
            staging.send(),
            out,
            ROWS=_RGB_ROWS,
            COLUMNS=_RGB_COLUMNS,
            WIDE=_is_wide(layouts),
            num_warps=4,
        )
    return out


def crop_clips(
    clips: Sequence[Planes],
    windows: Windows,
    size: int,
    out: Tensor | None = None,
    tiling: Tiling = TILING,
    staging: Staging | None = None,
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
        staging: made by `make_staging` for B clips of T frames or more; no other call may use it until this
            one's work is done on the device. None makes it.

    Returns:
        uint8 [B, T, size, size, 3], the values rounded half up.

    Raises:
        ValueError: a window leaves its picture, or clips, `out` or `staging` do not fit.
    """
    boxes, layouts = _check(clips, windows, size, out)
    if not on_triton(clips[0].device):
        return _plain_crop(clips, boxes, size, out)
    frames, device = len(clips[0].rows), clips[0].device
    if out is None:
        out = torch.empty((len(clips), frames, size, size, 3), dtype=torch.uint8, device=device)
    if staging is None:
        staging = make_staging(len(clips), frames, device)
    fill_facts(staging, clips, layouts, boxes)
    grid = (triton.cdiv(size, tiling.side) ** 2, frames, len(clips))
    with torch.cuda.device_of(out):
        _crop_kernel[grid](
            staging.send(),
            out,
            size,
            SIDE=tiling.side,
            TAPS=tiling.taps,
            WIDE=_is_wide(layouts),
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
    return _plain_crop(clips, _check(clips, windows, size, out)[0], size, out)


def _plain_crop(clips: Sequence[Planes], boxes: NDArray[np.int64], size: int, out: Tensor | None) -> Tensor:
    device = clips[0].device
    if out is None:
        out = torch.empty((len(clips), len(clips[0].rows), size, size, 3), dtype=torch.uint8, device=device)
    for b, clip in enumerate(clips):
        top, left, height, width, flip = boxes[b].tolist()
        half_y, half_x, phase_y, phase_x = subsampling(clip.layouts(), clip.rotation)
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


def _is_wide(layouts: Sequence[Layouts]) -> bool:
    return any(luma.item > 1 for luma, _, _ in layouts)


def _check(
    clips: Sequence[Planes], windows: Windows, size: int, out: Tensor | None
) -> tuple[NDArray[np.int64], list[Layouts]]:
    """The windows, int64 [B, 5], and where the clips lie, all of it checked."""
    if not clips or size < 1 or len(windows) != 5 or any(len(part) != len(clips) for part in windows):
        raise ValueError(
            f"{len(clips)} clips, windows of {[len(part) for part in windows]} values and size {size}; "
            f"a clip or more, five values for each and a size of at least 1 are needed"
        )
    length, device = len(clips[0].rows), clips[0].device
    layouts = [check_planes(b, clip, length, device) for b, clip in enumerate(clips)]
    boxes = check_windows(windows, [(clip.height, clip.width) for clip in clips])
    shape = (len(clips), length, size, size, 3)
    if out is not None and (
        out.shape != shape or out.dtype != torch.uint8 or out.device != device or not out.is_contiguous()
    ):
        raise ValueError(
            f"out is {out.dtype} {tuple(out.shape)} on {out.device}; contiguous uint8 {shape} on {device} is "
            f"needed"
        )
    return boxes, layouts


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
def _axis(numbers, AXIS: tl.constexpr, first, size, SIDE: tl.constexpr):
    """Filter of SIDE output pixels from `first` on, along rows (AXIS 0) or columns (1).

    Their centres [SIDE] in pixels of the picture; 1 / the filter's half width; 1 / the sum of its weights
    [SIDE]; first and last pixel of the picture that may weigh something for one of them.
    """
    start = tl.load(numbers + TOP + AXIS).to(tl.float32)
    step = tl.load(numbers + ROWS + AXIS).to(tl.float32) / size
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
    rows = tl.load(numbers + HEIGHT).to(tl.int32)
    columns = tl.load(numbers + WIDTH).to(tl.int32)
    if CHROMA:
        half_y = tl.load(numbers + HALF).to(tl.int32)
        half_x = tl.load(numbers + HALF + 1).to(tl.int32)
        phase_y = tl.load(numbers + PHASE).to(tl.int32)
        phase_x = tl.load(numbers + PHASE + 1).to(tl.int32)
        rows = (rows + half_y) >> half_y
        columns = (columns + half_x) >> half_x
        low_y = (low_y + phase_y) >> half_y
        low_x = (low_x + phase_x) >> half_x
        high_y = (high_y + phase_y) >> half_y
        high_x = (high_x + phase_x) >> half_x
    start, row_bytes, column_bytes = plane_of(numbers, picture, PLANE)
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
            samples = read_samples(numbers, reals, start + (row[:, None] + column[None, :]), inside, WIDE)
            down = _weights(y[None, :], half_y, phase_y, centre_y[:, None], slope_y, norm_y[:, None], CHROMA)
            part = tl.dot(down.to(tl.float16), samples.to(tl.float16), part)
        across = _weights(x[:, None], half_x, phase_x, centre_x[None, :], slope_x, norm_x[None, :], CHROMA)
        result = tl.dot(part.to(tl.float16), across.to(tl.float16), result)
    return result


@triton.jit
def _crop_kernel(facts, out, size, SIDE: tl.constexpr, TAPS: tl.constexpr, WIDE: tl.constexpr):
    """One program: a tile of SIDE x SIDE pixels of one frame of one clip."""
    tiles = tl.cdiv(size, SIDE)
    tile_y = tl.program_id(0) // tiles * SIDE
    tile_x = tl.program_id(0) % tiles * SIDE
    frame, frames = tl.program_id(1), tl.num_programs(1)
    clip = tl.program_id(2)
    numbers, reals, rows = facts_of(facts, clip, tl.num_programs(2), frames)
    picture = tl.load(rows + frame).to(tl.int64)
    y = _resize_plane(numbers, reals, picture, tile_y, tile_x, size, 0, SIDE, TAPS, WIDE)
    u = _resize_plane(numbers, reals, picture, tile_y, tile_x, size, 1, SIDE, TAPS, WIDE)
    v = _resize_plane(numbers, reals, picture, tile_y, tile_x, size, 2, SIDE, TAPS, WIDE)
    row = tile_y + tl.arange(0, SIDE)
    column = tile_x + tl.arange(0, SIDE)
    inside = (row < size)[:, None] & (column < size)[None, :]
    flip = tl.load(numbers + FLIP).to(tl.int32)
    column = tl.where(flip != 0, size - 1 - column, column)
    out += (clip * frames + frame).to(tl.int64) * size * size * 3
    _store_rgb(y, u, v, reals, out + (row[:, None] * size + column[None, :]) * 3, inside)


@triton.jit
def _sample(numbers, reals, picture, y, x, inside, PLANE: tl.constexpr, WIDE: tl.constexpr):
    """Samples of one plane that rows y and columns x of the picture lie in: float32 [rows, columns]."""
    start, row_bytes, column_bytes = plane_of(numbers, picture, PLANE)
    if PLANE > 0:
        y = (y + tl.load(numbers + PHASE).to(tl.int32)) >> tl.load(numbers + HALF).to(tl.int32)
        x = (x + tl.load(numbers + PHASE + 1).to(tl.int32)) >> tl.load(numbers + HALF + 1).to(tl.int32)
    return read_samples(numbers, reals, start + (y * row_bytes + x * column_bytes), inside, WIDE)


@triton.jit
def _rgb_kernel(facts, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """One program: a block of ROWS x COLUMNS pixels of one frame of the clip."""
    frame = tl.program_id(2)
    numbers, reals, rows = facts_of(facts, 0, 1, tl.num_programs(2))
    picture = tl.load(rows + frame).to(tl.int64)
    height = tl.load(numbers + HEIGHT).to(tl.int32)
    width = tl.load(numbers + WIDTH).to(tl.int32)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < height) & (column < width)
    y = _sample(numbers, reals, picture, row, column, inside, 0, WIDE)
    u = _sample(numbers, reals, picture, row, column, inside, 1, WIDE)
    v = _sample(numbers, reals, picture, row, column, inside, 2, WIDE)
    out += frame.to(tl.int64) * height * width * 3
    _store_rgb(y, u, v, reals, out + (row * width + column) * 3, inside)
