"""A tree for each domain, with levels that fit its size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from surgrec.configs.curate import ClusterOptions

from surgrec.curation.cluster_stage import cluster_key, cluster_segments, device_of, levels_for
from surgrec.curation.records import CurationError


@pytest.mark.parametrize(
    ("segments", "levels"),
    [
        (100_000, (8192, 1024, 128, 16)),
        (8192, (1024, 128, 16, 2)),
        (80, (10, 1)),
        (1, (1,)),
        (700, (88, 11, 1)),
    ],
)
def test_levels_fit_the_number_of_segments(segments: int, levels: tuple[int, ...]) -> None:
    assert levels_for(segments, (8192, 1024, 128, 16)) == levels


@given(st.integers(1, 10**6), st.sets(st.integers(1, 10**4), min_size=1, max_size=5))
def test_levels_fall_and_never_outnumber_the_segments(segments: int, wanted: set[int]) -> None:
    found = levels_for(segments, tuple(sorted(wanted, reverse=True)))
    assert all(after < before for before, after in zip((segments + 1, *found), found, strict=False))


def test_domains_have_trees_of_their_own() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((300, 8)).astype(np.float16)
    domain = np.repeat([0, 1, 2], [200, 90, 10]).astype(np.int32)
    kept = generator.random(300) > 0.1
    steps: list[tuple[int, int]] = []
    options = ClusterOptions(levels=(12, 3), device="cpu")
    found = cluster_segments(vectors, kept, domain, options, 4, lambda *at: steps.append(at))
    assert list(found) == ["0", "1"]
    for labels in found.values():
        assert (labels[~kept] == -1).all()
        for number in np.unique(labels[kept]).tolist():
            assert len(np.unique(domain[labels == number])) == 1
        used = np.unique(labels[kept])
        assert used.tolist() == list(range(len(used)))
    pairs = set(zip(found["0"][kept].tolist(), found["1"][kept].tolist(), strict=True))
    assert len(pairs) == len(np.unique(found["1"][kept]))
    assert steps[-1][0] == steps[-1][1] == len(steps)


def test_nothing_to_group() -> None:
    with pytest.raises(CurationError, match="no segment is kept"):
        cluster_segments(
            np.ones((2, 4), np.float16), np.zeros(2, bool), np.zeros(2, np.int32), ClusterOptions(), 0, print
        )


def test_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, kept, domain = np.ones((3, 4), np.float16), np.ones(3, bool), np.zeros(3, np.int32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(ClusterOptions()) == "cpu"
    with pytest.raises(ValueError, match="torch finds no GPU"):
        device_of(ClusterOptions(device="cuda"))
    plain = cluster_key(vectors, kept, domain, ClusterOptions(), 0)
    assert plain == cluster_key(vectors, kept, domain, ClusterOptions(device="cpu"), 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(ClusterOptions()) == "cuda"
    assert plain != cluster_key(vectors, kept, domain, ClusterOptions(), 0)
