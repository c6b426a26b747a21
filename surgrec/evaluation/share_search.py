"""Groups in splits at the lowest cost: the search behind `stratify`, compiled.

All of it is whole numbers, in a fixed order: the same groups give the same splits on every machine.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

TOLERANCE: Final = 10
"""Per cent of a class's share by which its share of a split may differ."""
MISSED: Final = 32
"""A class that misses its share costs so many times the square of its distance more."""
_SCALE: Final = 16

Counts = NDArray[np.int64]


class Task(NamedTuple):
    """What is divided.

    counts: int64 [G, C] clips of each class in each group. total: int64 [C] of each class, all above 0.
    parts: int64 [S] what each split should get. held_to: bool [C] classes that pay for a missed share.
    weights: int64 [C] from 0 to 1 + MISSED, of a class's distance from the parts. least: int64 [S] clips
    that a split should have. short: fine for each clip less. fines: int64 [S] for a class that the split
    lacks. empty: for a split without clips.
    """

    counts: Counts
    total: Counts
    parts: Counts
    held_to: NDArray[np.bool_]
    weights: Counts
    least: Counts
    short: int
    fines: Counts
    empty: int


def task(counts: Counts, parts: Counts, held_to: NDArray[np.bool_], weights: Counts, least: Counts) -> Task:
    """The task with its fines. The first split should lack a class least, and then the last.

    counts: int64 [G, C], no class without clips. parts, least: int64 [S]. held_to, weights: [C].
    """
    # About the most that one clip more or less can change the cost of shares.
    short = 2 * (1 + MISSED) * _SCALE * int(parts.sum()) ** 2
    # No cost of shares and sizes reaches one fine: n_sc lies between 0 and N_c.
    fine = 2 * short * int(counts.sum()) * len(parts) + 1
    last = len(parts) - 1
    weight = [4 if split == 0 else 2 if split == last else 1 for split in range(len(parts))]
    # More than a split can lose by giving a group away: none stays empty where there are groups enough.
    empty = 8 * fine * counts.shape[1]
    fines = np.array(weight, np.int64) * fine
    return Task(counts, counts.sum(0), parts, held_to, weights, least, short, fines, empty)


@njit(cache=True)
def cost_of(task: Task, held: Counts, split: int) -> int:
    """Cost of a split with the counts `held`, int64 [C]."""
    size, everything, whole = held.sum(), task.total.sum(), task.parts.sum()
    cost = task.short * max(0, task.least[split] - size)
    if size == 0:
        cost += task.empty
    for label in range(len(held)):
        in_all = task.total[label]
        off = whole * held[label] - task.parts[split] * in_all
        cost += task.weights[label] * _SCALE * off * off // in_all
        if held[label] == 0:
            cost += task.fines[split]
        if task.held_to[label]:
            off = abs(held[label] * everything - size * in_all)
            if off > everything and 100 * off > TOLERANCE * size * in_all:
                off = whole * off // everything
                cost += MISSED * _SCALE * off * off // in_all
    return cost


@njit(cache=True)
def fined(task: Task, held: Counts) -> int:
    """Fines for classes that splits lack, and for splits without a clip. held: int64 [S, C]."""
    found = 0
    for split in range(len(held)):
        found += task.fines[split] * (held[split] == 0).sum()
        found += task.empty if held[split].sum() == 0 else 0
    return found


@njit(cache=True)
def deal(task: Task, order: Counts, splits: Counts, held: Counts) -> None:
    """Each group of `order` to the split where it costs least; fills splits [G] and held [S, C]."""
    for group in order:
        best, least = 0, 0
        for split in range(len(held)):
            change = cost_of(task, held[split] + task.counts[group], split) - cost_of(
                task, held[split], split
            )
            if split == 0 or change < least:
                best, least = split, change
        splits[group] = best
        held[best] += task.counts[group]


@njit(cache=True)
def improve(task: Task, order: Counts, splits: Counts, held: Counts, locked: int, swap: bool) -> None:
    """Moves groups, with `swap` also exchanges pairs, all but `locked`, until none lowers the cost."""
    while _moves(task, order, splits, held, locked) or (swap and _swaps(task, order, splits, held, locked)):
        pass


@njit(cache=True)
def _moves(task: Task, order: Counts, splits: Counts, held: Counts, locked: int) -> bool:
    moved = False
    for group in order:
        if group == locked:
            continue
        here, own = splits[group], task.counts[group]
        saved = cost_of(task, held[here], here) - cost_of(task, held[here] - own, here)
        best, least = here, 0
        for split in range(len(held)):
            if split != here:
                change = cost_of(task, held[split] + own, split) - cost_of(task, held[split], split) - saved
                if change < least:
                    best, least = split, change
        if best != here:
            held[here] -= own
            held[best] += own
            splits[group] = best
            moved = True
    return moved


@njit(cache=True)
def _swaps(task: Task, order: Counts, splits: Counts, held: Counts, locked: int) -> bool:
    swapped = False
    now = np.zeros(len(held), np.int64)
    for group in order:
        if group == locked:
            continue
        here, best, least = splits[group], -1, 0
        for split in range(len(held)):
            now[split] = cost_of(task, held[split], split)
        for other in order:
            there = splits[other]
            if there == here or other == locked:
                continue
            step = task.counts[other] - task.counts[group]
            change = cost_of(task, held[here] + step, here) - now[here] - now[there]
            if change < least:  # What the other split then costs is never below 0.
                change += cost_of(task, held[there] - step, there)
                if change < least:
                    best, least = other, change
        if best >= 0:
            there = splits[best]
            step = task.counts[best] - task.counts[group]
            held[here] += step
            held[there] -= step
            splits[group], splits[best] = there, here
            swapped = True
    return swapped
