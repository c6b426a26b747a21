"""The balanced sampler: shares of every level, draws that follow them, purity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.configs.data import BalanceConfig
from surgrec.loaders.sampler import ClipSampler, tree_probabilities
from surgrec.loaders.segments import SegmentTable

# Tree of four levels, as nested lists of masses: domains, data sets, videos, segments.
TREES = st.lists(
    st.lists(
        st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=3), min_size=1, max_size=3),
        min_size=1,
        max_size=3,
    ),
    min_size=1,
    max_size=3,
)
EXPONENT = st.one_of(st.just(0.0), st.just(1.0), st.floats(0.0, 1.0))


def flatten(tree: Any) -> tuple[list[list[int]], list[int], list[tuple[int, ...]]]:
    """Labels per level (restarting at 0 within each parent), masses, and the path of each leaf."""
    paths = [
        (d, s, v, k)
        for d, datasets in enumerate(tree)
        for s, videos in enumerate(datasets)
        for v, segments in enumerate(videos)
        for k in range(len(segments))
    ]
    masses = [tree[d][s][v][k] for d, s, v, k in paths]
    return [[path[level] for path in paths] for level in range(3)], masses, paths


def mass_of(node: Any) -> int:
    return node if isinstance(node, int) else sum(map(mass_of, node))


def by_walking(tree: Any, path: tuple[int, ...], exponents: list[float]) -> float:
    """Probability of a leaf from the definition, level by level."""
    probability, node = 1.0, tree
    for child, exponent in zip(path, exponents, strict=True):
        powers = [mass_of(c) ** exponent if mass_of(c) else 0.0 for c in node]
        if sum(powers) == 0:
            return 0.0
        probability *= powers[child] / sum(powers)
        node = node[child]
    return probability


@settings(max_examples=300, deadline=None)
@given(TREES, st.lists(EXPONENT, min_size=4, max_size=4))
def test_probabilities_follow_the_definition(tree: Any, exponents: list[float]) -> None:
    levels, masses, paths = flatten(tree)
    if not any(masses):
        with pytest.raises(ValueError, match="mass zero"):
            tree_probabilities(levels, masses, exponents)
        return
    probabilities = tree_probabilities(levels, masses, exponents)
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    expected = [by_walking(tree, path, exponents) for path in paths]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12, atol=1e-300)


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_natural_is_proportional_to_mass(tree: Any) -> None:
    levels, masses, _ = flatten(tree)
    if any(masses):
        probabilities = tree_probabilities(levels, masses, [1.0] * 4)
        np.testing.assert_allclose(probabilities, np.array(masses) / sum(masses), rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_uniform_gives_each_child_with_mass_the_same(tree: Any) -> None:
    levels, masses, paths = flatten(tree)
    if any(masses):
        probabilities = tree_probabilities(levels, masses, [0.0] * 4)
        live = [d for d in range(len(tree)) if mass_of(tree[d])]
        for d in live:
            share = sum(p for p, path in zip(probabilities, paths, strict=True) if path[0] == d)
            assert share == pytest.approx(1 / len(live), abs=1e-12)


def test_masses_of_any_size_are_told_apart() -> None:
    assert tree_probabilities([], [1e308, 1e308], [0.5]).tolist() == [0.5, 0.5]
    assert tree_probabilities([], [1e-300, 3e-300], [1.0]).tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("levels", "mass", "exponents", "message"),
    [
        ([], [], [1.0], "no segments"),
        ([], [0, 0], [1.0], "all 2 leaves have mass zero"),
        ([], [1, -1], [1.0], "mass of leaf 1 is -1"),
        ([], [1, math.nan], [1.0], "mass of leaf 1 is nan"),
        ([], [1, math.inf], [1.0], "mass of leaf 1 is inf"),
        ([], [1, 1], [1.5], r"exponent 1.5 is outside \[0, 1\]"),
        ([], [1, 1], [-0.1], "exponent -0.1 is outside"),
        ([], [1, 1], [math.nan], "exponent nan is outside"),
        ([[0, 0]], [1, 1], [1.0], "1 exponents for 1 levels"),
        ([[0]], [1, 1], [1.0, 1.0], "labels 1 leaves, there are 2"),
    ],
)
def test_refusals(levels: Any, mass: list[float], exponents: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree_probabilities(levels, mass, exponents)


def segments_of(lengths: list[list[int]]) -> SegmentTable:
    """One video a list, cut into segments of the given lengths."""
    video = np.repeat(np.arange(len(lengths), dtype=np.int32), [len(cut) for cut in lengths])
    end = np.concatenate([np.cumsum(cut) for cut in lengths]).astype(np.int64)
    return SegmentTable(video, end - np.concatenate(lengths), end)


DOMAINS = ["robotic", "cataract", "cataract", "cataract", ""]
DATASETS = ["rarp", "cadis", "cadis", "c101", ""]


def sampler(seed: int = 1, **balance: float) -> ClipSampler:
    lengths = [[250, 250, 130], [250] * 6, [40], [250, 300], [100]]
    return ClipSampler(segments_of(lengths), DOMAINS, DATASETS, BalanceConfig(**balance), seed)


PINNED_SEGMENTS = [12, 1, 12, 12, 11, 0]
PINNED_POSITIONS = [
    0.44895418036262913,
    0.9455565482492265,
    0.2494926985191971,
    0.06138950675793964,
    0.8446099396984202,
    0.3961580114891945,
]
PINNED_SUBSTITUTE = (9, 0.9334520865191827)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Standard deviations by which the chi-square statistic exceeds its mean."""
    expected = probabilities * counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    degrees = len(counts) - 1
    return (statistic - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize(
    "balance", [{}, {"domain": 1, "dataset": 1, "video": 1}, {"dataset": 0, "video": 0, "segment": 0}]
)
def test_draws_follow_the_probabilities(balance: dict[str, float]) -> None:
    made = sampler(**balance)
    segments, positions = made.draw_many(0, 400_000)
    counts = np.bincount(segments, minlength=len(made.segments))
    assert chi_square(counts, made.probabilities) < 5
    # Segment and place within it are independent, and the place is uniform.
    cells = np.bincount(segments * 10 + (positions * 10).astype(np.int64), minlength=10 * len(counts))
    assert chi_square(cells, np.repeat(made.probabilities / 10, 10)) < 5
    assert positions.min() >= 0
    assert positions.max() < 1


def test_substitutes_follow_the_probabilities() -> None:
    made = sampler()
    drawn = [made.substitute(sample, attempt) for sample in range(4000) for attempt in (1, 2, 3)]
    counts = np.bincount([segment for segment, _ in drawn], minlength=len(made.segments))
    assert chi_square(counts, made.probabilities) < 5
    assert len(set(drawn)) == len(drawn)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**62 - 50), st.integers(0, 49), st.integers(0, 2**31))
