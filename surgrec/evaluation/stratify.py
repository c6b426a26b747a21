"""Groups into train, val and test, so that each class has its share of every split.

All arithmetic is on whole numbers, and what is equal is decided by hashes of names: the same groups give the
same splits on every machine, in whatever order they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from surgrec.evaluation.share_search import (
    MISSED,
    TOLERANCE,
    Counts,
    Task,
    cost_of,
    deal,
    fined,
    improve,
    task,
)
from surgrec.kernels.counter_rng import stream_key

STARTS: Final = 16
"""Orders in which the groups are dealt out; the best result counts."""
FEW_STARTS: Final = 2
MOST_SWAPPED: Final = 1000
"""Above so many groups only moves are tried from FEW_STARTS, no swaps, which cost the square of their number,
and sizes are not given up for shares."""
KICKS: Final = 32
"""Groups that are tried in other places at the end, of those with clips of classes that miss their share."""
KICKED_ROUNDS: Final = 4
KICKED_DIVISIONS: Final = 4
MOST_KICKED: Final = 300
"""Above so many groups none are tried: shares are met without."""
MOST_LISTED: Final = 10
"""All divisions of a class in so many groups at most are looked at, whether one gives it its share."""
GIVE: Final = 3
"""A class's groups allow its share if they can be divided within so many times the tolerance of the parts:
sizes of splits can give way."""
MOST_CLIPS: Final = 1_000_000
MOST_PARTS: Final = 100
MOST_CLASSES: Final = 2_000
"""Above, int64 could overflow."""


def misses(held: Counts) -> NDArray[np.bool_]:
    """Classes that are more than TOLERANCE per cent and more than one clip from their share, bool [S, C].

    held: clips of each class in each split, int64 [S, C]. With n_sc of n_s clips in a split and N_c of N in
    all, a class misses where |n_sc N - n_s N_c| is above N and above TOLERANCE per cent of n_s N_c.
    """
    everything = int(held.sum())
    share = held.sum(1, keepdims=True) * held.sum(0, keepdims=True)
    off = np.abs(held * everything - share)
    return (off > everything) & (100 * off > TOLERANCE * share)


def allowed(sizes: Counts, parts: Counts) -> bool:
    """Whether a class in groups of `sizes` clips, int64 [G], can have about its share of splits of the sizes
    `parts`, int64 [S]: in each within GIVE times TOLERANCE per cent, or GIVE clips. Of more than MOST_LISTED
    groups only the largest is looked at."""
    whole, wanted = int(parts.sum()), parts * int(sizes.sum())
    room = GIVE * np.maximum(whole, TOLERANCE * wanted // 100)
    sizes = sizes[sizes > 0]
    if len(sizes) > MOST_LISTED:
        return bool(whole * int(sizes.max()) <= int((wanted + room).max()))
    found = np.zeros((1, len(parts)), np.int64)
    for size in sizes:
        found = (found[:, None] + size * np.eye(len(parts), dtype=np.int64)).reshape(-1, len(parts))
        found = np.unique(found[(whole * found <= wanted + room).all(1)], axis=0)
    return bool((np.abs(whole * found - wanted) <= room).all(1).any())


def stratify(names: Sequence[str], counts: Counts, parts: Sequence[int], seed: int) -> NDArray[np.int64]:
    """The split of each group, int64 [G], 0 <= split < S.

    Groups are dealt out, in several orders, each to where it lowers the cost most; then groups are moved, and
    swapped in pairs, as long as that lowers the cost; where classes still miss their share, groups that hold
    them are put elsewhere one by one, and the others moved and swapped anew. The cost is, over splits s and
    classes c, (P n_sc - p_s N_c)^2 / N_c, with n_sc clips of class c in split s, N_c in all, parts p and
    their sum P; and, above all of it, a fine for each class that a split lacks, the highest for the first
    split, then for the last, and a higher one for a split without clips.

    The nearest division by that tells how large the splits can be: large groups may force others than the
    parts. From there on a class that misses its share of the clips that the split has (`misses`), costs
    MISSED times the square of its distance more, and a split with less than 90 % of the clips that it had, or
    of its part, a fine for each. Classes whose groups do not allow their share (`allowed`) pay as much for
    their distance from the parts instead: else splits would shrink to suit them, and every other class with
    them. Then the search looks for shares alone, whatever the sizes are, and comes back as near to the parts
    as the shares allow; and then it gives up one class after the other, where fewer miss their share for it.
    What lacks fewer classes stays, then that in which fewer of the classes that can have their share miss it,
    then what costs less.

    Args:
        names: of the groups, all different.
        counts: clips of each class in each group, int64 [G, C].
        parts: what each split should get, whole numbers above 0, [S].
        seed: of the hashes.
    """
    counts = np.ascontiguousarray(counts, np.int64)
    counts = np.ascontiguousarray(counts[:, counts.sum(0) > 0])
    if counts.sum() > MOST_CLIPS or counts.shape[1] > MOST_CLASSES:
        raise ValueError(
            f"{counts.sum():,} clips of {counts.shape[1]:,} classes; splits of {MOST_CLIPS:,} clips and"
            f" {MOST_CLASSES:,} classes at most can be repaired"
        )
    asked = np.asarray(parts, np.int64)
    orders = [
        _order(names, counts, seed, start)
        for start in range(STARTS if len(counts) <= MOST_SWAPPED else FEW_STARTS)
    ]
    able = np.array([allowed(sizes, asked) for sizes in counts.T], np.bool_)
    plain = np.ones(len(able), np.int64)
    nearest = task(counts, asked, np.zeros_like(able), plain, np.zeros(len(asked), np.int64))
    first = _best([_Division(nearest, order) for order in orders], nearest, able)
    first.kick(able)
    if not (misses(first.held).any(0) & able).any():
        return first.splits
    # A split shrinks little below what the largest groups force on it to give all classes their shares.
    size = np.minimum(first.held.sum(1), asked * counts.sum() // asked.sum())
    least = (100 - TOLERANCE) * size // 100
    weights = np.where(able, plain, 1 + MISSED)
    judge = task(counts, asked, able, weights, least)
    best = _search(judge, judge, able, orders, first)
    given_up = np.zeros_like(able)
    if len(counts) > MOST_SWAPPED:
        return best.splits
    best = _shares_first(judge, judge, able, orders, best)
    while (off := misses(best.held).any(0) & able & ~given_up).any():
        # One class in large groups can be what takes the others their shares.
        found = []
        for label in np.flatnonzero(off).tolist():
            without = given_up.copy()
            without[label] = True
            others = judge._replace(held_to=able & ~without)
            found.append((_shares_first(others, judge, able, orders, best), without))
        nearer, without = min(found, key=lambda pair: pair[0].score(judge, able))
        if nearer.score(judge, able) >= best.score(judge, able):
            break
        best, given_up = nearer, without
    return best.splits


def _shares_first(
    task: Task, judge: Task, able: NDArray[np.bool_], orders: Sequence[NDArray[np.int64]], known: _Division
) -> _Division:
    """The best division by `judge` that is found where shares cost and sizes of splits do not; it is
    then brought as near to the parts as the shares of `task` allow."""
    shares = task._replace(weights=np.where(able, 0, task.weights))
    found = _search(shares, judge, able, orders, known)
    near = _Division(task, found.order, found.splits)
    near.kick(able)
    return _best([known, found, near], judge, able)


def _search(
    task: Task, judge: Task, able: NDArray[np.bool_], orders: Sequence[NDArray[np.int64]], known: _Division
) -> _Division:
    """The best division by `judge` of those that lower the cost of `task`: from `known`, and new deals."""
    divisions = [_Division(task, known.order, known.splits), *(_Division(task, order) for order in orders)]
    divisions.sort(key=lambda division: division.score(task, able))
    for division in divisions[:KICKED_DIVISIONS]:
        division.kick(able)
    return _best([known, *divisions], judge, able)


def _best(divisions: Sequence[_Division], judge: Task, able: NDArray[np.bool_]) -> _Division:
    """The one with the best score, the first of equals."""
    return min(divisions, key=lambda division: division.score(judge, able))


def _order(names: Sequence[str], counts: Counts, seed: int, start: int) -> NDArray[np.int64]:
    """First the groups with clips of the rarest classes, large ones first, and the hash decides between
    equals. In every other start large groups come first, and in the later ones the hash decides, within the
    same rarest class or among all."""
    total = counts.sum(0)
    rank = np.argsort(np.argsort(total, kind="stable"), kind="stable")
    rarest = np.where(counts > 0, rank, len(total)).min(1).tolist()
    sizes = counts.sum(1).tolist()
    keys = []
    for number, name in enumerate(names):
        first = 0 if start % 2 else rarest[number]
        size = 0 if start > 1 else -sizes[number]
        keys.append((first, size, stream_key(seed, f"split-repair/{start}/{name}"), name, number))
    return np.array([key[-1] for key in sorted(keys)], np.int64)


class _Division:
    """Which group is where. splits: int64 [G]. held: int64 [S, C], what each split has of each class."""

    def __init__(self, task: Task, order: NDArray[np.int64], splits: NDArray[np.int64] | None = None) -> None:
        self.task, self.order = task, order
        self.splits = np.full(len(task.counts), -1, np.int64) if splits is None else splits.copy()
        self.held = np.zeros((len(task.parts), len(task.total)), np.int64)
        if splits is None:
            deal(task, order, self.splits, self.held)
        else:
            np.add.at(self.held, splits, task.counts)
        self.improve(-1)

    def improve(self, locked: int) -> None:
        swap = len(self.order) <= MOST_SWAPPED
        improve(self.task, self.order, self.splits, self.held, locked, swap)

    def score(self, judge: Task, able: NDArray[np.bool_]) -> tuple[int, int, int]:
        """Fines, how many of the classes `able`, bool [C], miss their share, cost: the lower, the better."""
        cost = sum(int(cost_of(judge, held, split)) for split, held in enumerate(self.held))
        return int(fined(judge, self.held)), int((misses(self.held).any(0) & able).sum()), cost

    def kick(self, able: NDArray[np.bool_]) -> None:
        """Puts groups elsewhere, and the others where they fit then, where that gives a better score."""
        if len(self.order) > MOST_KICKED:
            return
        counts, total = self.task.counts[self.order], self.task.total
        for _ in range(KICKED_ROUNDS):
            off = misses(self.held).any(0)
            weight = (counts[:, off] * MOST_CLIPS // total[off]).sum(1)
            places = np.argsort(-weight, kind="stable")[:KICKS]
            tried = [self._try_elsewhere(int(self.order[place]), able) for place in places if weight[place]]
            if not any(tried):
                return

    def _try_elsewhere(self, group: int, able: NDArray[np.bool_]) -> bool:
        better = False
        for split in range(len(self.held)):
            here = self.splits[group]
            if split == here:
                continue
            splits, held, score = self.splits.copy(), self.held.copy(), self.score(self.task, able)
            self.held[here] -= self.task.counts[group]
            self.held[split] += self.task.counts[group]
            self.splits[group] = split
            self.improve(group)
            self.improve(-1)
            if self.score(self.task, able) < score:
                better = True
            else:
                self.splits, self.held = splits, held
        return better
