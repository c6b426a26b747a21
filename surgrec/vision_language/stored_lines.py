"""A question and its answer as a line of JSON, and back, every field checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar, get_args

from surgrec.vision_language.records import Asked, Question, Reply, Shown, Style, Way

T = TypeVar("T")


class StoreError(ValueError):
    """A store of answers, or a line of one, that cannot be used; the message names cause and remedy."""


def line_of(key: str, seconds: float, asked: Asked) -> str:
    """A line of ASCII with its end. Raises ValueError for numbers that JSON has not."""
    document = {
        "key": key,
        "seconds": seconds,
        "way": asked.way,
        "question": asdict(asked.question),
        "reply": None if asked.reply is None else asdict(asked.reply),
        "failure": asked.failure,
        "passes": asked.passes,
        "shown": None if asked.shown is None else asdict(asked.shown),
    }
    return json.dumps(document, allow_nan=False) + "\n"


def asked_of(document: Any) -> tuple[str, float, Asked]:
    """Key, seconds and what was asked, of a line. Raises StoreError for what is no line of a store."""
    fields = object_of(document, "line")
    reply, shown = fields.get("reply"), fields.get("shown")
    asked = Asked(
        _question(object_of(fields.get("question"), "question")),
        _one_of(fields, "way", get_args(Way)),
        None if reply is None else _reply(object_of(reply, "reply")),
        text_of(fields, "failure"),
        _is(fields, "passes", bool),
        None if shown is None else _shown(object_of(shown, "shown")),
    )
    if (asked.reply is None) != bool(asked.failure):
        raise StoreError("a line has a reply or a failure, not both and not neither")
    return text_of(fields, "key"), _number(fields.get("seconds"), "seconds"), asked


def _question(fields: dict[str, Any]) -> Question:
    row = fields.get("row")
    return Question(
        None if row is None else _count(row, "row"),
        text_of(fields, "prompt"),
        _one_of(fields, "style", get_args(Style)),
        _all(fields, "order", _count),
        text_of(fields, "system"),
        text_of(fields, "text"),
        _all(fields, "targets", _string),
    )


def _reply(fields: dict[str, Any]) -> Reply:
    prompt, reply = fields.get("prompt_tokens"), fields.get("reply_tokens")
    return Reply(
        text_of(fields, "text"),
        _all(fields, "log_likelihoods", _number),
        _all(fields, "tokens", _count),
        text_of(fields, "finish"),
        None if prompt is None else _count(prompt, "prompt_tokens"),
        None if reply is None else _count(reply, "reply_tokens"),
    )


def _shown(fields: dict[str, Any]) -> Shown:
    count, height, width = (_count(fields.get(name), name) for name in ("count", "height", "width"))
    return Shown(
        _all(fields, "frames", _count),
        _all(fields, "seconds", _number),
        count,
        height,
        width,
        text_of(fields, "digest"),
    )


def object_of(value: Any, name: str) -> dict[str, Any]:
    """A value that must be an object. Raises StoreError."""
    if not isinstance(value, dict):
        raise StoreError(f"`{name}` is no object")
    return value


def _is(fields: dict[str, Any], name: str, kind: type[T]) -> T:
    value = fields.get(name)
    if not isinstance(value, kind):
        raise StoreError(f"`{name}` is {value!r:.60}, not a {kind.__name__}")
    return value


def text_of(fields: dict[str, Any], name: str) -> str:
    """A field that must be a text. Raises StoreError."""
    return _is(fields, name, str)


def _one_of(fields: dict[str, Any], name: str, names: tuple[Any, ...]) -> Any:
    value = fields.get(name)
    if value not in names:
        raise StoreError(f"`{name}` is {value!r:.60}; expected {' or '.join(names)}")
    return value


def _all(fields: dict[str, Any], name: str, read: Callable[[Any, str], T]) -> tuple[T, ...]:
    return tuple(read(value, name) for value in _is(fields, name, list))


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise StoreError(f"`{name}` holds {value!r:.60}, not a text")
    return value


def _count(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise StoreError(f"`{name}` is {value!r:.60}, not a count")
    return value


def _number(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise StoreError(f"`{name}` is {value!r:.60}, not a number")
    return float(value)