def test_a_draw_depends_on_seed_and_sample_only(first: int, offset: int, seed: int) -> None:
    segments, positions = sampler(seed).draw_many(first, 50)
    assert sampler(seed).draw(first + offset) == (segments[offset], positions[offset])
    assert sampler(seed).substitute(first, 1 + offset) == sampler(seed).substitute(first, 1 + offset)


def test_streams_differ_by_seed_sample_attempt_and_kind() -> None:
    made, other = sampler(1), sampler(2)
    draws = [made.draw(i) for i in range(50)] + [other.draw(i) for i in range(50)]
    draws += [made.substitute(i, attempt) for i in range(50) for attempt in range(1, 17)]
    assert len({position for _, position in draws}) == len(draws)


def test_the_stream_is_pinned() -> None:
    """Resuming a run repeats its draws, so that they may never change."""
    segments, positions = sampler(7).draw_many(0, 6)
    assert segments.tolist() == PINNED_SEGMENTS
    assert positions.tolist() == pytest.approx(PINNED_POSITIONS, abs=1e-15)
    assert sampler(7).substitute(3, 2) == PINNED_SUBSTITUTE


def test_expected_shares_by_name() -> None:
    made = sampler(domain=0.0, dataset=1.0, video=0.0)
    mix = made.expected()
    assert mix.domains == pytest.approx({"cataract": 1 / 3, "robotic": 1 / 3, "unlabelled": 1 / 3})
    frames = 1500 + 40 + 550
    assert mix.datasets == pytest.approx(
        {
            "cataract/c101": 550 / frames / 3,
            "cataract/cadis": 1540 / frames / 3,
            "robotic/rarp": 1 / 3,
            "unlabelled/unlabelled": 1 / 3,
        }
    )
    videos = made.expected_videos()
    assert videos.tolist() == pytest.approx(
        [1 / 3, 770 / frames / 3, 770 / frames / 3, 550 / frames / 3, 1 / 3]
    )


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (BalanceConfig(1.0, 1.0, 1.0, 1.0), [0.01, 0.09, 0.9]),
        (BalanceConfig(0.0, 1.0, 1.0, 1.0), [0.05, 0.45, 0.5]),
        (BalanceConfig(), [0.125, 0.375, 0.5]),
        (BalanceConfig(0.0, 0.0, 0.0, 0.0), [0.25, 0.25, 0.5]),
    ],
)
def test_the_example_of_the_documentation(balance: BalanceConfig, expected: list[float]) -> None:
    """docs/sampling.md."""
    table = segments_of([[10_000], [90_000], [900_000]])
    made = ClipSampler(table, ["cataract", "cataract", "robotic"], ["A", "B", "C"], balance, 0)
    assert made.probabilities.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_same_data_set_name_in_two_domains_is_two_data_sets() -> None:
    made = ClipSampler(segments_of([[10], [30]]), ["a", "b"], ["web", "web"], BalanceConfig(domain=1.0), 0)
    assert made.expected().datasets == pytest.approx({"a/web": 0.25, "b/web": 0.75})


