"""Asking a server of chat completions, as OpenAI, vLLM and SGLang have it: several requests at a time."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

import httpx
from PIL import Image

from surgrec.configs.vlm import EndpointConfig, Kind
from surgrec.training.console import format_duration
from surgrec.vision_language.backend import BackendError, Failure, Request, Take
from surgrec.vision_language.endpoint_reply import REFUSED, ServerFailure, quoted, read_response
from surgrec.vision_language.frames import Pictures
from surgrec.vision_language.pacing import Pace, backoff
from surgrec.vision_language.records import Question, Reply

CONNECT_SECONDS: Final = 10.0
MOST_BYTES: Final = 1 << 24
"""Of an answer; a server that sends more sends junk."""
LONGEST_HELD: Final = 600.0
"""Seconds that a server may ask to wait; one that asks for more ends the run."""


class EndpointBackend:
    """A model behind a URL."""

    def __init__(
        self, model: str, config: EndpointConfig, kind: Kind, max_new_tokens: int, seed: int, key: str | None
    ) -> None:
        """key: sent as a bearer token, and written nowhere. Raises BackendError for options that make no
        sense."""
        check_endpoint(config, kind)
        self._model, self._config, self._most, self._seed, self._key = (
            model,
            config,
            max_new_tokens,
            seed,
            key,
        )
        self._failed = 0
        self._failing: set[str] = set()
        self._urls: tuple[str, list[str]] = ("", [])
        image: dict[str, Any] = {"image": config.image}
        if config.image == "jpeg":
            image["quality"] = config.quality
        self.settings: Mapping[str, Any] = {
            **image,
            "max_new_tokens": max_new_tokens,
            "temperature": config.temperature,
        }

    def tokens(self, question: Question, pictures: Pictures) -> None:
        """Only the server could count them."""

    def prepare(self) -> None:
        """The server has its model loaded."""

    def ask(self, requests: Iterator[Request], take: Take) -> None:
        """As Backend has it. Raises BackendError, too, where the server fails all requests of a while."""
        try:
            asyncio.run(self._ask_all(requests, take))
        except BaseExceptionGroup as group:
            # The first one that a worker raised has stopped the others.
            raise _first(group) from None

    async def _ask_all(self, requests: Iterator[Request], take: Take) -> None:
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        timeout = httpx.Timeout(self._config.timeout, connect=min(CONNECT_SECONDS, self._config.timeout))
        limits = httpx.Limits(max_connections=self._config.concurrency)
        pace, turn = Pace(self._config.requests_per_minute), asyncio.Lock()
        async with httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits) as client:

            async def work() -> None:
                while True:
                    async with turn:
                        # Decoding and packing would keep the answers of others waiting.
                        found = await asyncio.to_thread(self._packed, requests)
                    if found is None:
                        return
                    request, payload = found
                    answer = await self._answer(client, pace, request, payload)
                    take(request, answer)
                    self._watch(request, answer)

            async with asyncio.TaskGroup() as group:
                for _ in range(self._config.concurrency):
                    group.create_task(work())

    def _packed(self, requests: Iterator[Request]) -> tuple[Request, dict[str, Any]] | None:
        """The next request, and what is sent for it."""
        request = next(requests, None)
        if request is None:
            return None
        question = request.question
        if self._urls[0] != request.pictures.shown.digest:  # a clip's questions come one after the other
            urls = [self._data_url(frame) for frame in request.pictures.pixels]
            self._urls = request.pictures.shown.digest, urls
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": url}} for url in self._urls[1]
        ]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [*content, {"type": "text", "text": question.text}]}
        ]
        if question.system:
            messages.insert(0, {"role": "system", "content": question.system})
        most = 1 if request.way == "options" else self._most
        payload: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            self._config.length_field: most,
        }
        if self._config.temperature is not None:
            payload["temperature"] = self._config.temperature
        if request.way == "options":
            if question.style != "letters":
                raise BackendError(
                    f"prompt {question.prompt!r} names its options, and a server tells likelihoods of first"
                    " tokens only: give prompts with lettered options, --ways generate, or an hf: model"
                )
            payload |= {"logprobs": True, "top_logprobs": self._config.top_logprobs}
        return request, payload

    def _data_url(self, frame: Any) -> str:
        buffer, kind = io.BytesIO(), self._config.image
        more = {"quality": self._config.quality, "subsampling": 0} if kind == "jpeg" else {}
        Image.fromarray(frame).save(buffer, kind, **more)
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"

    async def _answer(
        self, client: httpx.AsyncClient, pace: Pace, request: Request, payload: dict[str, Any]
    ) -> Reply | Failure:
        """Of one request, tried again as long as that may help."""
        failures = 0
        while True:
            await pace.turn()
            try:
                return await self._once(client, request, payload)
            except ServerFailure as error:
                failures += 1
                if failures > self._config.retries:
                    tries = f" ({failures} tries)" if failures > 1 else ""
                    return Failure(f"{error}{tries}", passes=True)
                wait = backoff(self._seed, request.key, failures, self._config.backoff)
                if error.wait is not None:
                    if error.wait > LONGEST_HELD:
                        raise BackendError(
                            f"{self._config.url}: asks to wait {format_duration(error.wait)} ({error}). What"
                            " was answered is kept: the same command goes on then"
                        ) from error
                    pace.hold(error.wait)
                    wait = max(wait, error.wait)
                await asyncio.sleep(wait)

    async def _once(
        self, client: httpx.AsyncClient, request: Request, payload: dict[str, Any]
    ) -> Reply | Failure:
        url = f"{self._config.url.rstrip('/')}/chat/completions"
        began = time.monotonic()
        try:
            # The client's bounds are for each read; a server that drips bytes is bounded here.
            async with (
                asyncio.timeout(self._config.timeout),
                client.stream("POST", url, json=payload) as response,
            ):
                body = b""
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > MOST_BYTES:
                        raise ServerFailure(f"junk: an answer of more than {MOST_BYTES >> 20} MiB")
        except (httpx.TimeoutException, TimeoutError) as error:
            raise ServerFailure(f"timeout: no answer after {time.monotonic() - began:.1f} s") from error
        except httpx.DecodingError as error:
            raise ServerFailure(f"junk: the answer cannot be decompressed ({error})") from error
        except httpx.TransportError as error:
            raise ServerFailure(f"connection: {error or type(error).__name__}") from error
        return read_response(
            response.status_code,
            response.headers,
            body,
            request.question,
            request.way,
            self._config.key_variable,
            partial(quoted, key=self._key),
        )

    def _watch(self, request: Request, answer: Reply | Failure) -> None:
        """Raises BackendError where nothing but failures came for a while."""
        if isinstance(answer, Reply) or not answer.passes:
            self._failed = 0
            self._failing.clear()
            return
        self._failed += 1
        # A filter that does not like the pictures of one clip refuses them in every wording.
        of_clip = answer.reason.startswith(REFUSED)
        self._failing.add(request.pictures.shown.digest if of_clip else request.key)
        if len(self._failing) >= max(4, 2 * self._config.concurrency):
            raise BackendError(
                f"{self._config.url}: the last {self._failed} requests have failed, the last one by:"
                f" {answer.reason}. What was answered is kept: the same command goes on once the server"
                " answers"
            )


def key_from(config: EndpointConfig) -> str | None:
    """The key that the environment holds. Raises BackendError for one that cannot be sent."""
    key = os.environ.get(config.key_variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise BackendError(
            f"the environment variable {config.key_variable} holds no key: it is not printable ASCII"
        )
    return key or None


def check_endpoint(config: EndpointConfig, kind: Kind) -> None:
    """Raises BackendError for options that make no sense."""
    try:
        url = httpx.URL(config.url)
    except httpx.InvalidURL as error:
        raise BackendError(f"--endpoint.url is no URL ({error})") from error
    if url.userinfo or url.query:
        raise BackendError(
            "--endpoint.url holds a user, a password or a query, which would be seen by others; put the"
            " key into"
            f" the environment variable {config.key_variable}"
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise BackendError(f"--endpoint.url is {config.url!r}; it begins with http:// or https:// and a host")
    if kind == "video":
        raise BackendError("servers take pictures, not videos; give --look.kind frames, or an hf: model")
    bounds = {"concurrency": 1, "retries": 0, "top_logprobs": 1, "quality": 1}
    if config.requests_per_minute is not None:
        bounds["requests_per_minute"] = 1
    for name, least in bounds.items():
        if getattr(config, name) < least:
            option = name.replace("_", "-")
            raise BackendError(f"--endpoint.{option} is {getattr(config, name)}; it is at least {least}")
    if config.quality > 100:
        raise BackendError(f"--endpoint.quality is {config.quality}; it is at most 100")
    if config.temperature is not None and not 0 <= config.temperature <= 2:
        raise BackendError(f"--endpoint.temperature is {config.temperature}; it is between 0 and 2, or None")
    for name in ("backoff", "timeout"):
        if not 0 < getattr(config, name) < float("inf"):
            raise BackendError(
                f"--endpoint.{name} is {getattr(config, name)}; it is a number of seconds above 0"
            )


def _first(group: BaseExceptionGroup) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
