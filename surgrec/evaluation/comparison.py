"""Two models on the same test rows: paired differences by bootstrap over groups, by data set and over them.

A result keeps, of each test row, the class that was predicted; truth and groups are the manifest's. So
figures of decisions are compared (accuracy, balanced accuracy, macro F1, and those of videos), and not top-5
and AUROC, which need scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgrec.evaluation.baseline_answers import as_scores
from surgrec.evaluation.intervals import (
    Difference,
    difference_of,
    draw_groups,
    figures_of,
    paired_resamples,
)
from surgrec.evaluation.manifest import SplitManifest
from surgrec.evaluation.metrics import Answers, Floats
from surgrec.evaluation.outcome import times_of
from surgrec.evaluation.parts import Part
from surgrec.evaluation.results import Result, latest


class CompareError(ValueError):
    """Results that cannot be compared; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Side:
    """What a result is asked for by. mode: None takes the only one there is."""

    model: str
    mode: str | None


@dataclass(frozen=True)
class SetComparison:
    """On one split, in shares of 1. rows: common ones, in `groups` groups. only: rows that the first, and the
    second result alone have. one, two: figures of both on the common rows."""

    dataset: str
    manifest_digest: str
    rows: int
    of: int
    groups: int
    only: tuple[int, int]
    one: dict[str, float]
    two: dict[str, float]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Comparison:
    """names: of both sides, with their modes. means: of the differences, over the sets that have a figure,
    where there are several. skipped: what could not be compared, and why."""

    names: tuple[str, str]
    sets: tuple[SetComparison, ...]
    means: dict[str, tuple[Difference, int]]
    skipped: tuple[str, ...]
    resamples: int


def compare(
    results: Sequence[Result],
    manifests: Sequence[SplitManifest],
    sides: tuple[Side, Side],
    seed: int,
    resamples: int,
) -> Comparison:
    """Compares the last result of one side with that of the other, on each data set that has both.

    Raises CompareError where a side is not told apart from others, a data set has results on different
    splits, the manifest of a split is not given, or nothing can be compared.
    """
    chosen = [_of_side(latest(results), side) for side in sides]
    known = {manifest.digest: manifest for manifest in manifests}
    sets, skipped = [], []
    drawn: dict[str, list[Floats]] = {}
    for dataset in dict.fromkeys(name for side in chosen for name, _ in side):
        digests = [{digest for name, digest in side if name == dataset} for side in chosen]
        common = sorted(digests[0] & digests[1])
        if not digests[0] or not digests[1]:
            lacking = sides[0 if not digests[0] else 1]
            skipped.append(f"{dataset}: there is no result of {_named(lacking)}")
            continue
        if not common:
            raise CompareError(
                f"{dataset}: {_named(sides[0])} was evaluated on split {', '.join(sorted(digests[0]))},"
                f" {_named(sides[1])} on {', '.join(sorted(digests[1]))}: figures of different splits cannot"
                " be compared; evaluate both on one"
            )
        usable = [digest for digest in common if digest in known]
        if len(usable) != 1:
            given = ", ".join(f"{each.dataset} {each.digest}" for each in manifests)
            raise CompareError(
                f"{dataset}: the results are of split {', '.join(common)}; give the manifest of that split,"
                f" of one where there are several, --manifests (given: {given})"
            )
        pair = chosen[0][dataset, usable[0]], chosen[1][dataset, usable[0]]
        found = _compare_set(*pair, known[usable[0]], seed, resamples)
        if isinstance(found, str):
            skipped.append(f"{dataset} (split {usable[0][:8]}): {found}")
            continue
        sets.append(found[0])
        for name, values in found[1].items():
            drawn.setdefault(name, []).append(values)
    if not sets:
        raise CompareError("; ".join(skipped) or "there is nothing to compare")
    means = {}
    for name, columns in drawn.items():
        mean = difference_of(np.mean(columns, 0)) if len(columns) > 1 else None
        if mean is not None:
            means[name] = mean, len(columns)
    return Comparison(_names(sides, chosen), tuple(sets), means, tuple(skipped), resamples)


