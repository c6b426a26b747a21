"""What a server of chat completions sends back, made a reply, or a failure with a name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from surgrec.vision_language.backend import OVERFLOW, BackendError, Failure
from surgrec.vision_language.records import Question, Reply, Way

REFUSED: Final = "refused"
PASSING: Final = frozenset({408, 409, 425, 429})
"""Besides those from 500 on."""
_OVERFLOW_SIGNS: Final = (
    "context_length_exceeded",
    "context length",
    "context window",
    "context_window",
    "maximum context",
    "max_model_len",
    "too many tokens",
    "too long",
    "longer than the max",
)
_NO_TEXT: Final = ("content_filter", "length")
"""Ends of answers that have no text: a filter held it back, or thoughts took all tokens."""
_QUOTED: Final = 200

Quote = Callable[[bytes], str]
"""Some words of a server, as messages have them."""


class ServerFailure(Exception):  # noqa: N818 - it becomes a Failure
    """A failure that may pass. wait: seconds that the server asks to wait, None where it says nothing."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def read_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    question: Question,
    way: Way,
    key_variable: str,
    quote: Quote,
) -> Reply | Failure:
    """A reply, or a failure that another try would not mend. quote: without the key.

    Raises ServerFailure for one that may pass, BackendError for one that every request would have.
    """
    if status != 200:
        return _refused(status, headers, body, key_variable, quote)
    try:
        document = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ServerFailure(
            f"junk: the answer is not UTF-8 ({error.reason} at byte {error.start})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ServerFailure(f"junk: the answer is not JSON ({error}): {quote(body)}") from error
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ServerFailure(f"junk: the answer has no choices: {quote(body)}")
    message = choices[0].get("message")
    finish = choices[0].get("finish_reason")
    finish = finish if isinstance(finish, str) else ""
    text = message.get("content") if isinstance(message, dict) else None
    if text is None and isinstance(message, dict) and (finish in _NO_TEXT or message.get("refusal")):
        text = str(message.get("refusal") or "")
    usage = document.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt, completion = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
    if way == "options":
        scores = _letters(choices[0], question)
        if isinstance(scores, Failure):
            return scores
        ones = (1,) * len(scores)
        return Reply("", scores, ones, finish, prompt, completion)
    if not isinstance(text, str):
        raise ServerFailure(f"junk: the message has no text: {quote(body)}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ServerFailure("junk: the text holds halves of UTF-16 pairs")
    return Reply(text, (), (), finish, prompt, completion)


def _refused(
    status: int, headers: Mapping[str, str], body: bytes, key_variable: str, quote: Quote
) -> Failure:
    said = quote(body)
    if status in (401, 403):
        raise BackendError(
            f"unauthorized: the server answers {status}: {said}; put a valid key into the environment"
            " variable"
            f" {key_variable}, or name another one with --endpoint.key-variable"
        )
    if status in (404, 405) or 300 <= status < 400:
        to = headers.get("location", "")
        raise BackendError(
            f"the server answers {status}{f' (to {quote(to.encode())})' if to else ''}: {said}; check"
            " --endpoint.url (it often ends in /v1) and the name of the model"
        )
    if status in PASSING or status >= 500:
        name = "rate limited" if status == 429 else "server error"
        raise ServerFailure(f"{name}: status {status}: {said}", retry_after(headers.get("retry-after")))
    if status in (400, 413, 422) and any(
        sign in body.decode("utf-8", "replace").lower() for sign in _OVERFLOW_SIGNS
    ):
        return Failure(f"{OVERFLOW}: {said}", passes=False)
    return Failure(f"{REFUSED}: status {status}: {said}", passes=True)


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None for none or for junk."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _letters(choice: dict[str, Any], question: Question) -> tuple[float, ...] | Failure:
    """The logarithm of each letter's probability of being the first token, with or without a space before."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    top = first.get("top_logprobs") if isinstance(first, dict) else None
    if not isinstance(top, list) or not top:
        raise BackendError(
            "the server gives no top_logprobs, which `options` needs; ask one that does (vLLM:"
            " --max-logprobs),"
            " or give --ways generate"
        )
    shares: dict[str, list[float]] = {}
    for each in top:
        token, value = (each.get("token"), each.get("logprob")) if isinstance(each, dict) else (None, None)
        if not isinstance(token, str) or not isinstance(value, int | float) or not math.isfinite(value):
            continue  # a token of probability 0 has minus infinity
        shares.setdefault(token.strip(" \u0120\u2581"), []).append(float(value))
    lacking = [target for target in question.targets if target not in shares]
    if lacking:
        return Failure(
            f"options not scored: {', '.join(lacking)} are not among the {len(top)} likely tokens that the"
            " server gives; raise --endpoint.top-logprobs, and vLLM's --max-logprobs, or give --ways"
            " generate",
            passes=True,
        )
    found = (shares[target] for target in question.targets)
    return tuple(max(each) + math.log(sum(math.exp(one - max(each)) for one in each)) for each in found)


def _tokens(usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def quoted(body: bytes, key: str | None) -> str:
    """The beginning of what a server says, without the key: some quote keys that they refuse."""
    text = " ".join(body.decode("utf-8", "replace").split())
    if key:
        escaped = json.dumps(key)[1:-1]
        for form in (key, escaped, escaped.replace("/", r"\/")):
            text = text.replace(form, "[key]")
    return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}...") if text else "an empty answer"
