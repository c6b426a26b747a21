"""The endpoint: each thing that a server can do wrong has its name, and only what may pass is tried again."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from surgrec.configs.vlm import EndpointConfig

from surgrec.vision_language.backend import BackendError, Failure, Request
from surgrec.vision_language.endpoint import EndpointBackend, key_from
from surgrec.vision_language.endpoint_reply import quoted, retry_after
from surgrec.vision_language.frames import Pictures
from surgrec.vision_language.pacing import LONGEST, backoff
from surgrec.vision_language.records import Question, Reply, Shown, Way

KEY = "sk-very-secret-0123"
FAST = EndpointConfig(backoff=0.01, timeout=5.0, concurrency=1, retries=2)
Answers = dict[str, Reply | Failure]


def request_of(number: int, way: Way = "generate", style: Any = "letters", pictures: int = 1) -> Request:
    """A question of its own, with pictures that differ from all others."""
    question = Question(number, "plain", style, (0, 1), "", f"Question {number}?", ("A", "B"))
    pixels = np.full((pictures, 24, 32, 3), number % 250, np.uint8)
    pixels[0, :12] = (200, 30, 90)
    return Request(str(number), question, way, Pictures(Shown((), (), pictures, 24, 32, str(number)), pixels))


def ask(server: Any, config: EndpointConfig, *requests: Request, key: str | None = None) -> Answers:
    """What came of each request, by its key."""
    found: Answers = {}

    def take(request: Request, answer: Reply | Failure) -> None:
        assert request.key not in found
        found[request.key] = answer

    backend = EndpointBackend("m", replace(config, url=server.url), "middle", 16, 0, key)
    backend.ask(iter(requests), take)
    return found


def test_what_is_sent(scripted: ModuleType) -> None:
    request = request_of(7, pictures=2)
    request = replace(request, question=replace(request.question, system="Be brief."))
    with scripted.serve(lambda payload, number: scripted.good(payload)) as server:
        answers = ask(server, replace(FAST, image="png"), request, key=KEY)
        assert answers["7"] == Reply("B", (), (), "stop", 77, 3)
        sent = server.seen[0]
        assert sent["path"] == "/v1/chat/completions"
        assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("m", 0, 16)
        assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
        *images, text = sent["messages"][1]["content"]
        assert text == {"type": "text", "text": "Question 7?"}
        for image, pixels in zip(images, request.pictures.pixels, strict=True):
            kind, _, data = image["image_url"]["url"].partition(";base64,")
            assert kind == "data:image/png"
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        ask(server, replace(FAST, temperature=None, length_field="max_completion_tokens"), request)
        assert "temperature" not in server.seen[-1]
        assert "max_tokens" not in server.seen[-1]
        assert server.seen[-1]["max_completion_tokens"] == 16
        sizes = []
        for quality in (20, 95):
            ask(server, replace(FAST, quality=quality), request)
            url = server.seen[-1]["messages"][1]["content"][0]["image_url"]["url"]
            assert url.startswith("data:image/jpeg;base64,/9j/")
            assert "Authorization" not in server.headers[-1]
            sizes.append(len(url))
        assert sizes[0] < sizes[1]


Make = Callable[[ModuleType], Any]
PASSING: dict[str, tuple[Make, str]] = {
    "server error": (lambda s: s.Action(500, b"oh dear"), "server error: status 500: 'oh dear'"),
    "bad gateway": (lambda s: s.Action(502, b"<html>"), "server error: status 502"),
    "rate limited": (lambda s: s.Action(429, b"slow down"), "rate limited: status 429: 'slow down'"),
    "not JSON": (lambda s: s.Action(body=b"<html>hello</html>"), "junk: the answer is not JSON"),
    "truncated JSON": (lambda s: s.Action(body=s.completion("B")[:40]), "junk: the answer is not JSON"),
    "not UTF-8": (lambda s: s.Action(body=b'{"a": "\xff\xfe"}'), "junk: the answer is not UTF-8"),
    "nothing": (lambda s: s.Action(), "junk: the answer is not JSON"),
    "no choices": (lambda s: s.Action(body=b'{"choices": []}'), "junk: the answer has no choices"),
    "a list": (lambda s: s.Action(body=b"[1, 2]"), "junk: the answer has no choices"),
    "strange choices": (lambda s: s.Action(body=b'{"choices": [3]}'), "junk: the answer has no choices"),
    "no text": (lambda s: s.Action(body=s.completion(None)), "junk: the message has no text"),
    "half a pair": (lambda s: s.Action(body=s.completion("\ud800")), "junk: the text holds halves"),
    "deep": (lambda s: s.Action(body=b"[" * 100_000), "junk: the answer is not JSON"),
    "no gzip": (
        lambda s: s.Action(body=b"no gzip", headers={"Content-Encoding": "gzip"}),
        "junk: the answer cannot be decompressed",
    ),
    "cut": (lambda s: s.Action(body=s.completion("B"), cut=30), "connection: "),
    "cut at once": (lambda s: s.Action(body=s.completion("B"), cut=0), "connection: "),
}


@pytest.mark.parametrize("name", sorted(PASSING))
def test_what_may_pass_is_tried_again(scripted: ModuleType, name: str) -> None:
    make, reason = PASSING[name]
    with scripted.serve(lambda p, number: make(scripted) if number < 2 else scripted.good(p)) as server:
        assert ask(server, FAST, request_of(1)) == {"1": Reply("B", (), (), "stop", 77, 3)}
        assert len(server.seen) == 3
    with scripted.serve(lambda payload, number: make(scripted)) as server:
        (failure,) = ask(server, FAST, request_of(1)).values()
        assert isinstance(failure, Failure)
        assert failure.passes
        assert failure.reason.startswith(reason)
        assert failure.reason.endswith("(3 tries)")
        assert len(server.seen) == 3


def test_slow_servers(scripted: ModuleType) -> None:
    with scripted.serve(lambda payload, number: scripted.Action(hang=True)) as server:
        (failure,) = ask(server, replace(FAST, timeout=0.2, retries=1), request_of(1)).values()
        assert isinstance(failure, Failure)
        assert failure.reason.startswith("timeout: no answer after 0.2 s")
        assert len(server.seen) == 2


LASTING: dict[str, tuple[int, bytes, str]] = {
    "OpenAI": (
        400,
        b'{"error": {"code": "context_length_exceeded", "message": "maximum context length is 4096"}}',
        "context overflow: ",
    ),
    "vLLM": (
        400,
        b'{"message": "The decoder prompt is longer than the maximum model length"}',
        "context overflow: ",
    ),
    "too large": (413, b"too many tokens", "context overflow: "),
}


@pytest.mark.parametrize("name", sorted(LASTING))
def test_context_overflow_is_not_tried_again(scripted: ModuleType, name: str) -> None:
    status, body, reason = LASTING[name]
    with scripted.serve(lambda payload, number: scripted.Action(status, body)) as server:
        (failure,) = ask(server, FAST, request_of(1)).values()
        assert isinstance(failure, Failure)
        assert failure.reason.startswith(reason)
        assert not failure.passes
        assert len(server.seen) == 1


def test_what_is_refused_is_not_tried_again(scripted: ModuleType) -> None:
    with scripted.serve(lambda payload, number: scripted.Action(400, b"no such field: max_tokens")) as server:
        (failure,) = ask(server, FAST, request_of(1)).values()
        assert failure == Failure("refused: status 400: 'no such field: max_tokens'", passes=True)
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "unauthorized"),
        (403, "unauthorized"),
        (404, "check --endpoint.url"),
        (307, "check --endpoint.url"),
    ],
)
def test_what_every_request_would_have_ends_the_run(scripted: ModuleType, status: int, text: str) -> None:
    """And the key that the server quotes is written nowhere."""
    action = scripted.Action(status, f"Incorrect API key provided: {KEY}".encode())
    with scripted.serve(lambda payload, number: action) as server:
        requests = [request_of(number) for number in range(20)]
        with pytest.raises(BackendError, match=text) as caught:
            ask(server, replace(FAST, concurrency=4), *requests, key=KEY)
        assert KEY not in str(caught.value)
        assert "OPENAI_API_KEY" in str(caught.value) or status not in (401, 403)
        assert len(server.seen) <= 4
        (failure,) = ask_failing(scripted, KEY).values()
        assert isinstance(failure, Failure)
        assert KEY not in failure.reason
        assert "[key]" in failure.reason


@pytest.mark.parametrize("key", [KEY, "sk/with/slashes", 'sk-"quote', r"sk\back"])
def test_no_part_of_a_key_is_quoted(key: str) -> None:
    """Wherever a message is cut, and as JSON has it."""
    for before in range(170, 202):
        said = quoted(b"x" * before + f" {key} was refused".encode(), key)
        assert not any(key[:k] in said for k in range(4, len(key) + 1))
    for body in (json.dumps({"error": key}), json.dumps({"error": key}).replace("/", r"\/")):
        assert quoted(body.encode(), key) == repr('{"error": "[key]"}')


def test_a_short_key_changes_no_name(scripted: ModuleType) -> None:
    """Servers that need no key are given one such as `x`."""
    with scripted.serve(lambda payload, number: scripted.Action(400, b"context length exceeded")) as server:
        (failure,) = ask(server, FAST, request_of(1), key="x").values()
        assert failure == Failure("context overflow: 'conte[key]t length e[key]ceeded'", passes=False)


def ask_failing(scripted: ModuleType, key: str) -> Answers:
    """Of a server that quotes the key in an error that may pass."""
    with scripted.serve(lambda payload, number: scripted.Action(500, f"key {key}".encode())) as server:
        return ask(server, FAST, request_of(1), key=key)


def test_a_server_that_is_down_ends_the_run(scripted: ModuleType) -> None:
    with scripted.serve(lambda payload, number: scripted.good(payload)) as server:
        pass
    found: Answers = {}
    config = replace(FAST, url=server.url, retries=1, concurrency=3)
    backend = EndpointBackend("m", config, "middle", 16, 0, None)
    with pytest.raises(BackendError, match="the last 6 requests have failed, the last one by: connection: "):
        backend.ask((request_of(k) for k in range(1000)), lambda r, a: found.__setitem__(r.key, a))
    assert 6 <= len(found) <= 8
    assert all(isinstance(answer, Failure) and answer.passes for answer in found.values())


def test_single_failures_do_not_end_it(scripted: ModuleType) -> None:
    """Every second question fails for good, and all others are answered."""

    def script(payload: dict[str, Any], number: int) -> Any:
        odd = int(scripted.text_of(payload).split()[1].rstrip("?")) % 2
        return scripted.Action(500) if odd else scripted.good(payload)

    with scripted.serve(script) as server:
        config = replace(FAST, concurrency=4, retries=0)
        answers = ask(server, config, *(request_of(number) for number in range(40)))
        assert len(answers) == len(server.seen) == 40
        assert all(isinstance(answers[str(k)], Failure if k % 2 else Reply) for k in range(40))


def test_retry_after_is_obeyed_by_all(scripted: ModuleType) -> None:
    wait = 0.6
    action = scripted.Action(429, headers={"Retry-After": str(wait)})

    def script(payload: dict[str, Any], number: int) -> Any:
        return action if number == 0 else scripted.good(payload)

    with scripted.serve(script) as server:
        config = replace(FAST, concurrency=1)
        answers = ask(server, config, *(request_of(number) for number in range(3)))
        assert all(isinstance(answer, Reply) for answer in answers.values())
        assert server.times[1] - server.times[0] >= wait
        assert len(server.seen) == 4


def test_a_wait_of_a_day_ends_the_run(scripted: ModuleType) -> None:
    action = scripted.Action(429, b"daily limit", {"Retry-After": "86400"})
    with scripted.serve(lambda payload, number: action) as server:
        with pytest.raises(
            BackendError, match=r"asks to wait 1 d.* \(rate limited: status 429: 'daily limit'\)"
        ):
            ask(server, FAST, request_of(1))
        assert len(server.seen) == 1


def test_a_clip_that_a_filter_refuses_does_not_end_it(scripted: ModuleType) -> None:
    """In any number of wordings; where many clips are refused, it is not for their sake."""

    def of_clip(number: int, clip: int) -> Request:
        request = request_of(number)
        return replace(
            request,
            pictures=replace(request.pictures, shown=replace(request.pictures.shown, digest=str(clip))),
        )

    with scripted.serve(lambda payload, number: scripted.Action(400, b"content_filter")) as server:
        answers = ask(server, FAST, *(of_clip(number, number // 30) for number in range(90)))
        assert len(answers) == len(server.seen) == 90
        with pytest.raises(
            BackendError, match="the last 34 requests have failed, the last one by: refused: "
        ):
            ask(server, FAST, *(of_clip(number, max(0, number - 30)) for number in range(90)))


def test_retry_after_is_read_as_the_standard_has_it() -> None:
    assert retry_after(None) is None
    assert retry_after("12") == 12
    assert retry_after("-5") == 0
    for junk in ("soon", "nan", "inf", "", "Wed, 21 Oct 99999999999 07:28:00 GMT"):
        assert retry_after(junk) is None
    when = datetime.now(UTC) + timedelta(seconds=30)
    found = retry_after(format_datetime(when, usegmt=True))
    assert found is not None
    assert 27 < found <= 30


def test_waits_grow_and_differ_between_requests() -> None:
    for failures in range(1, 12):
        longest = min(0.5 * 2 ** (failures - 1), LONGEST)
        waits = [backoff(3, f"key{k}", failures, 0.5) for k in range(50)]
        assert all(longest / 2 <= wait <= longest for wait in waits)
        assert len(set(waits)) == 50
        assert max(waits) - min(waits) > longest / 4
        assert waits[0] == backoff(3, "key0", failures, 0.5) != backoff(4, "key0", failures, 0.5)


def test_requests_per_minute(scripted: ModuleType) -> None:
    with scripted.serve(lambda payload, number: scripted.good(payload)) as server:
        config = replace(FAST, requests_per_minute=600, concurrency=4)
        began = time.monotonic()
        ask(server, config, *(request_of(number) for number in range(8)))
        assert time.monotonic() - began >= 0.7
        gaps = np.diff(server.times)
        assert gaps.min() > 0.05


def test_likelihoods_of_letters(scripted: ModuleType) -> None:
    with scripted.serve(lambda payload, number: scripted.good(payload)) as server:
        (reply,) = ask(server, FAST, request_of(1, "options")).values()
        assert isinstance(reply, Reply)
        np.testing.assert_allclose(np.exp(reply.log_likelihoods), [0.05 + 0.005, 0.05 + 0.01])
        assert reply.tokens == (1, 1)
        (sent,) = server.seen
        assert (sent["max_tokens"], sent["logprobs"], sent["top_logprobs"]) == (1, True, 20)
        # One likely token is not enough for two letters.
        (failure,) = ask(server, replace(FAST, top_logprobs=1), request_of(1, "options")).values()
        assert isinstance(failure, Failure)
        assert failure.reason.startswith("options not scored: B are not among the 1 likely tokens")
        with pytest.raises(BackendError, match="give prompts with lettered options"):
            ask(server, FAST, request_of(1, "options", "names"))
    silent = scripted.Action(body=scripted.completion("A"))
    with (
        scripted.serve(lambda payload, number: silent) as server,
        pytest.raises(BackendError, match="gives no top_logprobs, which `options` needs"),
    ):
        ask(server, FAST, request_of(1, "options"))


def test_what_a_filter_holds_back_is_an_answer(scripted: ModuleType) -> None:
    action = scripted.Action(body=scripted.completion(None, "content_filter"))
    with scripted.serve(lambda payload, number: action) as server:
        assert ask(server, FAST, request_of(1)) == {"1": Reply("", (), (), "content_filter", 77, 3)}


def test_thoughts_that_took_all_tokens_are_an_answer(scripted: ModuleType) -> None:
    body = scripted.completion(None, "length")
    with scripted.serve(lambda payload, number: scripted.Action(body=body)) as server:
        assert ask(server, FAST, request_of(1)) == {"1": Reply("", (), (), "length", 77, 3)}
        assert len(server.seen) == 1


def test_usage_that_is_junk_is_not_known(scripted: ModuleType) -> None:
    body = json.loads(scripted.completion("B"))
    body["usage"] = {"prompt_tokens": "many", "completion_tokens": -1}
    with scripted.serve(lambda p, number: scripted.Action(body=json.dumps(body).encode())) as server:
        assert ask(server, FAST, request_of(1)) == {"1": Reply("B", (), (), "stop", None, None)}


def test_an_endless_answer_is_junk(scripted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgrec.vision_language.endpoint.MOST_BYTES", 1000)
    with scripted.serve(lambda p, number: scripted.Action(body=scripted.completion("B" * 2000))) as server:
        (failure,) = ask(server, FAST, request_of(1)).values()
        assert isinstance(failure, Failure)
        assert failure.reason.startswith("junk: an answer of more than")


def test_errors_of_the_questions_come_through(scripted: ModuleType) -> None:
    """A disk that is full while clips are read is no fault of the server."""

    def requests() -> Iterator[Request]:
        yield request_of(1)
        raise OSError(28, "No space left on device")

    with scripted.serve(lambda payload, number: scripted.good(payload)) as server:
        backend = EndpointBackend("m", replace(FAST, url=server.url), "middle", 16, 0, None)
        with pytest.raises(OSError, match="No space left"):
            backend.ask(requests(), lambda request, answer: None)


def test_options_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, text in (
        ({"url": "ftp://host/v1"}, "begins with http"),
        ({"url": "localhost:8000"}, "begins with http"),
        ({"url": "http://user:pass@host/v1"}, "holds a user, a password or a query"),
        ({"url": "http://host/v1?key=1"}, "holds a user, a password or a query"),
        ({"concurrency": 0}, "--endpoint.concurrency is 0"),
        ({"requests_per_minute": 0}, "--endpoint.requests-per-minute is 0"),
        ({"retries": -1}, "--endpoint.retries is -1"),
        ({"quality": 0}, "--endpoint.quality is 0"),
        ({"quality": 101}, "--endpoint.quality is 101"),
        ({"top_logprobs": 0}, "--endpoint.top-logprobs is 0"),
        ({"temperature": -1.0}, "--endpoint.temperature is -1.0"),
        ({"temperature": float("nan")}, "--endpoint.temperature is nan"),
        ({"timeout": 0.0}, "--endpoint.timeout is 0.0"),
        ({"backoff": float("nan")}, "--endpoint.backoff is nan"),
    ):
        with pytest.raises(BackendError, match=text) as caught:
            EndpointBackend("m", replace(EndpointConfig(), **given), "middle", 16, 0, None)  # type: ignore[arg-type]
        assert "pass@" not in str(caught.value)
    with pytest.raises(BackendError, match="servers take pictures, not videos"):
        EndpointBackend("m", EndpointConfig(), "video", 16, 0, None)
    monkeypatch.setenv("OTHER_KEY", f" {KEY}\n")
    assert key_from(EndpointConfig(key_variable="OTHER_KEY")) == KEY
    monkeypatch.setenv("OTHER_KEY", "sch\u00f6n")
    with pytest.raises(BackendError, match="OTHER_KEY holds no key"):
        key_from(EndpointConfig(key_variable="OTHER_KEY"))
    monkeypatch.delenv("OTHER_KEY")
    assert key_from(EndpointConfig(key_variable="OTHER_KEY")) is None
