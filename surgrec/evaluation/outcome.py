"""What stands in every result, however the model was trained: its figures on test, beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from surgrec.configs.probe import Selection
from surgrec.evaluation.baseline_answers import as_scores, lookup
from surgrec.evaluation.baselines import majority_label
from surgrec.evaluation.intervals import Evaluation, evaluate
from surgrec.evaluation.lint_leaks import same_sets
from surgrec.evaluation.manifest import Split, SplitManifest
from surgrec.evaluation.metrics import Answers, Floats, class_figures, confusion
from surgrec.evaluation.parts import Part
from surgrec.evaluation.registry import read_name
from surgrec.evaluation.registry_table import DATASETS
from surgrec.evaluation.results import FORMAT_NAME, FORMAT_VERSION, provenance

BASELINE_FIGURES: Final = ("accuracy", "balanced_accuracy", "macro_f1")

Scores = NDArray[np.float32]


def val_score(val: Part, shares: Scores, select: Selection) -> tuple[float, float]:
    """The figure that is chosen by, and the mean negative log probability of what is true. shares: float32
    [n, C], probabilities of the rows of val, finite."""
    ones = np.ones((1, int(val.groups.max()) + 1))
    score = float(class_figures(Answers(val.labels, shares.astype(np.float64), val.groups), ones)[select][0])
    loss = float(-np.log(np.maximum(shares[np.arange(len(shares)), val.labels], 1e-12)).mean())
    return score, loss


def outcome_of(
    manifest: SplitManifest,
    parts: Mapping[Split, Part],
    missing: Mapping[int, str],
    scores: Scores,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """Keys of a result's document; docs/probes.md describes them. missing: number of a row -> why it was not
    read. scores: float32 [n, C] of the rows of test. seed, resamples: of the bootstrap."""
    test = parts["test"]
    times = times_of(manifest, test)
    answers = Answers(test.labels, scores.astype(np.float64), test.groups)
    return {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "dataset": manifest.dataset,
        "manifest_digest": manifest.digest,
        "classes": list(manifest.classes),
        "rows": {split: {"read": len(part.rows), "of": part.of} for split, part in parts.items()},
        "val_is_test": ("val", "test") in same_sets(manifest),
        "classes_missing": {
            split: [manifest.classes[label] for label in part.lacks] for split, part in parts.items()
        },
        "missing": [
            [manifest.rows[row].split, manifest.rows[row].path, reason] for row, reason in missing.items()
        ],
        **_evaluated(evaluate(answers, seed, times, resamples), manifest),
        "baselines": baselines_of(manifest, parts, times, seed, resamples),
        "confusion": confusion(test.labels, answers.predicted, len(manifest.classes)).tolist(),
        "predictions": [
            [int(row), int(said)] for row, said in zip(test.rows, answers.predicted, strict=True)
        ],
        **provenance(),
    }


def times_of(manifest: SplitManifest, part: Part) -> Floats | None:
    """float64 [n] that order the rows of a group in time: by the starts of the manifest, else by those that
    the names of the clips tell; None where neither does for every row."""
    dataset = DATASETS.get(manifest.dataset)
    starts: list[tuple[str, float]] = []
    for number in part.rows:
        row = manifest.rows[number]
        if row.start is not None:
            starts.append((row.path, row.start))
        elif dataset and (facts := read_name(dataset, row.path)) and facts.span:
            starts.append((facts.span.source, facts.span.start))
        else:
            return None
    times = np.empty(len(starts))
    times[sorted(range(len(starts)), key=starts.__getitem__)] = np.arange(len(starts))
    return times


def _evaluated(found: Evaluation, manifest: SplitManifest) -> dict[str, Any]:
    by_class = zip(manifest.classes, found.recall, found.class_auroc, strict=True)
    return {
        "test_rows": found.rows,
        "test_groups": found.groups,
        "figures": {name: figure.plain() for name, figure in found.figures.items()},
        "per_class": [
            {"class": name, "recall": recall.plain() if recall else None, "auroc": area}
            for name, recall, area in by_class
        ],
    }


def baselines_of(
    manifest: SplitManifest, parts: Mapping[Split, Part], times: Floats | None, seed: int, resamples: int
) -> dict[str, Any]:
    """Majority and look-up of the source, from the rows of train that were read, on those of test: keys of a
    document. seed, resamples: of the bootstrap."""
    train, test = ([manifest.rows[number] for number in parts[split].rows] for split in ("train", "test"))
    always = majority_label(train)
    looked_up, known = lookup(train, test)
    found: dict[str, Any] = {}
    for name, answers in (("majority", np.full(len(test), always)), ("source_lookup", looked_up)):
        given = Answers(parts["test"].labels, as_scores(answers, len(manifest.classes)), parts["test"].groups)
        figures = evaluate(given, seed, times, resamples).figures
        found[name] = {figure: figures[figure].plain() for figure in BASELINE_FIGURES}
    found["majority"]["class"] = manifest.classes[always]
    found["source_lookup"]["covered"] = int(known.sum())
    return found
