"""From stores of answers to results: a document for all wordings together, and one for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from surgrec.configs.vlm import ScoreConfig
from surgrec.evaluation.baseline_answers import as_scores
from surgrec.evaluation.intervals import evaluate
from surgrec.evaluation.manifest import SplitManifest, read_manifest
from surgrec.evaluation.metrics import Answers, Ints, confusion
from surgrec.evaluation.outcome import times_of
from surgrec.evaluation.parts import Part, part_among
from surgrec.evaluation.results import FORMAT_NAME, FORMAT_VERSION, Result, latest, provenance, read_results
from surgrec.vision_language.beside import baselines_on, results_on
from surgrec.vision_language.grid import (
    NOT_ASKED,
    UNPARSED,
    Grid,
    Read,
    ScoreError,
    check_questions,
    make_grid,
    reader_of_likelihoods,
    reader_of_text,
)
from surgrec.vision_language.likelihoods import RULES
from surgrec.vision_language.measures import class_recall, plain, position_test, with_intervals
from surgrec.vision_language.prompt_set import PromptSet
from surgrec.vision_language.prompts import load_prompts
from surgrec.vision_language.records import Asked
from surgrec.vision_language.store import About, read_answers

UNPARSED_NAME: Final = "unparsed"
"""The class behind the others in results of one wording: answers that name none."""

Tell = Callable[[str], None]
Document = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """Answers that are scored together. name: mode of the result."""

    name: str
    prompts: PromptSet
    answers: Sequence[Asked]
    read: Read


def score(
    config: ScoreConfig, tell: Tell = lambda text: None, progress: Tell = lambda text: None
) -> list[Document]:
    """Documents as append_result takes them, those of all wordings together before those of each.

    tell: hears of what is left out. progress: of what is being read or judged. Raises StoreError,
    ManifestError, PromptError, ResultsError, ScoreError, OSError.
    """
    if not config.stores:
        raise ScoreError("no store of answers was named; `python -m surgrec.vlm run` writes one")
    if config.resamples < 1:
        raise ScoreError(f"--resamples is {config.resamples}; it is at least 1")
    manifest = read_manifest(config.manifest)
    sets = [load_prompts(name) for name in config.prompts]
    beside = latest([result for path in config.beside for result in read_results(path)])
    found = []
    for path in config.stores:
        progress(f"read {path}")
        about, answers = read_answers(path)
        if about.manifest_digest != manifest.digest:
            raise ScoreError(
                f"{path}: holds answers on split {about.manifest_digest} of {about.dataset},"
                f" {config.manifest} is split {manifest.digest}; give the manifest that was asked about"
            )
        if about.split != "test":
            raise ScoreError(
                f"{path}: holds answers on {about.split}; results are of test: run with --split test"
            )
        for way in _ways(path, answers, manifest, sets, tell):
            progress(f"judge {path}, {way.name}")
            try:
                found += _documents(config, manifest, about, way, beside, tell)
            except ValueError as error:
                raise ScoreError(f"{path}, {way.name}: {error}") from error
    if not found:
        raise ScoreError("no question about a clip was answered: there is nothing to score")
    return found


def _ways(
    path: Path, answers: Sequence[Asked], manifest: SplitManifest, sets: Sequence[PromptSet], tell: Tell
) -> Iterator[Way]:
    left = list(answers)
    for prompts in sets:
        own = [each for each in left if _is_of(each, prompts)]
        left = [each for each in left if not _is_of(each, prompts)]
        try:
            check_questions(own, prompts, manifest)
        except ScoreError as error:
            raise ScoreError(f"{path}: {error}") from error
        written = [each for each in own if each.way == "generate"]
        if _answered(path, written, tell):
            yield Way(f"vlm-generate-{prompts.name}", prompts, written, reader_of_text(prompts, manifest))
        scored = [each for each in own if each.way == "options"]
        if not _answered(path, scored, tell):
            continue
        grey = {(each.question.prompt, each.question.order) for each in scored if _is_grey(each)}
        asked = {(each.question.prompt, each.question.order) for each in scored}
        for rule in RULES:
            if rule == "prior" and asked - grey:
                tell(
                    f"{path}: no figures by the rule prior: {len(asked - grey)} of {len(asked)} questions"
                    " have no answer to the grey picture; run it again"
                )
                continue
            yield Way(f"vlm-{rule}-{prompts.name}", prompts, scored, reader_of_likelihoods(scored, rule))
    if left:
        names = ", ".join(sorted({each.question.prompt for each in left})[:5])
        raise ScoreError(
            f"{path}: holds answers to prompts that were not given ({names}); name them, --prompts"
        )
    if not answers:
        raise ScoreError(f"{path}: holds no answer yet; `python -m surgrec.vlm run` goes on")


def _answered(path: Path, asked: Sequence[Asked], tell: Tell) -> bool:
    """Whether one question about a clip has a reply. What a backend cannot do at all is no wrong answer."""
    about = [each for each in asked if each.question.row is not None]
    if about and all(each.reply is None for each in about):
        (cause, _), *_ = Counter(each.failure for each in about).most_common(1)
        tell(
            f"{path}: no figures of the way {about[0].way}: none of {len(about)} questions was answered:"
            f" {cause}"
        )
        return False
    return bool(about)


def _is_of(asked: Asked, prompts: PromptSet) -> bool:
    return asked.question.style == prompts.style and asked.question.prompt in prompts.by_name


def _is_grey(asked: Asked) -> bool:
    return asked.question.row is None and asked.reply is not None


def _documents(
    config: ScoreConfig,
    manifest: SplitManifest,
    about: About,
    way: Way,
    beside: Sequence[Result],
    tell: Tell,
) -> list[Document]:
    test = [number for number, row in enumerate(manifest.rows) if row.split == "test"]
    grid = make_grid(way.answers, test, len(manifest.classes), way.read)
    part = _part(manifest, grid.rows)
    head = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "model": about.model,
        "dataset": manifest.dataset,
        "manifest_digest": manifest.digest,
        "features_digest": "",
        "rows": {"test": {"read": len(part.rows), "of": part.of}},
        "test_rows": len(part.rows),
        "test_groups": int(part.groups.max()) + 1,
        "missing": [
            ["test", manifest.rows[row].path, why] for row, why in grid.missing.items() if why != NOT_ASKED
        ],
        "not_asked": sum(why == NOT_ASKED for why in grid.missing.values()),
        "baselines": {
            **baselines_on(config, manifest, part),
            **results_on(config, manifest, part, beside, tell),
        },
        "trained_parameters": 0,
        "chosen": {},
        **provenance(),
    }
    options = {
        "prompts": way.prompts.name,
        "prompts_digest": way.prompts.digest,
        "parser": way.prompts.parser,
        "permutations": grid.orders.shape[1],
        "seed": config.seed,
        "resamples": config.resamples,
        **about.settings,
    }
    together = _together(config, manifest, way, grid, part)
    found = [head | {"mode": way.name, "options": options} | together]
    if config.each_prompt:
        for number, name in enumerate(grid.prompts):
            one = _of_prompt(config, manifest, grid, part, number)
            family = way.prompts.by_name[name].family
            found.append(head | {"mode": f"{way.name}:{name}", "family": family, "options": options} | one)
    return found


def _together(config: ScoreConfig, manifest: SplitManifest, way: Way, grid: Grid, part: Part) -> Document:
    figures = with_intervals(grid, part.labels, part.groups, config.seed, config.resamples)
    recall = class_recall(grid, part.labels, len(manifest.classes))
    return {
        "classes": list(manifest.classes),
        "figures": {name: figure.plain() for name, figure in figures.items()},
        "per_class": [
            {"class": name, "recall": None if value is None else _bare(value), "auroc": None}
            for name, value in zip(manifest.classes, recall, strict=True)
        ],
        "reasons": dict(sorted(grid.reasons.items())),
        "positions": plain(position_test(grid, config.seed, config.resamples)),
    }


def _of_prompt(config: ScoreConfig, manifest: SplitManifest, grid: Grid, part: Part, number: int) -> Document:
    """Of one wording, in the first order of each row: an answer a clip, as of any classifier."""
    said = grid.said[:, number, 0]
    parsed = said != UNPARSED
    classes = (*manifest.classes, UNPARSED_NAME)
    predicted = np.where(parsed, said, len(manifest.classes))
    evaluated = evaluate(
        Answers(part.labels, as_scores(predicted, len(classes)), part.groups, len(manifest.classes)),
        config.seed,
        times_of(manifest, part),
        config.resamples,
        ranked=False,
    )
    first = _first(grid, number)
    own = with_intervals(first, part.labels, part.groups, config.seed, config.resamples)
    figures = {**evaluated.figures, **own}
    return {
        "classes": list(classes),
        "figures": {name: figure.plain() for name, figure in figures.items()},
        "per_class": [
            {"class": name, "recall": recall.plain() if recall else None, "auroc": None}
            for name, recall in zip(classes, evaluated.recall, strict=True)
        ],
        "confusion": confusion(part.labels, predicted, len(classes)).tolist(),
        "predictions": [[int(row), int(label)] for row, label in zip(part.rows, predicted, strict=True)],
    }


def _first(grid: Grid, number: int) -> Grid:
    """One wording, and the first order of each row."""
    at = np.s_[:, number : number + 1, :1]
    shares = None if grid.shares is None else grid.shares[at]
    return Grid(
        (grid.prompts[number],), grid.rows, grid.orders[:, :1], grid.said[at], shares, {}, grid.missing
    )


def _bare(value: float) -> dict[str, float | None]:
    return {"value": value, "low": None, "high": None}


def _part(manifest: SplitManifest, rows: Ints) -> Part:
    present = np.zeros(len(manifest.rows), np.bool_)
    present[rows] = True
    return part_among(present, manifest, "test", manifest.dataset)
