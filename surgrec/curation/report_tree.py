"""The tree of clusters as the report shows it, and which segments stand for its nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from surgrec.loaders.corpus_plan import CorpusPlan
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.sampler import UNLABELLED

PER_LEAF: Final = 8
"""Segments that stand for a finest cluster, at most."""

LABELS: Final = ("domain", "dataset", "case")
"""Levels that are columns of the index: their nodes have names."""


@dataclass(frozen=True)
class TreeLevel:
    """m nodes, in the order of their numbers. parent: int64 [m], place of the node in the level above, 0 in
    the first. natural, drawn: float64 [m], shares by frames and by weight. segments: int64 [m]. hours:
    float64 [m].
    """

    name: str
    labels: list[str]
    parent: NDArray[np.int64]
    natural: NDArray[np.float64]
    drawn: NDArray[np.float64]
    segments: NDArray[np.int64]
    hours: NDArray[np.float64]


@dataclass(frozen=True)
class Tree:
    """levels: from the outside in. rows: int64 [k], numbers of the plan's segments that are in the tree.
    leaf: int64 [k], place of each in the last level.
    """

    levels: list[TreeLevel]
    rows: NDArray[np.int64]
    leaf: NDArray[np.int64]


def make_tree(index: PacketIndex, plan: CorpusPlan, seconds: NDArray[np.float64]) -> Tree:
    """Of the segments that are drawn. seconds: of each segment of the plan."""
    there = plan.reason == 0
    for level in plan.levels:
        there &= level >= 0
    rows = np.flatnonzero(there)
    if not plan.levels or not len(rows):
        return Tree([], rows, np.zeros(len(rows), np.int64))
    frames = (plan.segments.end - plan.segments.start)[rows].astype(np.float64)
    weight = plan.weight[rows]
    above = np.zeros(len(rows), np.int64)
    levels = []
    for name, level in zip(plan.level_names, plan.levels, strict=True):
        numbers, first, place = np.unique(level[rows], return_index=True, return_inverse=True)
        natural, drawn, length = (
            np.bincount(place, weights=values, minlength=len(numbers))
            for values in (frames, weight, seconds[rows])
        )
        if name in LABELS:
            column = getattr(index.videos, name)
            labels = [column[video] or UNLABELLED for video in plan.segments.video[rows[first]].tolist()]
        else:
            labels = [f"{name} · {number}" for number in numbers.tolist()]
        counts = np.bincount(place, minlength=len(numbers))
        shares = natural / natural.sum(), drawn / max(float(drawn.sum()), np.finfo(float).tiny)
        levels.append(TreeLevel(name, labels, above[first], *shares, counts, length / 3600))
        above = place.astype(np.int64)
    return Tree(levels, rows, above)


def examples(tree: Tree, budget: int) -> dict[int, list[int]]:
    """Segments that stand for leaves: numbers of the plan's segments by place of the leaf, `budget` of
    them in all, PER_LEAF of a leaf at most.

    Every node has the examples of the leaves below it. So first comes one leaf of each coarsest node, the
    most drawn of its most drawn child and so on; then one of each node of the next level that has none, down
    to the leaves; then second ones of the leaves in the same order. Of a leaf, segments are spread over its
    videos and times.
    """
    if not tree.levels or budget < 1:
        return {}
    order = np.argsort(tree.leaf, kind="stable")
    starts = np.searchsorted(tree.leaf[order], np.arange(len(tree.levels[-1].labels) + 1))
    leaves = _in_turn(tree.levels)
    found: dict[int, list[int]] = {}
    left = budget
    for turn in range(PER_LEAF):
        for leaf in leaves:
            own = order[starts[leaf] : starts[leaf + 1]]
            count = min(PER_LEAF, len(own))
            if turn < count:
                place = (_spread(count)[turn] * len(own) + len(own) // 2) // count
                found.setdefault(leaf, []).append(int(tree.rows[own[place]]))
                left -= 1
                if left == 0:
                    return found
    return found


def _in_turn(levels: list[TreeLevel]) -> list[int]:
    """The leaves, those first that stand for coarse nodes; of equals, the most drawn first."""
    count = len(levels[-1].labels)
    needed = np.full(count, len(levels))  # the outermost level a node of which has this leaf for its first
    best = np.arange(count)  # of each node of the level at hand, its first leaf
    for depth in range(len(levels) - 1, -1, -1):
        needed[best] = depth
        parent, drawn = levels[depth].parent, levels[depth].drawn
        order = np.lexsort((np.arange(len(drawn)), -drawn, parent))
        firsts = np.unique(parent[order], return_index=True)[1]
        best = best[order[firsts]]
    return np.lexsort((np.arange(count), -levels[-1].drawn, needed)).tolist()


def _spread(count: int) -> list[int]:
    """0 to count - 1, the middle first, then the middles of what is left on either side."""
    found: list[int] = []
    parts = [(0, count)]
    while parts:
        begin, end = parts.pop(0)
        if begin < end:
            middle = (begin + end) // 2
            found.append(middle)
            parts += [(begin, middle), (middle + 1, end)]
    return found
