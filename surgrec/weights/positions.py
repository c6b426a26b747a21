"""Positions of video transformers: stored tables, and those of other clips than a model was trained on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from surgrec.kernels.masking import Grid
from surgrec.models.encoder_form import EncoderForm
from surgrec.models.position import sincos_3d, sinusoid_1d
from surgrec.weights.coverage import Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.layout import ReadOptions
from surgrec.weights.video_parts import Weights

SAME_TABLE: Final = 1e-5
"""Largest difference between a stored table of positions and ours that are one and the same."""

MOST_TOKENS: Final = 1 << 20
"""Of a clip, beyond which a file or a request is a mistake, and its table would fill the memory."""


def stored_positions(
    content: Content, taker: Taker, key: str, form: EncoderForm, steps: int
) -> tuple[EncoderForm, Weights]:
    """Positions [1, N, D] that a file holds, for a grid of `steps` in time and a square in space.

    Those that are one of our tables are made by it, others are kept as they are. Raises WeightsError for
    tables of another grid.
    """
    shape = taker.shape(key)
    count = shape[1] if len(shape) == 3 else 0
    side = math.isqrt(count // steps)
    if count == 0 or count != steps * side * side:
        raise WeightsError(
            f"{content.path}: {key} is {list(shape)}; of {steps} time steps and a square of patches,"
            f" [1, {steps} x n x n, {form.width}], it can be read; give the file of a model"
            " that was trained so"
        )
    check_count(taker.path, (steps, side, side))
    form = replace(form, frames=steps * form.tubelet, size=side * form.patch)
    name = "transformer.positions.table"
    table = taker.take(key, name, (1, count, form.width))
    if table.is_meta:
        return form, {}
    table = table.flatten(0, 1).float()
    for uniform in (True, False):
        if form.width % (2 if uniform else 8) == 0 and _same(
            table, sincos_3d(form.grid, form.width, uniform)
        ):
            taker.change(
                name, f"equal to our sincos_3d, uniform_power {str(uniform).lower()}; computed, not kept"
            )
            return replace(form, position="sincos_3d", uniform_power=uniform), {}
    return replace(form, position="stored"), {name: table}


def reshaped(
    taker: Taker, form: EncoderForm, weights: Weights, asked: ReadOptions
) -> tuple[EncoderForm, Weights]:
    """Form and weights for clips of the frames and size that are asked for. Raises WeightsError."""
    wanted = replace(form, frames=asked.frames or form.frames, size=asked.size or form.size)
    try:
        old, new = form.grid, wanted.grid
    except ValueError as error:
        raise WeightsError(f"{taker.path}: {error}; give other frames or size") from error
    check_count(taker.path, old)
    check_count(taker.path, new)
    if old == new:
        return wanted, weights
    name = "transformer.positions.table"
    said = f"{'x'.join(map(str, old))} to {'x'.join(map(str, new))}"
    if form.position == "rotary_3d":
        taker.change(name, f"rotary positions go on from {said}: nothing is interpolated")
        return wanted, weights
    if form.position == "stored":
        if name not in weights:  # missing, which finish() tells
            return wanted, weights
        table = weights[name]
    elif form.position == "sincos_3d":
        table = sincos_3d(old, form.width, form.uniform_power)
    else:
        table = sinusoid_1d(math.prod(old), form.width)
    taker.change(name, f"positions interpolated from {said}")
    return replace(wanted, position="stored"), weights | {name: interpolated(table, old, new)}


def interpolated(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Positions [N, D] of one grid on another, trilinearly, as V-JEPA does."""
    cube = table.float().T.unflatten(1, old)[None]
    return functional.interpolate(cube, new, mode="trilinear")[0].flatten(1).T.contiguous()


def check_count(path: Path, grid: Grid) -> None:
    """Raises WeightsError for a clip of more tokens than MOST_TOKENS. path: of the file that says so."""
    if math.prod(grid) > MOST_TOKENS:
        raise WeightsError(
            f"{path}: a clip would have {' x '.join(map(str, grid))} tokens, more than {MOST_TOKENS};"
            " give other frames or size, or fetch the file again"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one, other, rtol=0, atol=SAME_TABLE))
