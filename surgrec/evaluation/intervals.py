"""Intervals by the bootstrap over groups, for one classifier and for the difference of two.

Rows of one patient or operation are alike, so that groups are drawn, not rows: G groups with replacement,
many times (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13). The interval
holds the middle 95 % of what comes out. With few groups it is too narrow: docs/probes.md says by how much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from surgrec.evaluation.metrics import (
    TOP,
    Answers,
    Floats,
    auroc,
    class_figures,
    top_k,
    video_figures,
)
from surgrec.evaluation.results import Interval
from surgrec.kernels.counter_rng import stream_key

RESAMPLES: Final = 1000
LEVEL: Final = 0.95
HELD: Final = 2**20
"""Numbers of resamples that are held at once, so that memory does not grow with the groups."""


@dataclass(frozen=True)
class Evaluation:
    """figures: by name. recall, class_auroc: by class, None for a class that the test set lacks (or, for
    AUROC, that is its only one)."""

    figures: dict[str, Interval]
    recall: tuple[Interval | None, ...]
    class_auroc: tuple[float | None, ...]
    rows: int
    groups: int


def draw_groups(groups: int, seed: int, resamples: int = RESAMPLES, test_set: str = "") -> Floats:
    """float64 [resamples, groups]: how often each group is in each resample. The same for all models and
    figures of a test set, so that two of them can be compared in pairs.

    test_set: its digest, where resamples of several sets are put together: each has a stream of its own.
    """
    return np.concatenate(list(_draws(groups, seed, resamples, test_set)))


def _draws(groups: int, seed: int, resamples: int, test_set: str = "") -> Iterator[Floats]:
    """The resamples, in blocks that hold at most HELD numbers, or one resample."""
    name = f"evaluation/bootstrap/{test_set}" if test_set else "evaluation/bootstrap"
    generator = np.random.Generator(np.random.Philox(stream_key(seed, name)))
    shares, block = np.full(groups, 1 / groups), max(1, HELD // groups)
    for first in range(0, resamples, block):
        drawn = generator.multinomial(groups, shares, size=min(block, resamples - first))
        yield drawn.astype(np.float64)


def resampled_figures(
    answers: Answers, seed: int, times: Floats | None, resamples: int, ranked: bool = True
) -> dict[str, NDArray[Any]]:
    """As figures_of, for the test set itself and then for its resamples: [1 + resamples, ...] each."""
    groups = answers.group_count
    found = [figures_of(answers, np.ones((1, groups)), times, ranked)]
    found += [figures_of(answers, drawn, times, ranked) for drawn in _draws(groups, seed, resamples)]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def figures_of(
    answers: Answers, weights: Floats, times: Floats | None = None, ranked: bool = True
) -> dict[str, NDArray[Any]]:
    """All figures for R weightings of the groups: [R] each, but `recall` and `class_auroc`, [R, C].

    weights: float64 [R, G]. times: float64 [n] that order the rows of a video, where they are known. ranked:
    whether the scores are a model's. Where they only say which class it predicts, figures of their order
    (top-5, AUROC) are left out.
    """
    found: dict[str, NDArray[Any]] = dict(class_figures(answers, weights))
    if ranked:
        if answers.scores.shape[1] > TOP:
            found[f"top{TOP}"] = top_k(answers, weights)
        found["class_auroc"] = auroc(answers, weights)
        found["auroc"] = _mean_of_known(found["class_auroc"])
    for name, values in video_figures(answers, times).items():
        found[name] = (weights @ values) / weights.sum(1)
    return found


def _mean_of_known(values: Floats) -> Floats:
    """[R]: of [R, C] the mean of those that are not NaN; NaN where there are none."""
    known = np.isfinite(values)
    counts = known.sum(1)
    sums = np.where(known, values, 0.0).sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def interval(values: Floats) -> tuple[float, float] | None:
    """The middle 95 % of the resamples that have a value; None where none has."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def evaluate(
    answers: Answers,
    seed: int = 0,
    times: Floats | None = None,
    resamples: int = RESAMPLES,
    ranked: bool = True,
) -> Evaluation:
    """All figures with intervals. A figure that has no value (AUROC of a test set of one class) is left
    out. ranked: as in figures_of."""
    groups = answers.group_count
    found = resampled_figures(answers, seed, times, resamples if groups > 1 else 0, ranked)

    def figure(name: str, column: int | None = None) -> Interval | None:
        at = (slice(None),) if column is None else (slice(None), column)
        value = float(found[name][at][0])
        if not np.isfinite(value):
            return None
        bounds = interval(found[name][at][1:])
        return Interval(value, *(bounds or (None, None)))

    scalars = {name: figure(name) for name in found if found[name].ndim == 1}
    classes = range(answers.scores.shape[1])
    area = found["class_auroc"][0] if ranked else np.full(len(classes), np.nan)
    return Evaluation(
        {name: known for name, known in scalars.items() if known is not None},
        tuple(figure("recall", c) for c in classes),
        tuple(float(area[c]) if np.isfinite(area[c]) else None for c in classes),
        len(answers.labels),
        groups,
    )


@dataclass(frozen=True)
class Difference:
    """Of a figure between two models, first less second. p: two-sided, twice the smaller share of resamples
    on either side of no difference, at least 1 / resamples: the level at which the interval begins to hold
    no difference (Efron and Tibshirani 1993, section 15.4)."""

    value: float
    low: float
    high: float
    p: float

    def plain(self) -> dict[str, float]:
        """As a document has it."""
        return {"value": self.value, "low": self.low, "high": self.high, "p": self.p}


def paired_differences(
    one: Answers, two: Answers, seed: int = 0, times: Floats | None = None, resamples: int = RESAMPLES
) -> dict[str, Difference]:
    """The difference of every figure of two models on the same rows, from the same resamples of groups.

    Raises ValueError where the rows are not the same, or there is one group only.
    """
    drawn = paired_resamples(one, two, draw_groups(one.group_count, seed, resamples), times)
    found = {name: difference_of(values) for name, values in drawn.items()}
    return {name: difference for name, difference in found.items() if difference is not None}


def paired_resamples(
    one: Answers, two: Answers, weights: Floats, times: Floats | None = None, ranked: bool = True
) -> dict[str, Floats]:
    """float64 [1 + R] for every figure: the difference on the rows as they are, and on R resamples.

    weights: float64 [R, G]. ranked: as in figures_of. Raises ValueError as paired_differences does.
    """
    same = np.array_equal(one.labels, two.labels) and np.array_equal(one.groups, two.groups)
    if not same or one.scores.shape != two.scores.shape:
        raise ValueError("two models are compared on the same test rows, in the same order; these differ")
    if one.group_count < 2:
        raise ValueError("the test set has one group: the bootstrap over groups has nothing to draw from")
    weights = np.vstack([np.ones((1, one.group_count)), weights])
    first, second = (figures_of(answers, weights, times, ranked) for answers in (one, two))
    return {name: values - second[name] for name, values in first.items() if values.ndim == 1}


def difference_of(values: Floats) -> Difference | None:
    """Of [1 + R] differences as paired_resamples gives them; None for a figure that has no value here, or on
    no resample."""
    drawn = values[1:][np.isfinite(values[1:])]
    bounds = interval(drawn)
    if not np.isfinite(values[0]) or bounds is None:
        return None
    side = min((drawn <= 0).mean(), (drawn >= 0).mean())
    p = float(min(1.0, max(2 * side, 1 / len(drawn))))
    return Difference(float(values[0]), *bounds, p)
