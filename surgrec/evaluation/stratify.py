"""Groups into train, val and test, so that each class has its share of every split.

All arithmetic is on whole numbers, and what is equal is decided by hashes of names: the same groups give the
same splits on every machine, in whatever order they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from surgrec.kernels.counter_rng import stream_key

STARTS: Final = 8
"""Orders in which the groups are dealt out; the best result counts."""
MOST_SWAPPED: Final = 1500
"""Above so many groups only moves are tried, no swaps, which cost the square of their number."""
KICKS: Final = 32
"""Groups that are tried in other places at the end, of those with clips of classes that miss their share."""
KICKED_ROUNDS: Final = 4
MOST_KICKED: Final = 500
"""Above so many groups none are tried: shares are met without."""
TOLERANCE: Final = 10
"""Per cent of a class's share by which its share of a split may differ."""
_SCALE: Final = 16
MOST_CLIPS: Final = 1_000_000
MOST_PARTS: Final = 100
"""Above, int64 could overflow."""

Counts = NDArray[np.int64]


def misses(held: Counts) -> NDArray[np.bool_]:
    """Classes that are more than TOLERANCE per cent and more than one clip from their share, bool [S, C].

    held: clips of each class in each split, int64 [S, C]. With n_sc of n_s clips in a split and N_c of N in
    all, a class misses where |n_sc N - n_s N_c| is above N and above TOLERANCE per cent of n_s N_c.
    """
    everything = int(held.sum())
    share = held.sum(1, keepdims=True) * held.sum(0, keepdims=True)
    off = np.abs(held * everything - share)
    return (off > everything) & (100 * off > TOLERANCE * share)


def stratify(names: Sequence[str], counts: Counts, parts: Sequence[int], seed: int) -> NDArray[np.int64]:
    """The split of each group, int64 [G], 0 <= split < S.

    Groups are dealt out, in several orders, each to where it lowers the cost most; then groups are moved, and
    swapped in pairs, as long as that lowers the cost. The cost is, over splits s and classes c,
    (P n_sc - p_s N_c)^2 / N_c, with n_sc clips of class c in split s, N_c in all, parts p and their sum P;
    and, above all of it, a fine for each class that a split lacks, the highest for the first split, then for
    the last, and a higher one for a split without clips. Where classes still miss their share, groups that
    hold them are put elsewhere one by one, and the others moved and swapped anew. What lacks fewer classes
    stays, then what meets all shares, then what costs less.

    Args:
        names: of the groups, all different.
        counts: clips of each class in each group, int64 [G, C].
        parts: what each split should get, whole numbers above 0, [S].
        seed: of the hashes.
    """
    counts = np.asarray(counts, np.int64)
    counts = counts[:, counts.sum(0) > 0]
    total = counts.sum(0)
    if total.sum() > MOST_CLIPS:
        raise ValueError(f"{total.sum():,} clips; splits of {MOST_CLIPS:,} at most can be repaired")
    best: tuple[tuple[int, bool, int], _State, NDArray[np.int64]] | None = None
    for start in range(STARTS):
        order = _order(names, counts, total, seed, start)
        state = _State(counts[order], total, np.asarray(parts, np.int64))
        _deal(state)
        _improve(state, -1)
        if best is None or state.score() < best[0]:
            best = state.score(), state, order
    assert best is not None
    _, state, order = best
    _kick(state)
    chosen = np.zeros(len(names), np.int64)
    chosen[order] = state.splits
    return chosen


def _order(names: Sequence[str], counts: Counts, total: Counts, seed: int, start: int) -> NDArray[np.int64]:
    """First the groups with clips of the rarest classes, large ones first, and the hash decides between
    equals. In every other start large groups come first, and in the later ones the hash decides, within the
    same rarest class or among all."""
    rank = np.argsort(np.argsort(total, kind="stable"), kind="stable")
    keys = []
    for number, name in enumerate(names):
        held = np.flatnonzero(counts[number])
        rarest = int(rank[held].min()) if len(held) else len(total)
        size = -int(counts[number].sum())
        if start % 2:
            rarest = 0
        if start > 1:
            size = 0
        keys.append((rarest, size, stream_key(seed, f"split-repair/{start}/{name}"), name, number))
    return np.array([key[-1] for key in sorted(keys)], np.int64)


