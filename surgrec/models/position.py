"""Fixed positions of tokens: three tables, each a row per token, time-major (token = (t * h + y) * w + x)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from surgrec.kernels.masking import Grid


def sinusoid_1d(tokens: int, width: int) -> Tensor:
    """VideoMAE's positions: the sinusoids of "Attention Is All You Need" over the flat token number.

    Column 2i is sin(n / 10000^(2i / width)), column 2i + 1 the cosine of the same.

    Returns:
        float32 [tokens, width].
    """
    columns = torch.arange(width)
    rates = 10000.0 ** (-(columns // 2 * 2).double() / width)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * rates
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos()).float()


def sincos_3d(grid: Grid, width: int, uniform_power: bool = False) -> Tensor:
    """V-JEPA's positions: sines and cosines of time, row and column, side by side.

    Of the width, time takes a half and row and column a quarter each; with `uniform_power` each takes
    2 * ceil(width / 6), and what goes past the width is cut off.

    Returns:
        float32 [t * h * w, width].

    Raises:
        ValueError: the width does not divide so.
    """
    if width % (2 if uniform_power else 8):
        raise ValueError(f"sincos_3d needs a width that is a multiple of 8 (got {width})")
    shares = [2 * math.ceil(width / 6)] * 3 if uniform_power else [width // 2, width // 4, width // 4]
    parts = []
    for place, share in zip(token_places(grid), shares, strict=True):
        rates = 10000.0 ** (-torch.arange(share // 2, dtype=torch.float64) / (share / 2))
        angles = place.double()[:, None] * rates
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1)[:, :width].float()


def rotary_3d(grid: Grid, head_width: int) -> Tensor:
    """V-JEPA 2's rotary positions, as the factors that `kernels.rotary.rotate` takes.

    Time, row and column each turn 2 * (head_width // 3 // 2) of a head's columns; the rest stays as it is.
    Within an axis of width a, column i turns with rate 10000^-((i mod a/2) / (a/2)) although it is paired
    with its neighbour, column i xor 1: V-JEPA 2 was trained so, hence it is kept.

    Returns:
        float32 [t * h * w, 2, head_width]: the cosines and the sines.

    Raises:
        ValueError: a head is narrower than 6.
    """
    axis = 2 * (head_width // 3 // 2)
    if axis < 2:
        raise ValueError(f"rotary_3d needs heads of width 6 or more (got {head_width})")
    rates = 10000.0 ** (-torch.arange(axis // 2, dtype=torch.float64) / (axis / 2))
    angles = torch.cat([place.double()[:, None] * rates.repeat(2) for place in token_places(grid)], dim=1)
    angles = torch.nn.functional.pad(angles, (0, head_width - 3 * axis))
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def token_places(grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Time step, row and column of every token: three int64 [t * h * w]."""
    steps, rows, columns = grid
    tokens = torch.arange(steps * rows * columns)
    return tokens // (rows * columns), tokens // columns % rows, tokens % columns
