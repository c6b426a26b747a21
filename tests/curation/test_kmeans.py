"""k-means against its formulas, and the tree over its clusters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.loaders.sampler import tree_probabilities

from surgrec.curation import kmeans as module
from surgrec.curation.balance import mix_measures
from surgrec.curation.hierarchy import HierarchyOptions, hierarchical_kmeans, nearest_rows
from surgrec.curation.kmeans import KMeans, kmeans


def blobs(counts: list[int], dimensions: int = 16, spread: float = 0.05, seed: int = 0) -> tuple:
    """float32 [n, d] around len(counts) random directions, and which: int [n]."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((len(counts), dimensions))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    label = np.repeat(np.arange(len(counts)), counts)
    points = centres[label] + spread * generator.standard_normal((len(label), dimensions))
    return points.astype(np.float32), label


def plain_distances(points: np.ndarray, centroids: np.ndarray, metric: str) -> np.ndarray:
    points = points.astype(np.float64)
    if metric == "cosine":
        return 1 - points / np.linalg.norm(points, axis=1, keepdims=True) @ centroids.T.astype(np.float64)
    return ((points[:, None] - centroids[None].astype(np.float64)) ** 2).sum(-1)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_blobs_are_found(metric: module.Metric) -> None:
    points, label = blobs([300, 40, 90, 200, 20])
    found = kmeans(points, 5, 0, "test", metric)
    pairs = set(zip(found.assignment.tolist(), label.tolist(), strict=True))
    assert len(pairs) == 5


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_rounds_are_lloyds(metric: module.Metric) -> None:
    """One round in torch is one in NumPy, from the same centroids."""
    points, _ = blobs([50, 60, 70], spread=0.6)
    start = torch.from_numpy(points[[3, 77, 120]])
    own = torch.from_numpy(points)
    if metric == "cosine":
        start, own = (torch.nn.functional.normalize(x, dim=1) for x in (start, own))
    near, distance = module._assigned(own, start, metric)
    expected = plain_distances(points, start.numpy(), metric)
    assert near.tolist() == expected.argmin(1).tolist()
    assert np.allclose(distance.numpy(), expected.min(1), atol=1e-5)
    means = module._means(own, near, distance, 3, metric).numpy()
    for number in range(3):
        mean = own.numpy()[near.numpy() == number].mean(0)
        wanted = mean / np.linalg.norm(mean) if metric == "cosine" else mean
        assert np.allclose(means[number], wanted, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_always_holds(data: st.DataObject) -> None:
    n, d = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 5))
    generator = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    points = generator.integers(-2, 3, (n, d)).astype(np.float32)  # with repeats
    metric: module.Metric = data.draw(st.sampled_from(["cosine", "l2"]))
    if metric == "cosine":
        points[~points.any(1)] = 1.0
    k = data.draw(st.integers(1, n))
    found = kmeans(points, k, 1, "test", metric, rounds=5)
    assert np.bincount(found.assignment, minlength=k).min() >= 1
    assert found.centroids.shape == (k, d)
    distances = plain_distances(points, found.centroids, metric)
    assert np.allclose(distances[np.arange(n), found.assignment], found.distance, atol=1e-4)
    # Of points that are alike, one may have been given to a cluster that would be empty.
    assert (found.distance <= distances.min(1) + 1e-4).all()


def test_the_same_seed_gives_the_same_clusters_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    points, _ = blobs([200, 300, 100], spread=0.4)
    first = kmeans(points, 12, 5, "test")
    again = kmeans(points, 12, 5, "test")
    assert (first.assignment == again.assignment).all()
    assert (first.centroids == again.centroids).all()
    assert (kmeans(points, 12, 6, "test").assignment != first.assignment).any()
    monkeypatch.setattr(module, "CELLS", 100)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 37)
    pieces = kmeans(points, 12, 5, "test")
    assert (pieces.assignment == first.assignment).mean() > 0.99


def test_half_precision_in_a_file(tmp_path: Path) -> None:
    points, label = blobs([100, 50])
    np.save(tmp_path / "points.npy", points.astype(np.float16))
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    found = kmeans(mapped, 2, 0, "test")
    assert len(set(zip(found.assignment.tolist(), label.tolist(), strict=True))) == 2