def _of_side(results: Sequence[Result], side: Side) -> dict[tuple[str, str], Result]:
    """By data set and split. Raises CompareError where there is none, or several on one split."""
    own = [each for each in results if each.model == side.model and side.mode in (None, each.mode)]
    if not own:
        there = ", ".join(dict.fromkeys(f"{each.model} ({each.mode})" for each in results)) or "none"
        raise CompareError(f"there is no result of {_named(side)}; there are: {there}")
    found: dict[tuple[str, str], Result] = {}
    for each in own:
        other = found.setdefault((each.dataset, each.manifest_digest), each)
        if other is each:
            continue
        if other.mode != each.mode:
            modes = ", ".join(dict.fromkeys(result.mode for result in own))
            raise CompareError(f"{each.dataset}: {side.model} has results of modes {modes}; choose, --modes")
        names = {*each.settings, *other.settings}
        differ = sorted(name for name in names if each.settings.get(name) != other.settings.get(name))
        raise CompareError(
            f"{each.dataset}: {_named(side)} has several results, with other {', '.join(differ)}; give a file"
            " that holds the line of one of them"
        )
    return found


def _named(side: Side) -> str:
    return side.model if side.mode is None else f"{side.model}, {side.mode}"


def _names(sides: tuple[Side, Side], chosen: list[dict[tuple[str, str], Result]]) -> tuple[str, str]:
    """With the modes that were found."""
    one, two = (
        f"{side.model}, {' and '.join(sorted({each.mode for each in own.values()}))}"
        for side, own in zip(sides, chosen, strict=True)
    )
    return one, two


def _compare_set(
    one: Result, two: Result, manifest: SplitManifest, seed: int, resamples: int
) -> tuple[SetComparison, dict[str, Floats]] | str:
    """The comparison, and the differences on the rows and on each resample; or why there is none."""
    said = [dict(result.predictions) for result in (one, two)]
    for result, own in zip((one, two), said, strict=True):
        if not own:
            return f"the result of {result.model}, {result.mode} has no predictions; evaluate it again"
        strange = [row for row in own if row >= len(manifest.rows) or manifest.rows[row].split != "test"]
        if strange:
            raise CompareError(
                f"{result.dataset}: the result of {result.model}, {result.mode} holds a prediction of row"
                f" {strange[0]}, which is no test row of its split: the line was changed by hand"
            )
    rows = sorted(said[0].keys() & said[1].keys())
    if not rows:
        return "the two results have no test row in common"
    labels = np.array([manifest.rows[row].label for row in rows], np.int64)
    groups = np.unique([manifest.rows[row].group for row in rows], return_inverse=True)[1].astype(np.int64)
    if groups.max() == 0:
        return "the common test rows are of one group: the bootstrap over groups has nothing to draw from"
    # Results of vision-language models have a class more, of answers that name none.
    count = max(len(manifest.classes), len(one.classes), len(two.classes))
    answers = [
        Answers(labels, as_scores(np.array([own[row] for row in rows]), count), groups, len(manifest.classes))
        for own in said
    ]
    times = times_of(manifest, Part(np.array(rows, np.int64), labels, groups, len(manifest.of("test")), ()))
    weights = draw_groups(answers[0].group_count, seed, resamples, manifest.digest)
    drawn = paired_resamples(answers[0], answers[1], weights, times, ranked=False)
    found = {name: difference_of(values) for name, values in drawn.items()}
    as_is = np.ones((1, answers[0].group_count))
    figures: list[dict[str, Any]] = [figures_of(each, as_is, times, ranked=False) for each in answers]
    differences = {name: each for name, each in found.items() if each is not None}
    first, second = ({name: float(own[name][0]) for name in differences} for own in figures)
    compared = SetComparison(
        manifest.dataset,
        manifest.digest,
        len(rows),
        len(manifest.of("test")),
        answers[0].group_count,
        (len(said[0]) - len(rows), len(said[1]) - len(rows)),
        first,
        second,
        differences,
    )
    return compared, {name: drawn[name] for name in differences}
