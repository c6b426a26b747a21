"""k-means and its hierarchy on a GPU: the same tree twice, and as good as on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from surgrec.curation.hierarchy import HierarchyOptions, hierarchical_kmeans
from surgrec.curation.kmeans import Metric, assign, kmeans

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def points() -> NDArray[np.float16]:
    """float16 [20000, 32]: 61 groups of very different sizes."""
    random = np.random.default_rng(0)
    label = np.minimum(random.geometric(0.05, 20_000), 60)
    return (random.normal(size=(61, 32))[label] + 0.4 * random.normal(size=(20_000, 32))).astype(np.float16)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_clusters_are_the_same_twice_and_as_good_as_on_the_cpu(metric: Metric) -> None:
    first, second = (kmeans(points(), 200, 0, "test", metric, device="cuda") for _ in range(2))
    assert (first.centroids == second.centroids).all()
    assert (first.assignment == second.assignment).all()
    cpu = kmeans(points(), 200, 0, "test", metric)
    assert first.distance.mean() == pytest.approx(cpu.distance.mean(), rel=0.02)
    there, here = (assign(points(), cpu.centroids, metric, device) for device in ("cuda", "cpu"))
    assert (there[0] == here[0]).mean() > 0.999
    assert there[1] == pytest.approx(here[1], abs=1e-3)


def test_the_tree_is_the_same_twice_and_no_cluster_is_empty() -> None:
    options = HierarchyOptions((256, 32, 4))
    first, second = (hierarchical_kmeans(points(), options, device="cuda") for _ in range(2))
    for level, k in enumerate(options.levels):
        labels = first.assignment(level)
        assert (labels == second.assignment(level)).all()
        assert (np.bincount(labels, minlength=k) > 0).all()


def test_points_that_are_all_alike() -> None:
    found = kmeans(np.ones((10, 3), np.float32), 4, 0, "test", device="cuda")
    assert sorted(np.bincount(found.assignment).tolist()) == [1, 1, 1, 7]
