"""Answers as a table: every wording and order of every row that was asked in full."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from surgrec.evaluation.manifest import SplitManifest
from surgrec.evaluation.metrics import Floats, Ints
from surgrec.kernels.counter_rng import stream_key
from surgrec.vision_language.answers import Parsed, parse_answer
from surgrec.vision_language.backend import UNREADABLE
from surgrec.vision_language.likelihoods import Rule, chosen, shares_of
from surgrec.vision_language.option_order import Order
from surgrec.vision_language.prompts import PromptSet, class_words, question_of
from surgrec.vision_language.records import Asked, Reply
from surgrec.vision_language.release_answers import parse_as_release

UNPARSED: Final = -1
NOT_ASKED: Final = "not asked"


class ScoreError(ValueError):
    """Answers that cannot be scored; the message names the cause and the remedy."""


@dataclass(frozen=True)
class Grid:
    """n rows, P wordings, K orders, C classes.

    prompts: names of the wordings. rows: int64 [n], ascending numbers in the manifest. orders: int64
    [n, K, C], the class at each position. said: int64 [n, P, K], classes, UNPARSED where an answer names
    none. shares: float64 [n, P, K, C] by class, None of free answers. reasons: how often answers were found
    by what, or why they were not. missing: number of a row -> why it is not among the n.
    """

    prompts: tuple[str, ...]
    rows: Ints
    orders: Ints
    said: Ints
    shares: Floats | None
    reasons: Mapping[str, int]
    missing: Mapping[int, str]

    @property
    def positions(self) -> Ints:
        """int64 [n, P, K]: the position that was chosen, UNPARSED for none."""
        hits = self.orders[:, None] == self.said[..., None]
        return np.where(hits.any(-1), hits.argmax(-1), UNPARSED)


Read = Callable[[Asked], tuple[Parsed, Floats | None]]
"""The class that a reply names, and shares of 1 by class."""


def reader_of_text(prompts: PromptSet, manifest: SplitManifest) -> Read:
    """By the parser of the prompts."""
    _, classes = class_words(prompts, manifest)
    parse = parse_as_release if prompts.parser == "release" else parse_answer

    def read(asked: Asked) -> tuple[Parsed, None]:
        return parse(_reply(asked).text, asked.question, classes, manifest.classes), None

    return read


def reader_of_likelihoods(answers: Iterable[Asked], rule: Rule) -> Read:
    """By the largest share. answers: hold the replies to content-free questions, for prior."""
    without = {
        (asked.question.prompt, asked.question.order): asked.reply
        for asked in answers
        if asked.question.row is None and asked.reply is not None
    }

    def read(asked: Asked) -> tuple[Parsed, Floats | None]:
        question = asked.question
        shares = shares_of(_reply(asked), rule, without.get((question.prompt, question.order)))
        position = chosen(shares)
        by_class = np.empty(len(shares))
        by_class[list(question.order)] = shares
        if position is None:
            return Parsed(None, "several"), by_class
        return Parsed(question.order[position], "letter" if question.style == "letters" else "name"), by_class

    return read


def _reply(asked: Asked) -> Reply:
    assert asked.reply is not None
    return asked.reply


def check_questions(answers: Iterable[Asked], prompts: PromptSet, manifest: SplitManifest) -> None:
    """Raises ScoreError for a question that these prompts do not ask: its answers would be misread."""
    words, classes = class_words(prompts, manifest)
    for asked in answers:
        question = asked.question
        prompt = prompts.by_name.get(question.prompt)
        known = prompt is not None and sorted(question.order) == list(range(len(classes)))
        if (
            prompt is None
            or not known
            or question != question_of(prompts, prompt, words, classes, question.order, question.row)
        ):
            raise ScoreError(
                f"the question {question.prompt!r} of row {question.row} is not one of the prompts"
                f" {prompts.name}, or its words have changed; give the prompts that were asked, --prompts"
            )
        if question.row is not None and question.row >= len(manifest.rows):
            raise ScoreError(f"row {question.row} is none of the manifest; give the one that was asked about")


def make_grid(answers: Sequence[Asked], asked_rows: Iterable[int], classes: int, read: Read) -> Grid:
    """Of answers of one way and style, those to content-free questions left out.

    asked_rows: numbers of all rows of the split. A row is scored when every wording was answered in as many
    orders as of any other row; what the model itself fails at, such as a prompt beyond its context, is an
    answer that names nothing. Raises ScoreError where no row is.
    """
    by_row: dict[int, dict[tuple[str, Order], Asked]] = defaultdict(dict)
    for asked in answers:
        if asked.question.row is not None:
            by_row[asked.question.row][asked.question.prompt, asked.question.order] = asked
    prompts = tuple(dict.fromkeys(name for own in by_row.values() for name, _ in own))
    most = max((len({order for _, order in own}) for own in by_row.values()), default=0)
    missing: dict[int, str] = {}
    whole: dict[int, list[Order]] = {}
    for row in asked_rows:
        own = by_row.get(row, {})
        orders = sorted({order for _, order in own}, key=lambda order: stream_key(row, f"vlm/first/{order}"))
        why = _lacks(own, len(prompts) * most)
        if why:
            missing[row] = why
        else:
            whole[row] = orders
    if not whole:
        causes = Counter(missing.values()).most_common(3)
        raise ScoreError(
            "no row was answered in full: "
            + "; ".join(f"{count} rows: {cause}" for cause, count in causes)
            + ". Run `python -m surgrec.vlm run` again"
        )
    said = np.full((len(whole), len(prompts), most), UNPARSED, np.int64)
    shares = np.full((*said.shape, classes), np.nan)
    reasons: Counter[str] = Counter()
    for n, (row, orders) in enumerate(whole.items()):
        for p, prompt in enumerate(prompts):
            for k, order in enumerate(orders):
                asked = by_row[row][prompt, order]
                if asked.reply is None:
                    reasons["failure"] += 1
                    continue
                parsed, found = read(asked)
                reasons[parsed.reason] += 1
                said[n, p, k] = UNPARSED if parsed.label is None else parsed.label
                if found is not None:
                    shares[n, p, k] = found
    return Grid(
        prompts,
        np.array(list(whole), np.int64),
        np.array(list(whole.values()), np.int64),
        said,
        shares if np.isfinite(shares).any() else None,
        dict(reasons),
        missing,
    )


def _lacks(own: Mapping[tuple[str, Order], Asked], wanted: int) -> str:
    """Why a row cannot be scored, empty where it can."""
    if not own:
        return NOT_ASKED
    for asked in own.values():
        if asked.failure.startswith(UNREADABLE):
            return asked.failure
        if asked.failure and asked.passes:
            return f"not answered yet: {asked.failure}"
    return "" if len(own) == wanted else f"not answered yet: {len(own)} of {wanted} questions"
