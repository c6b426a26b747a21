"""A decoder in a thread of its own, which is given up where it does not answer in time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

DecodeBatch = Callable[[Sequence[NDArray[np.uint8]], Sequence[NDArray[np.int32]]], list[Tensor]]
"""Files and the frames to take of each -> uint8 [K, H, W, 3] for each; RuntimeError if one is refused."""

JOIN_SECONDS: Final = 5.0
"""Longest that `close` waits for the decoder to be dropped."""


class WatchedDecoder:
    """Calls a decoder that can hang. Not thread-safe: one thread calls and closes it.

    make: makes the decoder, in the thread that then calls it and drops it; also after one that was given up.
    timeout: seconds for a call. start: further seconds for the first call of each decoder.

    A thread that hangs cannot be ended. It is a daemon, so it does not keep the interpreter from its exit;
    where its call does come back, it drops its decoder and ends.
    """

    def __init__(self, make: Callable[[], DecodeBatch], timeout: float, start: float) -> None:
        self._make = make
        self._timeout = timeout
        self._start = start
        self._calls: _Calls | None = None
        self._thread: threading.Thread | None = None

    def __call__(
        self, files: Sequence[NDArray[np.uint8]], frames: Sequence[NDArray[np.int32]]
    ) -> list[Tensor]:
        """What the decoder gives or raises; TimeoutError where it does not answer.

        After that, the next call makes another decoder.
        """
        patience = self._timeout
        if self._calls is None:
            patience += self._start
            self._calls = queue.SimpleQueue()
            self._thread = threading.Thread(
                target=_serve, args=(self._make, self._calls), name="surgrec-dali-decode", daemon=True
            )
            self._thread.start()
        answer: Future[list[Tensor]] = Future()
        self._calls.put((files, frames, answer))
        try:
            answer.exception(patience)
        except TimeoutError:
            self._calls.put(None)
            self._calls = self._thread = None
            raise
        return answer.result()

    def close(self) -> None:
        """Drops the decoder. A later call makes another."""
        if self._calls is not None and self._thread is not None:
            self._calls.put(None)
            self._thread.join(JOIN_SECONDS)
        self._calls = self._thread = None


_Calls = queue.SimpleQueue[
    tuple[Sequence[NDArray[np.uint8]], Sequence[NDArray[np.int32]], Future[list[Tensor]]] | None
]


def _serve(make: Callable[[], DecodeBatch], calls: _Calls) -> None:
    decode: DecodeBatch | None = None
    while (call := calls.get()) is not None:
        files, frames, answer = call
        try:
            if decode is None:
                decode = make()
            answer.set_result(decode(files, frames))
        except BaseException as error:  # the caller gets it from the future
            answer.set_exception(error)
        del call, files, frames, answer  # let go of the frames before waiting
