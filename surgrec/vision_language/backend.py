"""What asks a model: requests in, a reply or a named failure for each out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from surgrec.vision_language.frames import Pictures
from surgrec.vision_language.records import Question, Reply, Way

UNREADABLE: Final = "clip unreadable"
OVERFLOW: Final = "context overflow"


class BackendError(RuntimeError):
    """No question can be asked, or no further one; the message names the cause and the remedy."""


@dataclass(frozen=True, slots=True)
class Request:
    """A question in one way, and the pictures to it. key: as the store has it."""

    key: str
    question: Question
    way: Way
    pictures: Pictures


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no reply. passes: it may be another time."""

    reason: str
    passes: bool


Take = Callable[[Request, Reply | Failure], None]
"""What is done with an answer as soon as it is there."""


class Backend(Protocol):
    """A model that can be asked."""

    settings: Mapping[str, Any]
    """What decides its answers, as plain values: name, weights, precision, bounds."""

    def prepare(self) -> None:
        """Loads what asking needs, which is not counted as its time. Raises BackendError."""

    def ask(self, requests: Iterator[Request], take: Take) -> None:
        """Asks all, in any order, and gives each to `take` once. Raises BackendError where it cannot go
        on."""

    def tokens(self, question: Question, pictures: Pictures) -> int | None:
        """Tokens of a prompt, counted; None where it is not known."""
