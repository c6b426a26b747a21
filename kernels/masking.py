"""Masks of the two objectives, drawn on the device that the sample numbers are on.

Tokens are numbered time-major: token = (t * height + y) * width + x. A mask is a pure function of a key and a
sample number (and, for the size of JEPA's blocks, of the training step), so that it does not depend on who
else is in the batch, on ranks or on workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from surgrec.configs.model import BlockGroup
from surgrec.kernels.counter_rng import random_u64, uniform
from torch import Tensor

Grid = tuple[int, int, int]
"""Time steps, rows and columns of tokens."""

# V-JEPA draws a clip's blocks again while they leave no context; here this many draws lie side by side.
_CANDIDATES = 4


@dataclass(frozen=True)
class TubeMask:
    """Token numbers, ascending in each row: visible int64 [B, Nv] and masked int64 [B, Nm]."""

    visible: Tensor
    masked: Tensor


@dataclass(frozen=True)
class BlockMask:
    """Context and targets of one mask group, packed clip after clip, ascending within a clip.

    context int64 [sum of context_lengths], context_lengths int64 [B]; targets likewise.
    """

    context: Tensor
    context_lengths: Tensor
    target: Tensor
    target_lengths: Tensor


def tube_mask(key: int, samples: Tensor, grid: Grid, ratio: float) -> TubeMask:
    """VideoMAE's mask: int(ratio * h * w) spatial positions are hidden, the same ones in all time steps.

    Args:
        key: the stream's key (`counter_rng.stream_key`).
        samples: int64 [B], the clips' sample numbers.
        grid: time steps, rows, columns of tokens.
        ratio: share of the spatial positions to hide; at least one position is hidden and one visible.

    Raises:
        ValueError: the ratio hides nothing, or everything.
    """
    steps, height, width = grid
    area, hidden = height * width, hidden_positions(grid, ratio)
    places = torch.arange(area, device=samples.device)
    draws = random_u64(random_u64(key, samples)[:, None], places)
    order = draws.argsort(dim=1, stable=True)
    # The draws are random bits, so that their order is a random permutation.
    visible, masked = order[:, hidden:].sort(dim=1).values, order[:, :hidden].sort(dim=1).values
    starts = torch.arange(steps, device=samples.device)[:, None] * area
    return TubeMask((starts + visible[:, None]).flatten(1), (starts + masked[:, None]).flatten(1))


def hidden_positions(grid: Grid, ratio: float) -> int:
    """Spatial positions that a tube mask hides. Raises ValueError where these are none, or all."""
    _, height, width = grid
    area = height * width
    hidden = int(ratio * area) if 0 <= ratio <= 1 else -1
    if not 0 < hidden < area:
        raise ValueError(
            f"mask ratio {ratio} must hide at least 1 and leave at least 1 of the {area} positions of a "
            f"{height} x {width} grid"
        )
    return hidden


def some_tokens(key: int, samples: Tensor, tokens: Tensor, count: int) -> Tensor:
    """`count` of each clip's tokens, drawn at random from (key, sample), in their order.

    Args:
        samples: int64 [B]. tokens: int64 [B, N], on the device of the samples.

    Returns:
        int64 [B, count].

    Raises:
        ValueError: count is not between 1 and N.
    """
    if not 1 <= count <= tokens.shape[1]:
        raise ValueError(f"{count} of {tokens.shape[1]} tokens asked for")
    places = torch.arange(tokens.shape[1], device=tokens.device)
    draws = random_u64(random_u64(key, samples)[:, None], places)
    chosen = draws.argsort(dim=1, stable=True)[:, :count].sort(dim=1).values
    return tokens.gather(1, chosen)


def block_size(key: int, step: int, group_number: int, grid: Grid, group: BlockGroup) -> tuple[int, int]:
    """Rows and columns of every block of one group in one batch, by V-JEPA's formula.

    The area is int(h * w * scale) positions; an aspect ratio uniform in the group's range gives
    rows = round(sqrt(area * aspect)) and columns = round(sqrt(area / aspect)), each at most the grid's.
    A block that would fill the frame gives up one column (or row), so that some context is left.

    Raises:
        ValueError: the grid has one position only, or the scale gives no area.
    """
    _, height, width = grid
    if height * width < 2:
        raise ValueError(f"a {height} x {width} grid has no room for a block and a context; use larger clips")
    area = int(height * width * group.scale)
    if area < 1 or group.blocks < 1:
        raise ValueError(
            f"{group} covers nothing of a {height} x {width} grid; "
            f"it needs a block and a scale of at least {1 / (height * width):.4f}"
        )
    draw = uniform(random_u64(key, torch.tensor([step * 64 + group_number]))).item()
    low, high = group.aspect
    aspect = low + draw * (high - low)
    rows = max(1, min(round(math.sqrt(area * aspect)), height))
    columns = max(1, min(round(math.sqrt(area / aspect)), width))
    if rows == height and columns == width:
        rows, columns = (rows, columns - 1) if columns > 1 else (rows - 1, columns)
    return rows, columns


def multi_block_mask(
    key: int,
    samples: Tensor,
    step: int,
    grid: Grid,
    groups: tuple[BlockGroup, ...],
    equal_lengths: bool = False,
) -> list[BlockMask]:
    """V-JEPA's masks: in each group the targets are the union of the blocks, the context all the rest.

    A block spans all time steps. Its size is drawn once per (key, step, group), its place per (key, sample,
    group, block). Blocks that would cover the frame are drawn again, as in V-JEPA: of four draws made at
    once the first that leaves a context counts, and should none, all blocks go to the place of the first.
    So the context is never empty, and nothing waits for the device.

    Args:
        key: the stream's key.
        samples: int64 [B], the clips' sample numbers.
        step: the training step.
        grid: time steps, rows, columns of tokens.
        groups: see `BlockGroup`.
        equal_lengths: V-JEPA's batches: the contexts (and the targets) of all clips are cut to the smallest,
            in ascending order, which always drops the latest tokens.

    Returns:
        One `BlockMask` per group, on the device of `samples`. (On a GPU the packing has to wait for it.)
    """
    size_key = int(random_u64(key, torch.tensor([-1])).item())
    masks = []
    for number, group in enumerate(groups):
        size = block_size(size_key, step, number, grid, group)
        group_key = int(random_u64(key, torch.tensor([number])).item())
        hidden = _hidden_positions(group_key, samples, grid, group.blocks, size)
        hidden = hidden.flatten(1).repeat(1, grid[0])
        context, context_lengths = _pack(~hidden, equal_lengths)
        target, target_lengths = _pack(hidden, equal_lengths)
        masks.append(BlockMask(context, context_lengths, target, target_lengths))
    return masks


def _hidden_positions(key: int, samples: Tensor, grid: Grid, blocks: int, size: tuple[int, int]) -> Tensor:
    """Union of each clip's blocks: bool [B, h, w], never all true."""
    _, height, width = grid
    rows, columns = size
    device = samples.device
    counters = torch.arange(_CANDIDATES * blocks * 2, device=device)
    draws = uniform(random_u64(random_u64(key, samples)[:, None], counters))
    room = torch.tensor([height - rows + 1, width - columns + 1], device=device)
    # A draw below 1 times a small whole number rounds to less than that number in float64.
    corners = (draws.view(-1, _CANDIDATES, blocks, 2) * room).long()
    # The last candidate, for when all others cover the frame: every block where the first one is.
    corners = torch.cat([corners, corners[:, :1, :1].expand(-1, 1, blocks, 2)], dim=1)
    top, left = corners[..., 0, None], corners[..., 1, None]
    y = torch.arange(height, device=device)
    x = torch.arange(width, device=device)
    in_rows = (y >= top) & (y < top + rows)
    in_columns = (x >= left) & (x < left + columns)
    union = (in_rows[..., :, None] & in_columns[..., None, :]).any(dim=2)
    leaves_context = ~union.flatten(2).all(dim=2)
    chosen = leaves_context.int().argmax(dim=1)
    return union[torch.arange(len(samples), device=device), chosen]


def _pack(chosen: Tensor, equal_lengths: bool) -> tuple[Tensor, Tensor]:
    """Numbers of the chosen tokens of bool [B, N], clip after clip, and how many each clip has."""
    lengths = chosen.sum(dim=1)
    if equal_lengths:
        shortest = lengths.min()
        chosen = chosen & (chosen.cumsum(dim=1) <= shortest)
        lengths = shortest.expand(len(chosen)).clone()
    return chosen.nonzero()[:, 1], lengths
