"""What stands beside the scores of a vision-language model, on the same rows: baselines and probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from surgrec.configs.vlm import ScoreConfig
from surgrec.evaluation.baseline_answers import as_scores
from surgrec.evaluation.intervals import evaluate
from surgrec.evaluation.manifest import SplitManifest
from surgrec.evaluation.metrics import Answers
from surgrec.evaluation.outcome import BASELINE_FIGURES, baselines_of, times_of
from surgrec.evaluation.parts import Part, part_among
from surgrec.evaluation.results import Result


def baselines_on(config: ScoreConfig, manifest: SplitManifest, part: Part) -> dict[str, Any]:
    """Majority and look-up on the same rows; none where there is no train to learn them from."""
    if not manifest.of("train"):
        return {}
    train = part_among(np.ones(len(manifest.rows), np.bool_), manifest, "train", manifest.dataset)
    times = times_of(manifest, part)
    return baselines_of(manifest, {"train": train, "test": part}, times, config.seed, config.resamples)


def results_on(
    config: ScoreConfig,
    manifest: SplitManifest,
    part: Part,
    results: Sequence[Result],
    tell: Callable[[str], None],
) -> dict[str, Mapping[str, Any]]:
    """Figures of other results on the same rows, by `model, mode`. tell: hears of those that lack some."""
    found: dict[str, Mapping[str, Any]] = {}
    for result in results:
        name = f"{result.model}, {result.mode}"
        if result.manifest_digest != manifest.digest:
            tell(f"{name} is not shown beside: it is of split {result.manifest_digest} of {result.dataset}")
            continue
        said = dict(result.predictions)
        lacking = sum(row not in said for row in part.rows.tolist())
        if lacking:
            tell(
                f"{name} is not shown beside: it has no prediction of {lacking} of the {len(part.rows)} rows"
            )
            continue
        predicted = np.array([said[row] for row in part.rows.tolist()], np.int64)
        width = max(len(result.classes), len(manifest.classes))
        answers = Answers(part.labels, as_scores(predicted, width), part.groups, len(manifest.classes))
        figures = evaluate(
            answers, config.seed, times_of(manifest, part), config.resamples, ranked=False
        ).figures
        found[name] = {figure: figures[figure].plain() for figure in BASELINE_FIGURES}
    return found
