"""The pixels of one token, as Triton's kernels read them."""

# In Triton's kernels only the constants have types.
# mypy: allow-incomplete-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def layout(frames: Tensor, tubelet: int, patch: int) -> dict[str, Any]:
    """What `token_pixels` must know of contiguous frames [B, T, H, W, 3]; arguments of a kernel, by name."""
    time, height, width = frames.shape[1:4]
    return {
        "clip_bytes": time * height * width * 3,
        "frame_bytes": height * width * 3,
        "row_bytes": width * 3,
        "grid_rows": height // patch,
        "grid_columns": width // patch,
        "TUBELET": tubelet,
        "PATCH": patch,
        "LINES": triton.next_power_of_2(tubelet * patch),
        "LINE": triton.next_power_of_2(3 * patch),
    }


def check_frames(frames: Tensor, tokens: Tensor) -> None:
    """Raises ValueError for frames or tokens that the kernels would misread."""
    if frames.dtype != torch.uint8 or tokens.dtype != torch.int64:
        raise ValueError(f"frames are {frames.dtype} and tokens {tokens.dtype}; uint8 and int64 are needed")
    if frames.device != tokens.device:
        raise ValueError(f"frames are on {frames.device}, their tokens on {tokens.device}")


def colours(values: Sequence[float], name: str) -> dict[str, float]:
    """Three values of colour channels as arguments of a kernel, in units of 1/255."""
    return {f"{name}_{channel}": 255 * value for channel, value in enumerate(values)}


@triton.jit
def of_channel(byte, first, second, third):
    """The value of the colour channel that a byte of a line is of."""
    return tl.where(byte % 3 == 0, first, tl.where(byte % 3 == 1, second, third))


@triton.jit
def token_pixels(
    frames,
    clip,
    token,
    clip_bytes,
    frame_bytes,
    row_bytes,
    grid_rows,
    grid_columns,
    TUBELET: tl.constexpr,
    PATCH: tl.constexpr,
    LINES: tl.constexpr,
    LINE: tl.constexpr,
):
    """Pixels of a token in 0..255, float32 [LINES, LINE]: its lines of pixels, time after time.

    Also int32 [LINES, LINE], their place among the token's values; int32 [1, LINE], the byte of the line;
    and bool [LINES, LINE], which of them there are. clip, token: int64.
    """
    step = token // (grid_rows * grid_columns)
    row, column = token // grid_columns % grid_rows, token % grid_columns
    start = frames + clip * clip_bytes + step * TUBELET * frame_bytes
    start += row * PATCH * row_bytes + column * PATCH * 3
    line = tl.arange(0, LINES)[:, None]
    byte = tl.arange(0, LINE)[None, :]
    inside = (line < TUBELET * PATCH) & (byte < 3 * PATCH)
    address = start + (line // PATCH * frame_bytes + line % PATCH * row_bytes + byte)
    pixels = tl.load(address, mask=inside, other=0).to(tl.float32)
    return pixels, line * (3 * PATCH) + byte, byte, inside
