"""Balanced sampler: clip i of a run is a pure function of (seed, i).

The corpus is a tree, root -> domain -> data set -> video -> segment -> time. Each level draws a child c of
the node at hand with probability

    share(c) = mass(c) ** exponent / sum over the siblings of mass ** exponent,     mass: frames below it

exponent 1 is natural (by duration), 0 uniform. The product along the path is one number per segment, drawn
from one alias table; the place within the segment is uniform. docs/sampling.md has an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from surgrec.configs.data import BalanceConfig
from surgrec.kernels.counter_rng import mix64, stream_key, to_unit
from surgrec.loaders.alias import build_alias, pick
from surgrec.loaders.segments import SegmentTable

UNLABELLED = "unlabelled"
"""Stands for an empty domain or data set in shares and counts."""
MAX_SAMPLE = 2**62


def tree_probabilities(
    levels: Sequence[ArrayLike], mass: ArrayLike, exponents: Sequence[float]
) -> NDArray[np.float64]:
    """Probability of each leaf of a tree under a share exponent per level.

    Args:
        levels: for each level below the root, outermost first, an integer label per leaf [n]. Labels need be
            unique only among siblings.
        mass: [n], of each leaf, finite and not negative. A child without mass is never drawn.
        exponents: one per level and a last one for the leaves, each in [0, 1].

    Returns:
        float64 [n], adding up to 1.

    Raises:
        ValueError: no leaves, all without mass, lengths that differ, an exponent outside [0, 1], or a mass
            that is negative or not finite.
    """
    masses = np.asarray(mass, dtype=np.float64)
    n = len(masses)
    if len(exponents) != len(levels) + 1:
        raise ValueError(f"{len(exponents)} exponents for {len(levels)} levels and the leaves")
    for exponent in exponents:
        if not 0.0 <= exponent <= 1.0:
            raise ValueError(f"exponent {exponent} is outside [0, 1]: 0 is uniform, 1 natural")
    if n == 0:
        raise ValueError("there is nothing to draw from: no segments")
    bad = np.flatnonzero(~(np.isfinite(masses) & (masses >= 0)))
    if len(bad):
        raise ValueError(f"mass of leaf {bad[0]} is {masses[bad[0]]}; it must be finite and not negative")
    if not masses.any():
        raise ValueError(f"all {n} leaves have mass zero: nothing can be drawn")
    masses = masses / masses.max()  # sums stay finite, shares stay the same
    node = np.zeros(n, np.int64)  # of each leaf, the node of the level above
    probability = np.ones(1)
    for labels, exponent in zip(levels, exponents[:-1], strict=True):
        codes = np.unique(np.asarray(labels), return_inverse=True)[1].astype(np.int64)
        if len(codes) != n:
            raise ValueError(f"a level labels {len(codes)} leaves, there are {n}")
        _, first, child = np.unique(
            node * (int(codes.max()) + 1) + codes, return_index=True, return_inverse=True
        )
        child_mass = _sums(child, masses)
        parent = node[first]
        probability = probability[parent] * _shares(child_mass, parent, exponent)
        node = child
    return probability[node] * _shares(masses, node, exponents[-1])


def _shares(mass: NDArray[np.float64], parent: NDArray[np.int64], exponent: float) -> NDArray[np.float64]:
    """Share of each child among its siblings, mass ** exponent; 0 for a child without mass."""
    if exponent == 1.0:
        power = mass
    else:
        power = np.where(mass > 0, np.power(mass, exponent, where=mass > 0, out=np.zeros_like(mass)), 0.0)
    total = _sums(parent, power)
    return power / np.where(total > 0, total, 1.0)[parent]


def _sums(
    groups: NDArray[np.int32] | NDArray[np.int64], values: NDArray[np.float64], count: int = 0
) -> NDArray[np.float64]:
    """Sum of the values of each group, for at least `count` groups."""
    return np.bincount(groups, weights=values, minlength=count).astype(np.float64, copy=False)


@dataclass(frozen=True, slots=True)
class Mix:
    """A number, share or count, for each domain and for each data set; data sets are named domain/dataset."""

    domains: dict[str, float]
    datasets: dict[str, float]


class ClipSampler:
    """Draws (segment, position) for sample numbers; holds no state, so any order and any process will do.

    Streams of `seed`: "sampler.segment", "sampler.time", and for substitutes "sampler.substitute.segment"
    and "sampler.substitute.time".
    """

    def __init__(
        self,
        segments: SegmentTable,
        domains: Sequence[str],
        datasets: Sequence[str],
        balance: BalanceConfig,
        seed: int,
        weights: ArrayLike | None = None,
    ) -> None:
        """domains and datasets hold one label for each video of the index that `segments` refers to.

        weights: [n], in proportion to which segments are drawn; by default, by `balance`.

        Raises ValueError as tree_probabilities does, and where a segment's video has no label.
        """
        if len(domains) != len(datasets):
            raise ValueError(f"{len(domains)} domains and {len(datasets)} data sets; one of each for a video")
        if len(segments) and int(segments.video.max()) >= len(domains):
            raise ValueError(
                f"segments refer to video {segments.video.max()}, labels end at video {len(domains) - 1}"
            )
        self.segments = segments
        self.seed = seed
        pairs = [(d or UNLABELLED, s or UNLABELLED) for d, s in zip(domains, datasets, strict=True)]
        self.datasets = sorted(set(pairs))
        """(domain, data set) of each data set number."""
        numbers = {pair: number for number, pair in enumerate(self.datasets)}
        self.videos = len(pairs)
        self._dataset = np.array([numbers[pair] for pair in pairs], np.int32)[segments.video]
        domain_numbers = {name: number for number, name in enumerate(dict(self.datasets))}
        domain = np.array([domain_numbers[name] for name, _ in self.datasets], np.int32)[self._dataset]
        if weights is None:
            levels, mass = [domain, self._dataset, segments.video], segments.end - segments.start
            exponents = [balance.domain, balance.dataset, balance.video, balance.segment]
            self.probabilities = tree_probabilities(levels, mass, exponents)
        else:
            self.probabilities = tree_probabilities([], weights, [1.0])
        """float64 [segments], adding up to 1."""
        self._table = build_alias(self.probabilities)
        self._bits = np.uint64(self._table.item_bits)
        self._keys = tuple(np.uint64(stream_key(seed, f"sampler.{name}")) for name in ("segment", "time"))
        self._substitute_keys = tuple(
            np.uint64(stream_key(seed, f"sampler.substitute.{name}")) for name in ("segment", "time")
        )

    def draw(self, sample: int) -> tuple[int, float]:
        """Segment number and position in [0, 1) of one sample."""
        segments, positions = self.draw_many(sample, 1)
        return int(segments[0]), float(positions[0])

    def draw_many(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Segments int64 [count] and positions float64 [count] in [0, 1) of samples first, first + 1, ..."""
        if first < 0 or count < 0 or first + count > MAX_SAMPLE:
            raise ValueError(f"samples [{first}, {first + count}) are outside [0, 2**62)")
        segments = np.empty(count, np.int64)
        positions = np.empty(count, np.float64)
        _draw(
            self._table.slots, self._bits, self._keys[0], self._keys[1], np.uint64(first), segments, positions
        )
        return segments, positions

    def substitute(self, sample: int, attempt: int) -> tuple[int, float]:
        """Segment and position of the attempt-th replacement, 1, 2, ..., of a sample that failed."""
        if attempt < 1:
            raise ValueError(f"attempt is {attempt}; the first substitute is attempt 1")
        if not 0 <= sample < MAX_SAMPLE:
            raise ValueError(f"sample {sample} is outside [0, 2**62)")
        segments = np.empty(1, np.int64)
        positions = np.empty(1, np.float64)
        # A stream of its own for each sample, so that no two (sample, attempt) share their bits.
        keys = [np.uint64(mix64(key, np.uint64(sample))) for key in self._substitute_keys]
        _draw(self._table.slots, self._bits, keys[0], keys[1], np.uint64(attempt), segments, positions)
        return int(segments[0]), float(positions[0])

    def expected(self) -> Mix:
        """Probability of each domain and data set."""
        return self.by_name(_sums(self._dataset, self.probabilities, len(self.datasets)))

    def expected_videos(self) -> NDArray[np.float64]:
        """float64 [videos of the index]: probability of each video."""
        return _sums(self.segments.video, self.probabilities, self.videos)

    def count_datasets(self, first: int, count: int) -> NDArray[np.int64]:
        """int64 [data sets]: how often samples first, ..., first + count - 1 draw each data set."""
        counts = np.zeros(len(self.datasets), np.int64)
        for start in range(first, first + count, 1 << 16):
            segments, _ = self.draw_many(start, min(1 << 16, first + count - start))
            counts += np.bincount(self._dataset[segments], minlength=len(counts))
        return counts

    def by_name(self, per_dataset: NDArray[np.float64] | NDArray[np.int64]) -> Mix:
        """Shares or counts per data set number [data sets], by name, and added up by domain."""
        domains: dict[str, float] = {}
        datasets: dict[str, float] = {}
        for (domain, dataset), value in zip(self.datasets, per_dataset.tolist(), strict=True):
            domains[domain] = domains.get(domain, 0) + value
            datasets[f"{domain}/{dataset}"] = value
        return Mix(domains, datasets)


@numba.njit(cache=True)
def _draw(slots, item_bits, segment_key, time_key, first, segments, positions):
    """Fills segments int64 [n] and positions float64 [n]."""
    # Mixing is vectorised only apart from the look-up: twice as fast.
    bits = segments.view(np.uint64)
    for j in range(len(bits)):
        bits[j] = mix64(segment_key, first + np.uint64(j))
    for j in range(len(positions)):
        positions[j] = to_unit(mix64(time_key, first + np.uint64(j)))
    for j in range(len(segments)):
        segments[j] = pick(slots, item_bits, bits[j])