class _State:
    """Which group is where, and what moving one would cost."""

    def __init__(self, counts: Counts, total: Counts, parts: Counts) -> None:
        self.counts, self.total = counts, total
        self.whole, self.wanted = int(parts.sum()), parts[:, None] * total[None, :]
        self.held = np.zeros((len(parts), len(total)), np.int64)
        self.splits = np.full(len(counts), -1, np.int64)
        # No cost of shares reaches one fine: n_sc lies between 0 and N_c.
        fine = _SCALE * self.whole**2 * int(total.sum()) * len(parts) + 1
        last = len(parts) - 1
        weight = [4 if split == 0 else 2 if split == last else 1 for split in range(len(parts))]
        self.fines = np.array(weight, np.int64)[:, None] * fine
        # More than a split can lose by giving a group away: none stays empty where there are groups enough.
        self.empty = 8 * fine * len(total)

    def cost(self, held: Counts, splits: slice | int | NDArray[np.int64]) -> NDArray[np.int64]:
        """Cost of the counts `held` [..., C] in those splits, int64 [...]."""
        off = self.whole * held - self.wanted[splits]
        return (_SCALE * off * off // self.total).sum(-1) + self.fined(held, splits)

    def fined(self, held: Counts, splits: slice | int | NDArray[np.int64]) -> NDArray[np.int64]:
        """Fines for classes that those splits lack, and for splits without a clip, int64 [...]."""
        return (self.fines[splits] * (held == 0)).sum(-1) + self.empty * (held.sum(-1) == 0)

    def score(self) -> tuple[int, bool, int]:
        """Fines, whether any class misses its share, cost: the lower, the better."""
        fines = int(self.fined(self.held, slice(None)).sum())
        return fines, bool(misses(self.held).any()), int(self.cost(self.held, slice(None)).sum())

    def put(self, group: int, split: int) -> None:
        if self.splits[group] >= 0:
            self.held[self.splits[group]] -= self.counts[group]
        self.held[split] += self.counts[group]
        self.splits[group] = split


def _deal(state: _State) -> None:
    for group in range(len(state.counts)):
        change = state.cost(state.held + state.counts[group], slice(None)) - state.cost(
            state.held, slice(None)
        )
        state.put(group, int(change.argmin()))


def _improve(state: _State, locked: int) -> None:
    """Moves and swaps all but the group `locked` until none lowers the cost."""
    while _moves(state, locked) or (len(state.counts) <= MOST_SWAPPED and _swaps(state, locked)):
        pass


def _kick(state: _State) -> None:
    """Puts groups elsewhere, and the others where they fit then, where that gives a better score."""
    if len(state.counts) > MOST_KICKED:
        return
    for _ in range(KICKED_ROUNDS):
        off = misses(state.held).any(0)
        weight = (state.counts[:, off] * state.whole**2 // np.maximum(state.total[off], 1)).sum(1)
        groups = np.argsort(-weight, kind="stable")[:KICKS]
        better = [_try_elsewhere(state, int(group)) for group in groups if weight[group]]
        if not any(better):
            return


def _try_elsewhere(state: _State, group: int) -> bool:
    better = False
    for split in range(len(state.held)):
        if split == state.splits[group]:
            continue
        held, splits, score = state.held.copy(), state.splits.copy(), state.score()
        state.put(group, split)
        _improve(state, group)
        _improve(state, -1)
        if state.score() < score:
            better = True
        else:
            state.held, state.splits = held, splits
    return better


def _moves(state: _State, locked: int) -> bool:
    """Moves single groups where that lowers the cost; whether any was moved."""
    moved = False
    for group in range(len(state.counts)):
        if group == locked:
            continue
        here, own = int(state.splits[group]), state.counts[group]
        now = state.cost(state.held, slice(None))
        change = state.cost(state.held + own, slice(None)) - now
        change += int(state.cost(state.held[here] - own, here)) - int(now[here])
        change[here] = 0
        best = int(change.argmin())
        if change[best] < 0:
            state.put(group, best)
            moved = True
    return moved


def _swaps(state: _State, locked: int) -> bool:
    """Swaps pairs of groups where that lowers the cost; whether any were."""
    swapped = False
    for group in range(len(state.counts)):
        here = int(state.splits[group])
        others = np.flatnonzero((state.splits != here) & (np.arange(len(state.splits)) != locked))
        if group == locked or not len(others):
            continue
        there = state.splits[others]
        step = state.counts[others] - state.counts[group]
        now = state.cost(state.held, slice(None))
        change = state.cost(state.held[here] + step, here) - now[here]
        change += state.cost(state.held[there] - step, there) - now[there]
        best = int(change.argmin())
        if change[best] < 0:
            partner, to = int(others[best]), int(there[best])
            state.put(group, to)
            state.put(partner, here)
            swapped = True
    return swapped
