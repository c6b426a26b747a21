"""Figures of a classifier on a test set, for many weightings of its rows at once.

Every figure is a function of the rows' weights, so that a bootstrap (intervals.py) evaluates all of its
resamples in a few matrix products: counts of (label, prediction) pairs are summed by group once, and a
resample is a weighted sum of groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

TOP: Final = 5

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """What a classifier says of n test rows, and what is true.

    labels: int64 [n] in [0, C). scores: float [n, C], higher is likelier. groups: int64 [n], numbers of what
    belongs together, from 0 without gaps. classes: how many of the C are classes of the set, all of them for
    None; those behind stand for no answer, which is wrong, and has no F1 of its own.
    """

    labels: Ints
    scores: Floats
    groups: Ints
    classes: int | None = None

    def __post_init__(self) -> None:
        n, count = self.scores.shape
        if not n == len(self.labels) == len(self.groups) or n == 0:
            raise ValueError(
                f"{n} rows of scores, {len(self.labels)} labels, {len(self.groups)} groups: they must be as"
                " many,"
                " and at least one"
            )
        if self.labels.min() < 0 or self.labels.max() >= count:
            raise ValueError(
                f"labels {self.labels.min()} to {self.labels.max()} for scores of {count} classes, numbered"
                " from 0"
            )
        if not np.isfinite(self.scores).all():
            raise ValueError("scores that are not finite")
        if len(np.unique(self.groups)) != self.groups.max() + 1 or self.groups.min() != 0:
            raise ValueError("groups are not numbered from 0 without gaps")

    @property
    def predicted(self) -> Ints:
        """int64 [n]: the class of the highest score, the first of equal ones."""
        return self.scores.argmax(1)

    @property
    def group_count(self) -> int:
        """G."""
        return int(self.groups.max()) + 1


def confusion(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """int64 [C, C]: rows by what is true, columns by what was said."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_figures(answers: Answers, weights: Floats) -> dict[str, Floats]:
    """Figures from the confusion matrix, for R weightings of the groups.

    weights: float [R, G], how often each group counts. Returns [R] each of

        accuracy           share of the rows whose prediction is right
        balanced_accuracy  mean recall of the classes that occur
        macro_f1           mean F1 of the classes that occur or are predicted; no answer is none of them

    and `recall` [R, C], NaN for a class that does not occur.
    """
    count = answers.scores.shape[1]
    predicted, labels = answers.predicted, answers.labels
    by_label = weights @ _per_group(answers, labels, count)
    by_prediction = weights @ _per_group(answers, predicted, count)
    right = predicted == labels
    hits = weights @ _per_group(answers, labels, count, right)
    total = by_label.sum(1)
    with np.errstate(invalid="ignore"):
        recall = np.where(by_label > 0, hits / by_label, np.nan)
        f1 = np.where(by_label + by_prediction > 0, 2 * hits / (by_label + by_prediction), np.nan)
    return {
        "accuracy": hits.sum(1) / total,
        "balanced_accuracy": np.nanmean(recall, 1),
        "macro_f1": np.nanmean(f1[:, : answers.classes], 1),
        "recall": recall,
    }


def top_k(answers: Answers, weights: Floats, k: int = TOP) -> Floats:
    """[R]: share of the rows whose label is among the k highest scores; of equal scores the first come
    first."""
    own = np.take_along_axis(answers.scores, answers.labels[:, None], 1)
    before = np.arange(answers.scores.shape[1]) < answers.labels[:, None]
    rank = ((answers.scores > own) | ((answers.scores == own) & before)).sum(1)
    hits, rows = (np.bincount(answers.groups, values) for values in (rank < k, np.ones(len(rank))))
    return (weights @ hits) / (weights @ rows)


