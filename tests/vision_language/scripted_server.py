"""A server of chat completions that does what a test's script says, and remembers what it was asked."""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Action:
    """What the server does with a request. body: bytes as they are sent. cut: bytes of the body after which
    the connection is reset; wait: seconds before the answer; hang: until the server is closed."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    wait: float = 0.0
    hang: bool = False


def completion(text: str | None, finish: str = "stop", **choice: Any) -> bytes:
    """The body of a whole answer."""
    made = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, **choice}
    usage = {"prompt_tokens": 77, "completion_tokens": 3, "total_tokens": 80}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [made], "usage": usage}).encode()


def good(payload: dict[str, Any]) -> Action:
    """The second option, or a likelihood for each of ten letters, with and without a space before it."""
    if not payload.get("logprobs"):
        return Action(body=completion("B"))
    top = [{"token": letter, "logprob": math.log(0.05)} for letter in LETTERS]
    top += [{"token": f" {letter}", "logprob": math.log((k + 1) / 200)} for k, letter in enumerate(LETTERS)]
    top = top[: payload["top_logprobs"]]
    return Action(body=completion("A", logprobs={"content": [{"token": "A", "top_logprobs": top}]}))


Script = Callable[[dict[str, Any], int], Action]
"""What to do with a payload, and how many requests came before it."""


@dataclass
class Server:
    """url: of the API. seen: payloads, in the order in which they came. answered: of those whose answer was
    sent whole; headers: theirs; times: when they came."""

    url: str
    script: Script
    seen: list[dict[str, Any]] = field(default_factory=list)
    answered: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_at_a_time: int = 0
    under_way: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)


def text_of(payload: dict[str, Any]) -> str:
    """What the user asks."""
    text = payload["messages"][-1]["content"][-1]["text"]
    assert isinstance(text, str)
    return text


@contextmanager
def serve(script: Script) -> Iterator[Server]:
    """A server on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.guard:
                number = len(server.seen)
                server.seen.append({**payload, "path": self.path})
                server.headers.append(dict(self.headers))
                server.times.append(time.monotonic())
                server.under_way += 1
                server.most_at_a_time = max(server.most_at_a_time, server.under_way)
            try:
                self._do(payload, server.script(payload, number))
            finally:
                with server.guard:
                    server.under_way -= 1

        def _do(self, payload: dict[str, Any], action: Action) -> None:
            if action.hang:
                server.closing.wait()
            server.closing.wait(action.wait)
            try:
                self.send_response(action.status)
                for name, value in action.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(action.body)))
                self.end_headers()
                self.wfile.write(action.body[: action.cut])
                if action.cut is not None:
                    linger = struct.pack("ii", 1, 0)  # close() resets the connection
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.close_connection = True
                    return
                with server.guard:
                    server.answered.append(payload)
            except OSError:
                self.close_connection = True  # the client went away

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1", script)
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            http.shutdown()
            thread.join()
