"""Stage `cluster`: a tree of clusters over the segments, in each group of given labels by itself."""

from __future__ import annotations

from dataclasses import asdict
from itertools import count, pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from surgrec.configs.curate import ClusterOptions
from surgrec.curation.hierarchy import HierarchyOptions, hierarchical_kmeans, steps_of
from surgrec.curation.per_video import Progress
from surgrec.curation.records import Arrays, CurationError, digest_of, key_of

VERSION: Final = 1
LEAST_SEGMENTS: Final = 8
"""Segments of a cluster of the finest level, on average, at least."""


def levels_for(segments: int, levels: tuple[int, ...]) -> tuple[int, ...]:
    """Clusters of each level for so many segments, the finest first: as they are where there are enough
    segments, else smaller in proportion; levels that would be as fine as the one below are left out.

    Raises ValueError where the levels do not fall, or one is below 1.
    """
    if not levels or min(levels) < 1 or any(b >= a for a, b in pairwise(levels)):
        raise ValueError(
            f"levels of {levels} clusters: falling numbers from 1 up are needed, the finest first"
        )
    scale = min(1.0, segments / LEAST_SEGMENTS / levels[0])
    found: list[int] = []
    for level in levels:
        size = max(1, min(segments, round(level * scale)))
        if not found or size < found[-1]:
            found.append(size)
    return tuple(found)


def cluster_segments(
    vectors: NDArray[np.float16],
    kept: NDArray[np.bool_],
    group: NDArray[np.int32],
    options: ClusterOptions,
    seed: int,
    progress: Progress,
) -> Arrays:
    """Clusters of each level, the coarsest first: int32 [n] under "0", "1", ..., -1 for segments not kept.

    Each group, int32 [n], has a tree of its own; numbers are unique within a level over all groups. Groups
    with fewer levels than others repeat their finest one.

    Raises CurationError where nothing is kept, ValueError for options that make no sense.
    """
    if not kept.any():
        raise CurationError(
            "no segment is kept: nothing can be grouped. See what the stages say, and loosen the thresholds"
        )
    device = device_of(options)
    plans: list[tuple[NDArray[np.int64], HierarchyOptions]] = []
    for number in np.unique(group[kept]).tolist():
        own = np.flatnonzero(kept & (group == number))
        levels = levels_for(len(own), options.levels)
        plans.append(
            (own, HierarchyOptions(levels, options.metric, options.rounds, options.resamples, seed=seed))
        )
    total, done = sum(steps_of(plan) for _, plan in plans), count(1)
    trees: list[tuple[NDArray[np.int64], list[NDArray[np.int32]]]] = []
    for own, plan in plans:
        tree = hierarchical_kmeans(vectors[own], plan, device, lambda: progress(next(done), total))
        trees.append((own, [tree.assignment(level) for level in reversed(range(len(plan.levels)))]))
    depth = max(len(levels) for _, levels in trees)
    found: Arrays = {}
    for level in range(depth):
        labels = np.full(len(kept), -1, np.int32)
        first = 0
        for own, tree_levels in trees:
            at = tree_levels[min(level, len(tree_levels) - 1)]
            labels[own] = first + at
            first += int(at.max()) + 1
        found[str(level)] = labels
    return found


def cluster_key(
    vectors: NDArray[np.float16],
    kept: NDArray[np.bool_],
    group: NDArray[np.int32],
    options: ClusterOptions,
    seed: int,
) -> str:
    """Of the stage's table."""
    given = asdict(options) | {"device": device_of(options)}
    content = digest_of({"vectors": vectors, "kept": kept, "group": group})
    return key_of("cluster", VERSION, content, given, seed)


def device_of(options: ClusterOptions) -> str:
    """cpu or cuda. Raises ValueError for a GPU that is not there."""
    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        raise ValueError("cluster.device is cuda, but torch finds no GPU; leave it at auto, or use cpu")
    return "cuda" if there and options.device != "cpu" else "cpu"
