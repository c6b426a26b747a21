"""Masks: counts, shapes, and that they depend on nothing but key, sample and step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.configs.model import BlockGroup
from surgrec.kernels.masking import BlockMask, block_size, multi_block_mask, some_tokens, tube_mask
from torch import Tensor

GRID = (8, 14, 14)
GROUPS = (BlockGroup(8, 0.15), BlockGroup(2, 0.7))
KEYS = st.integers(0, 2**64 - 1)
SAMPLES = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6)
GRIDS = st.tuples(st.integers(1, 8), st.integers(1, 16), st.integers(1, 16)).filter(lambda g: g[1] * g[2] > 1)


def clips_of(packed: Tensor, lengths: Tensor) -> list[Tensor]:
    assert int(lengths.sum()) == len(packed)
    return list(packed.split(lengths.tolist()))


@settings(deadline=None, max_examples=60)
@given(KEYS, SAMPLES, GRIDS, st.floats(0.0, 1.0))
def test_tube_mask(key: int, samples: list[int], grid: tuple[int, int, int], ratio: float) -> None:
    steps, height, width = grid
    area = height * width
    hidden = int(ratio * area)
    numbers = torch.tensor(samples)
    if not 0 < hidden < area:
        with pytest.raises(ValueError, match="mask ratio"):
            tube_mask(key, numbers, grid, ratio)
        return
    mask = tube_mask(key, numbers, grid, ratio)
    assert mask.masked.shape == (len(samples), hidden * steps)
    assert mask.visible.shape == (len(samples), (area - hidden) * steps)
    everything = torch.cat([mask.visible, mask.masked], dim=1).sort(dim=1).values
    assert torch.equal(everything, torch.arange(area * steps).expand(len(samples), -1))
    assert (mask.visible.diff(dim=1) > 0).all()
    assert (mask.masked.diff(dim=1) > 0).all()
    by_step = mask.masked.view(len(samples), steps, hidden) - torch.arange(steps)[:, None] * area
    assert (by_step == by_step[:, :1]).all()
    alone = tube_mask(key, numbers[-1:], grid, ratio)
    assert torch.equal(alone.masked[0], mask.masked[-1])


def test_tube_mask_of_the_recipe_is_fair() -> None:
    """176 of 196 positions, 160 visible tokens, and every position equally often."""
    mask = tube_mask(5, torch.arange(4000), GRID, 0.9)
    assert mask.visible.shape == (4000, 160)
    counts = torch.bincount(mask.visible[:, :20].flatten(), minlength=196).double()
    expected = 4000 * 20 / 196
    assert ((counts - expected).abs() < 5.5 * expected**0.5).all()
    assert len(mask.visible.unique(dim=0)) == 4000


@settings(deadline=None, max_examples=60)
@given(KEYS, SAMPLES, st.integers(0, 2**31), GRIDS, st.integers(1, 12), st.floats(0.05, 1.0))
def test_multi_block_mask(
    key: int, samples: list[int], step: int, grid: tuple[int, int, int], blocks: int, scale: float
) -> None:
    steps, height, width = grid
    area = height * width
    group = BlockGroup(blocks, scale)
    numbers = torch.tensor(samples)
    if int(area * scale) < 1:
        with pytest.raises(ValueError, match="covers nothing"):
            multi_block_mask(key, numbers, step, grid, (group,))
        return
    (mask,) = multi_block_mask(key, numbers, step, grid, (group,))
    sizes = set()
    for context, target in zip(
        clips_of(mask.context, mask.context_lengths), clips_of(mask.target, mask.target_lengths), strict=True
    ):
        assert len(context) > 0
        assert len(target) > 0
        assert torch.equal(torch.cat([context, target]).sort().values, torch.arange(area * steps))
        assert (context.diff() > 0).all()
        assert (target.diff() > 0).all()
        by_step = target.view(steps, -1) - torch.arange(steps)[:, None] * area
        assert (by_step == by_step[:1]).all()
        sizes.add(len(target) // steps)
    alone = multi_block_mask(key, numbers[-1:], step, grid, (group,))[0]
    assert torch.equal(alone.target, clips_of(mask.target, mask.target_lengths)[-1])
    if blocks == 1:
        # One block: every clip's is of the same size.
        assert len(sizes) == 1


@settings(deadline=None, max_examples=20)
@given(KEYS, SAMPLES, st.integers(0, 10_000))
def test_equal_lengths_are_v_jepas_cut(key: int, samples: list[int], step: int) -> None:
    """All sets in ascending order, cut to the smallest of the batch."""
    numbers = torch.tensor(samples)
    free = multi_block_mask(key, numbers, step, GRID, GROUPS)
    cut = multi_block_mask(key, numbers, step, GRID, GROUPS, equal_lengths=True)
    for whole, short in zip(free, cut, strict=True):
        for packed, lengths, short_packed, short_lengths in (
            (whole.context, whole.context_lengths, short.context, short.context_lengths),
            (whole.target, whole.target_lengths, short.target, short.target_lengths),
        ):
            sets = [clip.tolist() for clip in clips_of(packed, lengths)]
            smallest = min(len(clip) for clip in sets)
            assert short_lengths.tolist() == [smallest] * len(sets)
            assert short_packed.view(len(sets), smallest).tolist() == [clip[:smallest] for clip in sets]


def draw_size(area: int, aspect: float, height: int, width: int) -> tuple[int, int]:
    """V-JEPA's formula, on its own."""
    return min(round(math.sqrt(area * aspect)), height), min(round(math.sqrt(area / aspect)), width)