def test_samples_of_many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIT_POINTS", 20)
    monkeypatch.setattr(module, "SEED_POINTS", 10)
    points, label = blobs([500, 400, 300])
    found = kmeans(points, 3, 0, "test")
    assert len(set(zip(found.assignment.tolist(), label.tolist(), strict=True))) == 3


def test_points_that_are_all_alike() -> None:
    found = kmeans(np.ones((10, 3), np.float32), 4, 0, "test")
    assert sorted(np.bincount(found.assignment).tolist()) == [1, 1, 1, 7]
    assert found.distance.max() < 1e-6


@pytest.mark.parametrize(
    ("points", "k", "text"),
    [
        (np.ones((0, 3)), 1, "n above 0"),
        (np.ones(3), 1, "n above 0"),
        (np.ones((4, 3)), 5, "between 1 and 4"),
        (np.ones((4, 3)), 0, "between 1 and 4"),
        (np.array([[1.0, 0], [np.nan, 1]]), 1, "point 1 has a value that is not finite"),
        (np.array([[1.0, 0], [np.inf, 1]]), 1, "point 1 has a value that is not finite"),
        (np.array([[1.0, 0], [0, 0]]), 1, "point 1 is zero"),
    ],
)
def test_what_cannot_be_grouped(points: np.ndarray, k: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        kmeans(points, k, 0, "test")


def test_the_nearest_of_each_cluster() -> None:
    found = KMeans(
        np.zeros((2, 1), np.float32),
        np.array([0, 1, 0, 0, 1], np.int32),
        np.array([3.0, 5.0, 1.0, 2.0, 4.0], np.float32),
        1,
    )
    assert nearest_rows(found, 1).tolist() == [2, 4]
    assert nearest_rows(found, 2).tolist() == [1, 2, 3, 4]


def test_the_tree_is_a_tree() -> None:
    points, _ = blobs([80, 70, 60, 50, 40, 30, 20, 10], spread=0.3)
    options = HierarchyOptions(levels=(40, 12, 3))
    tree = hierarchical_kmeans(points, options)
    assert [len(level) for level in tree.centroids] == [40, 12, 3]
    assert [len(level) for level in tree.parents] == [len(points), 40, 12]
    for level, k in enumerate((40, 12, 3)):
        labels = tree.assignment(level)
        assert len(np.unique(labels)) == k
        if level:  # a cluster lies within one of the next level
            below = tree.assignment(level - 1)
            assert len(set(zip(below.tolist(), labels.tolist(), strict=True))) == (40, 12)[level - 1]
    again = hierarchical_kmeans(points, options)
    assert (again.assignment(0) == tree.assignment(0)).all()
    assert (hierarchical_kmeans(points, replace(options, seed=1)).assignment(0) != tree.assignment(0)).any()


def test_a_long_tail_comes_out_flatter_than_from_one_level() -> None:
    """Sixteen classes at 1 : 200: drawn down the tree, rare ones have more than flat clusters give them."""
    counts = np.geomspace(1000, 5, 16).astype(int).tolist()
    points, label = blobs(counts, spread=0.1)
    tree = hierarchical_kmeans(points, HierarchyOptions(levels=(160, 16), resamples=3))
    flat = kmeans(points, 160, 0, "flat")
    mass = np.ones(len(points))
    levels = [tree.assignment(1), tree.assignment(0)]
    by_tree = mix_measures(tree_probabilities(levels, mass, [0, 0, 1.0]), label).entropy
    by_flat = mix_measures(tree_probabilities([flat.assignment], mass, [0, 1.0]), label).entropy
    natural = mix_measures(mass, label).entropy
    assert natural < by_flat < by_tree
    assert by_tree > 0.9 * np.log(16)


@pytest.mark.parametrize("levels", [(), (10, 10), (5, 8), (100, 3), (4, 0)])
def test_levels_that_do_not_fall(levels: tuple[int, ...]) -> None:
    points, _ = blobs([20, 20])
    with pytest.raises(ValueError, match=r"falling numbers|clusters of"):
        hierarchical_kmeans(points, HierarchyOptions(levels=levels))
