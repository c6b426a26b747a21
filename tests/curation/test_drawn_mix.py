"""What the report predicts of the mix, against what the loader's sampler draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from surgrec.configs.curate import BalanceOptions, ClusterOptions, Scheme
from surgrec.configs.data import DataConfig
from surgrec.loaders.clip_source import ClipSource
from surgrec.loaders.corpus_plan import CorpusPlan
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable

from surgrec.curation.balance import Labels, mix_measures, numbers_of, segment_weights
from surgrec.curation.cluster_stage import cluster_segments
from surgrec.curation.descriptor import DIMENSIONS, describe
from surgrec.curation.plan_file import write_plan
from surgrec.curation.report_mix import drawn_entropy, expected_repeats, level_mix, predicted_mixes

CLASSES = 8
COUNTS = np.geomspace(400, 2, CLASSES).round().astype(int)
"""Segments of each class: 1 : 200."""
DRAWS = 50_000
DEVIATIONS = 4.5
"""By chance, one of 150,000 measured entropies is further from what is predicted."""


def pictures(kind: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [2, 48, 64, 3]: stripes of the class's colours, width and direction, moved and lit at random."""
    down, along = np.mgrid[0:48, 0:64]
    angle, width = kind * np.pi / CLASSES, 3 + 2 * (kind % 4)
    wave = np.sin((down * np.cos(angle) + along * np.sin(angle) + rng.uniform(0, 40)) / width)
    colours = np.array([[kind % 2, kind // 2 % 2, kind // 4], [0.5, 1 - kind % 2, 0.3]]) * 150 + 50
    lit = rng.uniform(0.85, 1.15) * np.where(wave[..., None] > 0, colours[0], colours[1])
    noisy = lit + rng.normal(0, 6, (2, *lit.shape))
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.fixture
def mixture(make_index: Callable[[Any], PacketIndex]) -> tuple[PacketIndex, SegmentTable, np.ndarray]:
    """An index whose data sets are the classes, its segments, and their descriptors."""
    videos = [
        {"frames": 40, "domain": "laparoscopy", "dataset": f"class{kind}"}
        for kind, count in enumerate(COUNTS)
        for _ in range(count)
    ]
    n, rng = len(videos), np.random.default_rng(5)
    segments = SegmentTable(np.arange(n, dtype=np.int32), np.zeros(n, np.int64), np.full(n, 40, np.int64))
    vectors = np.zeros((n, DIMENSIONS), np.float16)
    for row, kind in enumerate(np.repeat(np.arange(CLASSES), COUNTS).tolist()):
        vectors[row] = describe(pictures(kind, rng))
    return make_index(videos), segments, vectors


def test_drawn_clips_have_the_mix_that_the_report_predicts(
    mixture: tuple[PacketIndex, SegmentTable, np.ndarray], tmp_path: Path
) -> None:
    """Descriptors, clusters, weights, plan, draws: as classes of a long tail pass through all of them."""
    index, segments, vectors = mixture
    kept = np.ones(len(segments), bool)
    domain = numbers_of(index.videos.domain)[segments.video]
    found = cluster_segments(
        vectors, kept, domain, ClusterOptions(levels=(64, 8), device="cpu"), 0, lambda done, of: None
    )
    clusters = [found[str(level)] for level in range(len(found))]
    labels = Labels(index.videos.domain, index.videos.dataset, index.videos.case)
    measured: dict[str, float] = {}
    for scheme in get_args(Scheme):
        weight = segment_weights(segments, kept, labels, clusters, BalanceOptions(scheme=scheme))
        path = tmp_path / f"{scheme}.h5"
        levels = {"domain": domain, **{f"cluster{k}": level for k, level in enumerate(clusters)}}
        write_plan(
            path,
            index.digest,
            segments,
            weight,
            np.zeros(len(kept), int),
            [""],
            np.full(len(kept), -1),
            levels,
            np.zeros((len(index), 4), int),
            {},
        )
        plan = CorpusPlan.open(path, index)
        source = ClipSource(index, DataConfig(plan=path, frames=4, stride=2, size=16), 11)
        rows, _ = source.sampler.draw_many(0, DRAWS)
        drawn = source.sampler.segments.video[rows]
        for mix in predicted_mixes(index, plan):
            if mix.name in ("case", "video"):
                continue  # too many for DRAWS: drawn_entropy says where it holds
            level = {"data set": numbers_of(index.videos.dataset), "domain": numbers_of(index.videos.domain)}
            nodes = level.get(mix.name)
            if nodes is None:
                nodes = plan.levels[plan.level_names.index(mix.name)]
            entropy = mix_measures(np.ones(DRAWS), nodes[drawn]).entropy
            expected = drawn_entropy(mix.drawn, DRAWS)
            assert abs(entropy - expected.mean) <= DEVIATIONS * expected.deviation + 1e-12, (scheme, mix.name)
            if mix.name == "data set":
                measured[scheme] = entropy
                natural = COUNTS / COUNTS.sum()
                assert mix.natural == pytest.approx(natural)
                assert mix.before.entropy == pytest.approx(-(natural * np.log(natural)).sum())
    assert measured["hierarchical"] >= 0.95 * np.log(CLASSES)
    natural = drawn_entropy(COUNTS / COUNTS.sum(), DRAWS)
    assert abs(measured["uniform-frames"] - natural.mean) <= DEVIATIONS * natural.deviation
    assert measured["uniform-frames"] < 0.7 * np.log(CLASSES)


def test_repeats_are_those_that_are_drawn(make_index: Callable[[Any], PacketIndex], tmp_path: Path) -> None:
    n = 300
    index = make_index([{"frames": 40}] * n)
    segments = SegmentTable(np.arange(n, dtype=np.int32), np.zeros(n, np.int64), np.full(n, 40, np.int64))
    weight = np.random.default_rng(2).pareto(1.0, n)
    weight[:5] = 0
    weight /= weight.sum()
    write_plan(
        tmp_path / "plan.h5",
        index.digest,
        segments,
        weight,
        weight == 0,
        ["", "black"],
        np.full(len(weight), -1),
        {},
        np.zeros((len(index), 4), int),
        {},
    )
    source = ClipSource(index, DataConfig(plan=tmp_path / "plan.h5", frames=4, stride=2, size=16), 1)
    samples = 2000
    predicted = expected_repeats(weight, samples)
    runs = 60
    counts = np.stack(
        [
            np.bincount(source.sampler.draw_many(run * samples, samples)[0], minlength=n - 5)
            for run in range(runs)
        ]
    )
    assert len(predicted.expected) == n - 5
    # Of each segment the mean count has a variance of at most expected / runs.
    deviation = np.sqrt(predicted.expected / runs)
    assert (np.abs(counts.mean(0) - predicted.expected) <= 5 * deviation + 1e-9).all()
    distinct = (counts > 0).sum(1)
    assert abs(distinct.mean() - predicted.distinct) <= 4 * distinct.std() / runs**0.5
    assert predicted.never == pytest.approx(1 - predicted.distinct / (n - 5))
    assert predicted.quantiles[3] == pytest.approx(np.median(samples * weight[5:]))


@pytest.mark.parametrize("shares", [[0.25] * 4, [0.7, 0.2, 0.06, 0.04], [1.0]])
def test_entropy_of_counted_draws(shares: list[float]) -> None:
    draws, times = 400, 4000
    counts = np.random.default_rng(0).multinomial(draws, shares, times)
    measured = np.array([mix_measures(row, np.arange(len(shares))).entropy for row in counts])
    expected = drawn_entropy(shares, draws)
    assert measured.mean() == pytest.approx(expected.mean, abs=4 * measured.std() / times**0.5 + 2e-5)
    assert measured.std() == pytest.approx(expected.deviation, rel=0.1)


def test_a_level_that_not_all_segments_have() -> None:
    mix = level_mix("cluster0", [4, -1, 7, 4], [1, 5, 2, 1], [0.25, 0.5, 0.25, 0.0])
    assert mix.labels == ("4", "7")
    assert mix.natural.tolist() == [0.5, 0.5]
    assert mix.drawn.tolist() == [0.5, 0.5]
    assert mix.maximum == pytest.approx(np.log(2))
