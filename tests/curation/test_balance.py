"""Weights of segments: shares down the tree, priors, floors and caps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from surgrec.configs.curate import BalanceOptions
from surgrec.configs.data import BalanceConfig
from surgrec.loaders.sampler import ClipSampler
from surgrec.loaders.segments import SegmentTable

from surgrec.curation.balance import Labels, clipped_shares, mix_measures, outer_levels, segment_weights

# Three videos of two domains: 4, 2 and 2 segments of 10 frames.
SEGMENTS = SegmentTable(
    np.array([0, 0, 0, 0, 1, 1, 2, 2], np.int32),
    np.array([0, 10, 20, 30, 0, 10, 0, 10], np.int64),
    np.array([10, 20, 30, 40, 10, 20, 10, 20], np.int64),
)
LABELS = Labels(["cataract", "cataract", "robotic"], ["a", "b", "c"], ["one", "one", ""])
ALL = np.ones(8, bool)
FLAT = BalanceOptions(scheme="uniform-frames")


def by_video(weights: np.ndarray) -> list[float]:
    return np.bincount(SEGMENTS.video, weights=weights).round(9).tolist()


def test_schemes() -> None:
    assert by_video(segment_weights(SEGMENTS, ALL, LABELS, [], FLAT)) == [0.5, 0.25, 0.25]
    videos = segment_weights(SEGMENTS, ALL, LABELS, [], replace(FLAT, scheme="uniform-videos"))
    assert by_video(videos) == pytest.approx([1 / 3] * 3)
    shares = BalanceConfig(domain=0.0, dataset=1.0, video=1.0, segment=1.0)
    found = segment_weights(SEGMENTS, ALL, LABELS, [], BalanceOptions(scheme="dataset", shares=shares))
    assert by_video(found) == pytest.approx([1 / 3, 1 / 6, 0.5])


def test_clusters_have_equal_shares_level_by_level() -> None:
    coarse, fine = np.array([0, 0, 0, 0, 0, 1, 2, 2]), np.array([0, 0, 0, 1, 1, 2, 3, 4])
    options = BalanceOptions(shares=BalanceConfig(domain=1.0))
    found = segment_weights(SEGMENTS, ALL, LABELS, [coarse, fine], options)
    # Domain by frames: 3/4 and 1/4. Of cataract, coarse clusters 0 and 1 have half each, of 0 the fine ones.
    assert found.tolist() == pytest.approx([1 / 16, 1 / 16, 1 / 16, 3 / 32, 3 / 32, 3 / 8, 1 / 8, 1 / 8])


def test_labels_above_clusters() -> None:
    clusters = [np.array([0, 0, 0, 1, 2, 2, 3, 3])]
    shares = BalanceConfig(domain=0.0, dataset=1.0, video=0.0)
    options = BalanceOptions(shares=shares)
    found = segment_weights(SEGMENTS, ALL, LABELS, clusters, options, ("domain", "dataset"))
    # Domains half each; of cataract data set a has 2/3 by its frames, in which two clusters are alike.
    assert by_video(found) == pytest.approx([1 / 3, 1 / 6, 1 / 2])
    assert found[:4].tolist() == pytest.approx([1 / 18] * 3 + [1 / 6])
    found = segment_weights(SEGMENTS, ALL, LABELS, clusters, options, ("case",))
    assert by_video(found)[2] == pytest.approx(1 / 2)  # the video without a case is one
    found = segment_weights(SEGMENTS, ALL, LABELS, clusters, options, ())
    assert found[[3, 6]].tolist() == pytest.approx([1 / 4, 1 / 8])  # four clusters of the whole corpus
    with pytest.raises(ValueError, match="names a label twice: case, case"):
        segment_weights(SEGMENTS, ALL, LABELS, clusters, options, ("case", "case"))


def test_groups_lie_within_those_above() -> None:
    labels = Labels(["a", "a", "b", "b"], ["x", "y", "x", "x"], ["1", "", "1", ""])
    found = outer_levels(labels, ("domain", "dataset", "case"))
    assert list(found) == ["domain", "dataset", "case"]
    assert [level.tolist() for level in found.values()] == [[0, 0, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]]
    assert outer_levels(labels, ("dataset",))["dataset"].tolist() == [0, 1, 0, 0]
    assert outer_levels(labels, ()) == {}


def test_what_is_not_kept_counts_nowhere() -> None:
    kept = np.array([1, 0, 1, 0, 1, 1, 0, 0], bool)
    found = segment_weights(SEGMENTS, kept, LABELS, [], FLAT)
    assert found.tolist() == [0.25, 0, 0.25, 0, 0.25, 0.25, 0, 0]
    junk = np.where(kept, 0, -5)
    options = BalanceOptions()
    assert segment_weights(SEGMENTS, kept, LABELS, [junk], options).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="no segment is kept"):
        segment_weights(SEGMENTS, ~ALL, LABELS, [], FLAT)


def test_priors_of_domains() -> None:
    found = segment_weights(SEGMENTS, ALL, LABELS, [], replace(FLAT, priors={"robotic": 0.7}))
    assert by_video(found) == pytest.approx([0.2, 0.1, 0.7])
    nothing = segment_weights(SEGMENTS, ALL, LABELS, [], replace(FLAT, priors={"robotic": 0.0}))
    assert by_video(nothing) == pytest.approx([2 / 3, 1 / 3, 0])


@pytest.mark.parametrize(
    ("priors", "text"),
    [
        ({"dental": 0.5}, "priors for dental; segments to be drawn are of cataract, robotic"),
        ({"robotic": 1.5}, "between 0 and 1"),
        ({"robotic": 0.7, "cataract": 0.7}, "add up to 1.4"),
        ({"robotic": 0.2, "cataract": 0.2}, "exactly 1"),
    ],
)
def test_priors_that_make_no_sense(priors: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        segment_weights(SEGMENTS, ALL, LABELS, [], replace(FLAT, priors=priors))


def test_caps_and_floors() -> None:
    capped = segment_weights(SEGMENTS, ALL, LABELS, [], replace(FLAT, video_cap=0.4))
    # Videos 0 and 1 are one case, which keeps the 0.75 that it has by its frames.
    assert by_video(capped) == pytest.approx([0.4, 0.35, 0.25])
    floored = segment_weights(SEGMENTS, ALL, LABELS, [], replace(FLAT, video_floor=0.3))
    assert by_video(floored) == pytest.approx([0.4, 0.3, 0.3])
    cases = segment_weights(SEGMENTS, ALL, LABELS, [], replace(FLAT, case_cap=0.6))
    assert by_video(cases) == pytest.approx([0.4, 0.2, 0.4])
    assert np.allclose(segment_weights(SEGMENTS, ALL, LABELS, [], replace(FLAT, video_cap=0.5)).sum(), 1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (replace(FLAT, video_cap=0.3), "raise the cap"),
        (replace(FLAT, video_floor=0.4), "lower the floor"),
        (replace(FLAT, video_floor=0.3, video_cap=0.2), "above their cap"),
    ],
)
def test_bounds_that_cannot_be_met(options: BalanceOptions, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        segment_weights(SEGMENTS, ALL, LABELS, [], options)


def test_hierarchical_needs_clusters() -> None:
    with pytest.raises(ValueError, match="run the stage cluster first"):
        segment_weights(SEGMENTS, ALL, LABELS, [], BalanceOptions())


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_clipped_shares_add_up_within_their_bounds(values: list[float], floor: float, cap: float) -> None:
    shares = np.array(values) / sum(values)
    n = len(shares)
    least, most = np.full(n, floor / n), np.full(n, 1 / n + cap * (1 - 1 / n))
    found = clipped_shares(shares, least, most, 1.0, "videos")
    assert found.sum() == pytest.approx(1)
    assert (found >= least - 1e-12).all()
    assert (found <= most + 1e-12).all()
    free = (found > least + 1e-9) & (found < most - 1e-9)
    if free.sum() > 1:  # those within their bounds keep their proportions
        ratio = found[free] / shares[free]
        assert np.allclose(ratio, ratio[0])


def test_a_long_tail_is_drawn_evenly() -> None:
    """Eight classes at 1 : 200, each a cluster: drawn clips have the entropy that the weights say."""
    counts = np.geomspace(200, 1, 8).astype(int) * 5
    label = np.repeat(np.arange(8), counts)
    n = len(label)
    segments = SegmentTable(np.arange(n, dtype=np.int32), np.zeros(n, np.int64), np.full(n, 100, np.int64))
    labels = Labels(["laparoscopy"] * n, [""] * n, [""] * n)
    drawn = {}
    for scheme, clusters in (("hierarchical", [label]), ("uniform-frames", [])):
        options = BalanceOptions(scheme=scheme)  # type: ignore[arg-type] # both are schemes
        weights = segment_weights(segments, np.ones(n, bool), labels, clusters, options)
        sampler = ClipSampler(segments, labels.domain, labels.dataset, BalanceConfig(), 3, weights)
        found, _ = sampler.draw_many(0, 200_000)
        share = np.bincount(label[found], minlength=8) / 200_000
        assert np.abs(share - np.bincount(label, weights=weights)).max() < 0.005
        drawn[scheme] = mix_measures(share, np.arange(8)).entropy
        assert drawn[scheme] == pytest.approx(mix_measures(weights, label).entropy, abs=0.01)
    assert drawn["hierarchical"] >= 0.95 * np.log(8)
    natural = counts / counts.sum()
    assert drawn["uniform-frames"] == pytest.approx(-(natural * np.log(natural)).sum(), abs=0.01)


def test_measures_of_a_mix() -> None:
    found = mix_measures([0.5, 0.25, 0.25, 0.0], [7, 3, 3, 9])
    assert (found.most, found.effective) == pytest.approx((0.5, 2.0))
    assert found.entropy == pytest.approx(np.log(2))
