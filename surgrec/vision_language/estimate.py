"""How much a run would ask, and how long it would take, as far as that is known without asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from surgrec.configs.vlm import RunConfig
from surgrec.evaluation.extraction_plan import span_of
from surgrec.training.console import format_duration
from surgrec.vision_language.backend import Backend
from surgrec.vision_language.frames import Pictures, choose_frames, grey_pictures, size_of
from surgrec.vision_language.records import Shown
from surgrec.vision_language.run import Job
from surgrec.vision_language.store import AnswerStore

MOST_COUNTED: Final = 300
"""Prompts whose tokens are counted, spread over all; the others are taken to be alike."""
FEWEST_MEASURED: Final = 20
"""Answers below which their rate tells nothing."""


@dataclass(frozen=True)
class Estimate:
    """questions: that would be asked, of `total`. rows: of clips. pictures: shown, all questions together.
    prompt_tokens: of all prompts; counted: of how many they were counted, or remembered; None where not
    known. reply_tokens: that are written, at most. unreadable: clips of which that is known without decoding.
    seconds: of the whole run; measured: answers that it goes by; None where not known."""

    questions: int
    total: int
    rows: int
    pictures: int
    prompt_tokens: int | None
    counted: int
    reply_tokens: int
    unreadable: int
    seconds: float | None
    measured: int


def estimate(config: RunConfig, job: Job, backend: Backend, store: AnswerStore) -> Estimate:
    """Asks nothing, and decodes nothing: prompts are counted with grey pictures of the right number and
    size."""
    sizes: dict[int | None, tuple[int, int, int]] = {None: grey_pictures(config.look).pixels.shape[:3]}
    unreadable = 0
    for number, row in job.rows:
        video = job.videos[number]
        span = span_of(job.index, video, row)
        if isinstance(span, str):
            unreadable += bool(job.wanted[number])
            continue
        count = len(choose_frames(config.look, job.index, video, *span))
        sizes[number] = (count, *size_of(job.index, video, config.look))
    prompts = [
        (each.question, each.way, sizes[number])
        for number, wanted in job.wanted.items()
        if number in sizes
        for each in wanted
    ]
    at = np.unique(np.linspace(0, len(prompts) - 1, min(len(prompts), MOST_COUNTED)).round().astype(int))
    counts = []
    for question, _, (count, height, width) in (prompts[k] for k in at):
        grey = np.zeros((count, height, width, 3), np.uint8)
        shown = Shown((), (), count, height, width, "")
        counts.append(backend.tokens(question, Pictures(shown, grey)))
    known = [count for count in counts if count is not None]
    if not known:  # only the server can count; it has told of what was answered
        replies = (line.asked.reply for line in store.kept.values())
        known = [reply.prompt_tokens for reply in replies if reply and reply.prompt_tokens is not None]
    taken = [line.seconds for line in store.kept.values() if line.asked.reply is not None]
    measured = len(taken) if len(taken) >= FEWEST_MEASURED else 0
    return Estimate(
        len(prompts),
        job.total,
        sum(bool(wanted) for number, wanted in job.wanted.items() if number in sizes and number is not None),
        sum(count for _, _, (count, _, _) in prompts),
        round(float(np.mean(known)) * len(prompts)) if known else None,
        len(known),
        config.max_new_tokens * sum(way == "generate" for _, way, _ in prompts),
        unreadable,
        float(np.mean(taken)) * len(prompts) if measured else None,
        measured,
    )


def estimate_text(config: RunConfig, found: Estimate) -> str:
    """Lines for a person."""
    lines = [
        f"{found.questions:,} of {found.total:,} questions would be asked of {config.model}, about"
        f" {found.rows:,} clips, with {found.pictures:,} pictures; {found.total - found.questions:,} are"
        " answered"
        " already or cannot be asked"
    ]
    if found.unreadable:
        lines.append(f"{found.unreadable:,} clips cannot be read, and would not be asked about")
    if not found.questions:
        return "\n".join(lines)
    if found.prompt_tokens is None:
        lines.append(
            "tokens of the prompts: not known; only the server counts them, and a run with --limit 10 asks it"
        )
    else:
        how = "all prompts" if found.counted == found.questions else f"{found.counted:,} prompts"
        lines.append(f"tokens of the prompts: about {found.prompt_tokens:,}, by those of {how}")
    lines.append(f"tokens that the model writes: at most {found.reply_tokens:,}")
    if found.seconds is None:
        lines.append(f"time: not known; a run with --limit 10 measures it, and is kept in {config.out}")
    else:
        lines.append(
            f"time: about {format_duration(found.seconds)}, at the rate of the {found.measured:,} answers in"
            f" {config.out}"
        )
    return "\n".join(lines)
