"""Hierarchical k-means: clusters of clusters, each level evenly spread over what the one below shows.

After Vo et al., "Automatic data curation for self-supervised learning: a clustering-based approach" (2024).
The first level groups the points, each further one the centroids of the level below. k-means puts many
centroids where there are many points; so at each level, several times, only the points nearest to each
centroid are kept and grouped anew, which spreads the centroids more evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surgrec.curation.kmeans import KMeans, Metric, check_points, kmeans, with_centroids


@dataclass(frozen=True)
class HierarchyOptions:
    """levels: clusters of each level, the finest first, falling. resamples: how often a level is grouped anew
    from the `nearest` points of each cluster. rounds: of k-means, at most.
    """

    levels: tuple[int, ...]
    metric: Metric = "cosine"
    rounds: int = 30
    resamples: int = 2
    nearest: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Hierarchy:
    """centroids: of each level, the finest first, float32 [k, d]. parents: of each level, int32: for the
    finest [n], the cluster of each point; for each further one, that of each cluster of the level below.
    """

    centroids: tuple[NDArray[np.float32], ...]
    parents: tuple[NDArray[np.int32], ...]

    def assignment(self, level: int) -> NDArray[np.int32]:
        """int32 [n]: the cluster of each point at a level, 0 the finest."""
        found = self.parents[0]
        for parents in self.parents[1 : level + 1]:
            found = parents[found]
        return found


def hierarchical_kmeans(
    points: NDArray[Any],
    options: HierarchyOptions,
    device: str | torch.device = "cpu",
    step: Callable[[], None] = lambda: None,
) -> Hierarchy:
    """The tree over points, float16 or float32 [n, d]. Streams of the seed: "cluster.L.R" for level L and
    resample R.

    step: called after each of the `steps_of` groupings.

    Raises ValueError as kmeans does, and for levels that do not fall or do not fit.
    """
    levels = options.levels
    if not levels or any(after >= before for before, after in pairwise((len(points) + 1, *levels))):
        raise ValueError(
            f"levels of {levels} clusters over {len(points)} points: falling numbers are needed, the finest"
            f" first"
        )
    if options.resamples < 0 or options.nearest < 1:
        raise ValueError(
            f"{options.resamples} resamples of the {options.nearest} nearest: at least 0 of at least 1"
        )
    check_points(points, options.metric)
    centroids: list[NDArray[np.float32]] = []
    parents: list[NDArray[np.int32]] = []
    below: NDArray[Any] = points
    for level, k in enumerate(levels):
        found = _level(below, k, level, options, device, step)
        centroids.append(found.centroids)
        parents.append(found.assignment)
        below = found.centroids
    return Hierarchy(tuple(centroids), tuple(parents))


def steps_of(options: HierarchyOptions) -> int:
    """How often `step` is called."""
    return len(options.levels) * (1 + options.resamples)


def _level(
    points: NDArray[Any],
    k: int,
    level: int,
    options: HierarchyOptions,
    device: str | torch.device,
    step: Callable[[], None],
) -> KMeans:
    found = kmeans(points, k, options.seed, f"cluster.{level}.0", options.metric, options.rounds, device)
    step()
    for resample in range(1, options.resamples + 1):
        step()
        rows = nearest_rows(found, options.nearest)
        if len(rows) == len(points):
            continue  # every point is among the nearest
        name = f"cluster.{level}.{resample}"
        kept = kmeans(points[rows], k, options.seed, name, options.metric, options.rounds, device)
        found = with_centroids(points, kept.centroids, options.metric, kept.rounds, device)
    return found


def nearest_rows(found: KMeans, count: int) -> NDArray[np.int64]:
    """Numbers of the points, ascending, that are among the `count` nearest of their cluster."""
    order = np.lexsort((found.distance, found.assignment))
    clusters = found.assignment[order]
    firsts = np.searchsorted(clusters, clusters)
    return np.sort(order[np.arange(len(order)) - firsts < count])
