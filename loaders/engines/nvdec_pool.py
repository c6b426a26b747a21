"""The NVDEC sessions of an engine: idle ones wait by format, the least recently used give way to new ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from surgrec.loaders.engines.threads import Closable

S = TypeVar("S", bound=Closable)


class SessionPool(Generic[S]):
    """Hands out sessions, each to one thread at a time.

    A session belongs to a key (codec, coded size, depth): the hardware's decoder behind it is made for one
    format, and costs 50 to 100 ms. Idle sessions are kept, at most `capacity` of them.
    """

    def __init__(self, make: Callable[[Hashable], S], capacity: int) -> None:
        self._make = make
        self._capacity = capacity
        self._idle: list[tuple[Hashable, S]] = []  # the most recently used last
        self._lock = threading.Lock()
        self._closed = False

    def take(self, key: Hashable) -> S:
        """An idle session of the key, the one used last, or a new one."""
        with self._lock:
            for place in range(len(self._idle) - 1, -1, -1):
                if self._idle[place][0] == key:
                    return self._idle.pop(place)[1]
        return self._make(key)

    def give_back(self, key: Hashable, session: S) -> None:
        """Keeps a session for its next use; closes those idle the longest where there are too many."""
        with self._lock:
            self._idle.append((key, session))
            surplus = len(self._idle) - (0 if self._closed else self._capacity)
            old, self._idle = self._idle[: max(0, surplus)], self._idle[max(0, surplus) :]
        for _, unused in old:
            unused.close()

    def close_idle(self) -> int:
        """Closes all sessions that nobody uses; how many there were."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, session in idle:
            session.close()
        return len(idle)

    def close(self) -> None:
        """Closes idle sessions now, and the others as they come back."""
        self._closed = True
        self.close_idle()