def auroc(answers: Answers, weights: Floats) -> Floats:
    """[R, C]: area under the ROC curve of each class against the rest; NaN where one of both does not occur.

    The weighted Mann-Whitney statistic: the share of (row of the class, other row) pairs of which the first
    has the higher score, half of those that are equal (Hanley and McNeil, Radiology 143, 1982).
    """
    found = np.full((len(weights), answers.scores.shape[1]), np.nan)
    for label in np.unique(answers.labels):
        scores = answers.scores[:, label]
        order = np.argsort(scores, kind="stable")
        firsts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
        positive = (answers.labels == label)[order]
        groups = answers.groups[order]
        for part in _parts(len(weights), len(order)):
            per_row = weights[part][:, groups]
            inside = np.add.reduceat(per_row * positive, firsts, axis=1)
            outside = np.add.reduceat(per_row * ~positive, firsts, axis=1)
            below = np.cumsum(outside, 1) - outside
            pairs = inside.sum(1) * outside.sum(1)
            with np.errstate(invalid="ignore"):
                found[part, label] = np.where(
                    pairs > 0, (inside * (below + outside / 2)).sum(1) / pairs, np.nan
                )
    return found


def _parts(rows: int, width: int, most: int = 4_000_000) -> list[slice]:
    """Slices of `rows` that bound rows x width to `most` values."""
    step = max(1, most // max(width, 1))
    return [slice(first, first + step) for first in range(0, rows, step)]


def _per_group(answers: Answers, classes: Ints, count: int, of: NDArray[np.bool_] | None = None) -> Floats:
    """float64 [G, C]: rows of each group by class, those of `of` alone where it is given."""
    codes = answers.groups * count + classes
    codes = codes if of is None else codes[of]
    return np.bincount(codes, minlength=answers.group_count * count).reshape(-1, count).astype(np.float64)


def video_figures(answers: Answers, times: Floats | None) -> dict[str, Floats]:
    """Figures of each video (group) by itself, float64 [G], of which the mean over videos is reported.

    video_accuracy  share of its rows that are right
    video_jaccard   intersection over union of true and predicted rows, mean over the classes that are
                    true of some row (per phase and video, as in the M2CAI 2016 workflow challenge)
    video_edit      1 - Levenshtein distance of the sequences of phases / the longer one's length (Lea et
                    al., ECCV workshops 2016); where `times`, float64 [n], orders the rows of a video
    """
    accuracy, jaccard, edit = (np.zeros(answers.group_count) for _ in range(3))
    order = np.lexsort((np.zeros(len(answers.labels)) if times is None else times, answers.groups))
    bounds = np.searchsorted(answers.groups[order], np.arange(answers.group_count + 1))
    predicted = answers.predicted
    for group in range(answers.group_count):
        rows = order[bounds[group] : bounds[group + 1]]
        true, said = answers.labels[rows], predicted[rows]
        accuracy[group] = (true == said).mean()
        jaccard[group] = np.mean(
            [((true == c) & (said == c)).sum() / ((true == c) | (said == c)).sum() for c in np.unique(true)]
        )
        edit[group] = edit_score(true, said)
    found = {"video_accuracy": accuracy, "video_jaccard": jaccard}
    return found if times is None else found | {"video_edit": edit}


def edit_score(true: Sequence[int] | Ints, said: Sequence[int] | Ints) -> float:
    """In [0, 1]: how alike two sequences are in the order of their segments, whatever those last."""
    one, two = (_without_repeats(np.asarray(sequence)) for sequence in (true, said))
    distance = np.arange(len(two) + 1)
    for a in one:
        before, distance = distance, np.empty_like(distance)
        distance[0] = before[0] + 1
        for column, b in enumerate(two, 1):
            distance[column] = min(
                before[column] + 1, distance[column - 1] + 1, before[column - 1] + (a != b)
            )
    return 1.0 - float(distance[-1]) / max(len(one), len(two))


def _without_repeats(sequence: Ints) -> list[int]:
    return sequence[np.flatnonzero(np.diff(sequence, prepend=-1))].tolist()