def test_a_data_set_without_segments_has_share_zero() -> None:
    made = ClipSampler(segments_of([[10]]), ["a", "b"], ["x", "y"], BalanceConfig(), 0)
    assert made.expected().domains == {"a": 1.0, "b": 0.0}
    assert made.expected_videos().tolist() == [1.0, 0.0]


def test_counts_of_draws_by_name() -> None:
    made = sampler()
    counts = made.count_datasets(10, 100_000)
    assert counts.sum() == 100_000
    split = made.count_datasets(10, 70_001) + made.count_datasets(70_011, 29_999)
    assert counts.tolist() == split.tolist()
    mix = made.by_name(counts)
    assert sum(mix.domains.values()) == sum(mix.datasets.values()) == 100_000
    for name, share in made.expected().datasets.items():
        assert mix.datasets[name] / 100_000 == pytest.approx(share, abs=0.01)


def test_one_video_of_one_segment() -> None:
    made = ClipSampler(segments_of([[61]]), ["laparoscopy"], ["one"], BalanceConfig(), 3)
    segments, positions = made.draw_many(0, 1000)
    assert not segments.any()
    assert len(np.unique(positions)) == 1000


def test_refused_arguments() -> None:
    made = sampler()
    with pytest.raises(ValueError, match="first substitute is attempt 1"):
        made.substitute(0, 0)
    with pytest.raises(ValueError, match="outside"):
        made.draw(-1)
    with pytest.raises(ValueError, match="outside"):
        made.substitute(-1, 1)
    with pytest.raises(ValueError, match="segments refer to video 1, labels end at video 0"):
        ClipSampler(segments_of([[1], [1]]), ["a"], ["b"], BalanceConfig(), 0)
    with pytest.raises(ValueError, match="2 domains and 1 data sets"):
        ClipSampler(segments_of([[1]]), ["a", "b"], ["b"], BalanceConfig(), 0)
    empty = SegmentTable(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64))
    with pytest.raises(ValueError, match="no segments"):
        ClipSampler(empty, ["a"], ["b"], BalanceConfig(), 0)