@pytest.mark.parametrize("group", GROUPS)
def test_block_sizes(group: BlockGroup) -> None:
    """Over many steps the sizes are those of V-JEPA's formula for aspects across the whole range."""
    area = int(196 * group.scale)
    drawn = {block_size(11, step, 0, GRID, group) for step in range(2000)}
    low, high = group.aspect
    assert drawn == {draw_size(area, low + i / 20000 * (high - low), 14, 14) for i in range(20000)}


def test_block_size_is_shared_and_places_are_not() -> None:
    mask = multi_block_mask(3, torch.arange(2000), 4, GRID, (BlockGroup(1, 0.15),))[0]
    rows, columns = block_size_of(mask)
    spots = mask.target.view(2000, 8, -1)[:, 0, 0]
    counts = torch.bincount(spots, minlength=196).view(14, 14)
    assert (counts > 0).sum() == (15 - rows) * (15 - columns)
    expected = 2000 / ((15 - rows) * (15 - columns))
    reached = counts[: 15 - rows, : 15 - columns].double()
    assert ((reached - expected).abs() < 6 * expected**0.5).all()


def block_size_of(mask: BlockMask) -> tuple[int, int]:
    """Of single blocks: the rows and columns of the first clip's."""
    first = mask.target[: int(mask.target_lengths[0]) // 8]
    return len((first // 14).unique()), len((first % 14).unique())


def test_context_survives_blocks_that_could_cover_everything() -> None:
    """64 blocks of three quarters of the frame: by chance alone hardly a clip would keep a context."""
    group = BlockGroup(64, 0.75, (1.0, 1.0))
    mask = multi_block_mask(1, torch.arange(500), 0, (2, 4, 4), (group,))[0]
    assert (mask.context_lengths > 0).all()
    # What is left when all else fails is a single block.
    assert (mask.target_lengths == 2 * 9).float().mean() > 0.9
    full = multi_block_mask(1, torch.arange(50), 0, (2, 4, 4), (BlockGroup(3, 1.0, (1.0, 1.0)),))[0]
    assert (full.context_lengths > 0).all()


def test_groups_and_steps_differ() -> None:
    samples = torch.arange(8)
    first, second = multi_block_mask(9, samples, 0, GRID, (GROUPS[0], GROUPS[0]))
    assert not torch.equal(first.target, second.target)
    sizes = {
        block_size_of(multi_block_mask(9, samples, s, GRID, (BlockGroup(1, 0.3),))[0]) for s in range(40)
    }
    assert len(sizes) > 3


def v_jepa_shares(group: BlockGroup, clips: int) -> list[float]:
    """Share of the frame that V-JEPA hides, by its loop: a size, places, again while no context is left."""
    generator = np.random.default_rng(0)
    shares: list[float] = []
    while len(shares) < clips:
        rows, columns = draw_size(int(196 * group.scale), generator.uniform(*group.aspect), 14, 14)
        hidden = np.zeros((14, 14), dtype=bool)
        for _ in range(group.blocks):
            top, left = generator.integers(15 - rows), generator.integers(15 - columns)
            hidden[top : top + rows, left : left + columns] = True
        if not hidden.all():
            shares.append(float(hidden.mean()))
    return shares


@pytest.mark.parametrize("group", GROUPS)
def test_share_of_targets_is_v_jepas(group: BlockGroup) -> None:
    shares = torch.cat(
        [
            multi_block_mask(2, torch.arange(8) + 8 * step, step, GRID, (group,))[0].target_lengths
            for step in range(500)
        ]
    ).double() / math.prod(GRID)
    expected = np.array(v_jepa_shares(group, 4000))
    # Clips of a step share the block's size, hence the width of the tolerance.
    assert abs(shares.mean().item() - expected.mean()) < 0.01
    assert abs(shares.std().item() - expected.std()) < 0.01


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**63 - 1), st.integers(1, 12), st.integers(0, 10**9))
def test_some_tokens_are_drawn_for_each_sample_by_itself(key: int, count: int, first: int) -> None:
    samples = first + torch.arange(5)
    tokens = torch.arange(60).view(5, 12)
    chosen = some_tokens(key, samples, tokens, count)
    assert chosen.shape == (5, count)
    for row, of in zip(chosen.tolist(), tokens.tolist(), strict=True):
        assert row == sorted(set(row))
        assert set(row) <= set(of)
    assert torch.equal(some_tokens(key, samples[3:4], tokens[3:4], count), chosen[3:4])


def test_every_token_is_drawn_as_often_as_any_other() -> None:
    tokens = torch.arange(12).expand(6000, -1)
    counts = some_tokens(3, torch.arange(6000), tokens, 4).flatten().bincount(minlength=12)
    assert (counts - 2000).abs().max() < 5 * (6000 * (1 / 3) * (2 / 3)) ** 0.5
    with pytest.raises(ValueError, match="13 of 12"):
        some_tokens(3, torch.arange(6000), tokens, 13)
