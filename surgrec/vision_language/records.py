"""What is asked of a vision-language model and what comes back: plain values between prompts, backends and
measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Style = Literal["letters", "names"]
"""How options are shown and answered: a letter each, or their names."""

Way = Literal["generate", "options"]
"""generate: the model writes freely and its text is parsed. options: the log-likelihood of each option."""


@dataclass(frozen=True, slots=True)
class Question:
    """A clip asked about in one wording and one order of its options.

    row: of the manifest, counted from 0; None for the content-free question, which is asked of a grey image
    to learn what a model says without any content. prompt: name of the paraphrase. order: numbers of the
    classes in the order in which they are shown. system: the system message, empty for none. text: the whole
    user message. targets: what each shown option reads as an answer, in the order shown, as `A` or `polyp`.
    """

    row: int | None
    prompt: str
    style: Style
    order: tuple[int, ...]
    system: str
    text: str
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said to a question.

    text: what it wrote, empty for options. log_likelihoods: the sum of natural logarithms over each
    target's tokens, in the order shown, empty for generate; tokens: how many tokens each target has.
    finish: why it stopped, as the backend says it. prompt_tokens, reply_tokens: None where not known.
    """

    text: str = ""
    log_likelihoods: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    finish: str = ""
    prompt_tokens: int | None = None
    reply_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """The pictures of a clip that a model was shown.

    frames: their positions in the file, as displayed, and seconds: when each is shown, counted from the first
    frame on; both empty for grey pictures. count: of pictures. height, width: pixels. digest: XXH3-128 of
    their shape and RGB bytes, 32 hex digits.
    """

    frames: tuple[int, ...]
    seconds: tuple[float, ...]
    count: int
    height: int
    width: int
    digest: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, the model's reply, and what it was shown; failure: why there is no reply, empty otherwise.

    passes: the failure may pass (an endpoint that is down), and the next run asks again. A clip that cannot
    be read is named, and scores are of the others; what the model itself fails at (its context is too short)
    counts as a wrong answer.
    shown: None where the clip could not be read.
    """

    question: Question
    way: Way
    reply: Reply | None
    failure: str = ""
    passes: bool = False
    shown: Shown | None = None
