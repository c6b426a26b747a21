"""k-means over many points: on the CPU or a GPU, in memory that does not grow with them.

Seeds are drawn by k-means++ (Arthur and Vassilvitskii, 2007) from a uniform sample of the points, many at a
time where many are wanted, as k-means|| does (Bahmani et al., 2012). Lloyd's rounds run on a sample too where
there are very many points, and every point is assigned once at the end. `cosine` is
spherical k-means: points and centroids have unit length, and distance is 1 - cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgrec.kernels.counter_rng import stream_key

Metric = Literal["cosine", "l2"]
SEED_POINTS: Final = 20
"""Points for each cluster among which seeds are drawn."""
SEED_PASSES: Final = 256
"""Passes over them in which seeds are drawn: one seed in each where k is not larger."""
FIT_POINTS: Final = 64
"""Points for each cluster that the rounds look at."""
CELLS: Final = 1 << 26
"""Distances that are in memory at a time: 256 MiB."""
TOLERANCE: Final = 1e-4
"""Relative fall of the objective below which the rounds end."""
ROWS_AT_ONCE: Final = 1 << 16


@dataclass(frozen=True)
class KMeans:
    """centroids: float32 [k, d]. assignment: int32 [n], the nearest one of each point. distance: float32 [n]
    to it, squared for l2. rounds: that were made.
    """

    centroids: NDArray[np.float32]
    assignment: NDArray[np.int32]
    distance: NDArray[np.float32]
    rounds: int


def kmeans(
    points: NDArray[Any],
    k: int,
    seed: int,
    name: str,
    metric: Metric = "cosine",
    rounds: int = 30,
    device: str | torch.device = "cpu",
) -> KMeans:
    """Groups points into k clusters, none of them empty: where there are fewer distinct points, several
    clusters share those that are alike.

    Args:
        points: float16 or float32 [n, d]; a memory map will do.
        k: clusters, from 1 to n.
        seed, name: the stream that seeds and samples are drawn from.
        rounds: of Lloyd, at most.

    Raises:
        ValueError: no points, more clusters than points, points that are not finite, or for cosine of length
            zero.
    """
    n = len(points)
    if points.ndim != 2 or n == 0:
        raise ValueError(f"points are {points.shape}; [n, d] with n above 0 is needed")
    if not 1 <= k <= n:
        raise ValueError(f"{k} clusters of {n} points: between 1 and {n} are possible")
    if rounds < 1:
        raise ValueError(f"{rounds} rounds: 1 is the least")
    check_points(points, metric)
    generator = np.random.default_rng(stream_key(seed, name))
    place = torch.device(device)
    fit = _sample(points, FIT_POINTS * k, generator, metric, place)
    seeds = fit if len(fit) <= SEED_POINTS * k else fit[_choose(len(fit), SEED_POINTS * k, generator, place)]
    centroids = _seeded(seeds, k, generator)
    before, made = float("inf"), 0
    while made < rounds:
        made += 1
        assignment, distance = _assigned(fit, centroids, metric)
        objective = float(distance.double().sum())
        centroids = _means(fit, assignment, distance, k, metric)
        if before - objective <= TOLERANCE * before:
            break
        before = objective
    return with_centroids(points, centroids.cpu().numpy(), metric, made, place)


def check_points(points: NDArray[Any], metric: Metric) -> None:
    """Raises ValueError for a point that is not finite, or for cosine of length zero."""
    for first in range(0, len(points), ROWS_AT_ONCE):
        rows = np.asarray(points[first : first + ROWS_AT_ONCE], np.float32)
        bad = ~np.isfinite(rows).all(1)
        if bad.any():
            raise ValueError(f"point {first + int(np.argmax(bad))} has a value that is not finite")
        if metric == "cosine":
            bad = ~rows.any(1)
            if bad.any():
                raise ValueError(f"point {first + int(np.argmax(bad))} is zero: it has no direction; use l2")


def with_centroids(
    points: NDArray[Any],
    centroids: NDArray[np.float32],
    metric: Metric,
    rounds: int,
    device: str | torch.device = "cpu",
) -> KMeans:
    """All points with the nearest of some centroids, float32 [k, d], k at most n. Clusters that would be
    empty take one of the points that are farthest from theirs, each its own."""
    means = centroids.copy()
    assignment, distance = assign(points, means, metric, device)
    counts = np.bincount(assignment, minlength=len(means))
    for number in np.flatnonzero(counts == 0).tolist():
        shared = counts[assignment] > 1  # no cluster gives its last point
        at = int(np.argmax(np.where(shared, distance, -1.0)))
        counts[assignment[at]] -= 1
        counts[number] = 1
        assignment[at], distance[at] = number, 0.0
        means[number] = _tensor(points[at : at + 1], metric, torch.device("cpu"))[0].numpy()
    return KMeans(means, assignment, distance, rounds)


def assign(
    points: NDArray[Any], centroids: NDArray[np.float32], metric: Metric, device: str | torch.device = "cpu"
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The nearest centroid of each point int32 [n], of several the first, and the distance float32 [n]."""
    means = torch.from_numpy(centroids).to(device)
    found = np.empty(len(points), np.int32)
    distance = np.empty(len(points), np.float32)
    for first in range(0, len(points), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        near, far = _assigned(_tensor(points[rows], metric, means.device), means, metric)
        found[rows], distance[rows] = near.cpu().numpy(), far.cpu().numpy()
    return found, distance


def _tensor(rows: NDArray[Any], metric: Metric, device: torch.device) -> Tensor:
    found = torch.from_numpy(np.asarray(rows, np.float32)).to(device)
    return torch.nn.functional.normalize(found, dim=1) if metric == "cosine" else found


def _choose(n: int, count: int, generator: np.random.Generator, device: torch.device) -> Tensor:
    """`count` of n numbers, ascending."""
    return torch.from_numpy(np.sort(generator.choice(n, count, replace=False))).to(device)


def _sample(
    points: NDArray[Any], count: int, generator: np.random.Generator, metric: Metric, device: torch.device
) -> Tensor:
    if len(points) <= count:
        return _tensor(points[:], metric, device)
    rows = np.sort(generator.choice(len(points), count, replace=False))
    parts = [points[rows[first : first + ROWS_AT_ONCE]] for first in range(0, count, ROWS_AT_ONCE)]
    return _tensor(np.concatenate([np.asarray(part, np.float32) for part in parts]), metric, device)


def _seeded(points: Tensor, k: int, generator: np.random.Generator) -> Tensor:
    """k points, drawn in proportion to their squared distance to those drawn before, some at a time."""
    n = len(points)
    squares = points.square().sum(1)
    nearest = torch.full((n,), float("inf"), device=points.device)
    chosen = torch.tensor([int(generator.integers(n))], device=points.device)
    fresh = chosen
    while len(chosen) < k:
        part = points[fresh]
        distance = squares[:, None] - 2 * (points @ part.T) + part.square().sum(1)
        nearest = torch.minimum(nearest, distance.clamp_(min=0).amin(1))
        nearest[fresh] = 0.0
        # What rounding leaves of the distance between points that are alike is no distance.
        weight = torch.where(nearest > 1e-6 * squares.clamp(min=1e-30), nearest, 0.0).double().cumsum(0)
        total = float(weight[-1])
        if total <= 0:  # all points are like one that was chosen: any will do
            others = torch.ones(n, dtype=torch.bool, device=points.device)
            others[chosen] = False
            free = torch.nonzero(others).flatten()
            fresh = free[_choose(len(free), k - len(chosen), generator, points.device)]
        else:
            count = min(k - len(chosen), -(-k // SEED_PASSES))
            draws = torch.from_numpy(total * generator.random(count)).to(points.device)
            fresh = torch.unique(torch.searchsorted(weight, draws, right=True).clamp_(max=n - 1))
        chosen = torch.cat([chosen, fresh])
    return points[chosen]


def _assigned(points: Tensor, centroids: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """int64 [n], float32 [n], as `assign` has it."""
    rows = max(1, CELLS // len(centroids))
    half = None if metric == "cosine" else 0.5 * centroids.square().sum(1)
    near, score = [], []
    for part in points.split(rows):
        products = part @ centroids.T
        if half is not None:
            products -= half
        best = products.max(1)
        near.append(best.indices)
        if metric == "cosine":
            score.append((1 - best.values).clamp_(min=0))
        else:
            score.append((part.square().sum(1) - 2 * best.values).clamp_(min=0))
    return torch.cat(near), torch.cat(score)


def _means(points: Tensor, assignment: Tensor, distance: Tensor, k: int, metric: Metric) -> Tensor:
    """The mean of each cluster; of an empty one, one of the points that are farthest from theirs."""
    counts = torch.bincount(assignment, minlength=k)
    # Sorted and added up cluster by cluster: on a GPU, too, in the same order each time.
    order = torch.argsort(assignment, stable=True)
    sums = torch.segment_reduce(points[order], "sum", lengths=counts, axis=0)
    found = sums / counts.clamp(min=1)[:, None]
    empty = torch.nonzero(counts == 0).flatten()
    if len(empty):
        farthest = torch.argsort(distance, descending=True, stable=True)[: len(empty)]
        found[empty] = points[farthest]
    return torch.nn.functional.normalize(found, dim=1) if metric == "cosine" else found
