"""The NVDEC sessions of an engine: idle ones wait by format, the least recently used give way to new ones."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from surgrec.loaders.engines.threads import Closable

S = TypeVar("S", bound=Closable)
REUSE_SECONDS: Final = 0.2
"""Longest wait for a session of one's own key that is in use, before idle ones of other keys give way."""
AT_ONCE: Final = 2
"""New sessions of a key without a decoder: the driver makes one after the other, and those that are there
already decode meanwhile."""
FIRST_SECONDS: Final = 1.0
"""Longest wait for the decoders of new sessions, before another session is made all the same."""


@dataclass(eq=False, slots=True)
class _Entry(Generic[S]):
    """thread: which has it, or had it last."""

    key: Hashable
    session: S
    nbytes: int
    thread: int


class SessionPool(Generic[S]):
    """Hands out sessions, each to one thread at a time, and bounds the memory of all of them together.

    A session belongs to a key (codec, coded size, depth): the hardware's decoder behind it is made for one
    format, and costs 50 to 100 ms. It is kept for its next use until its memory is wanted for another.

    make: a session of a key. size: bytes that a session takes, 0 as long as it has not decoded. capacity:
    bytes of all sessions, idle and in use. One session is always let through, however large.
    """

    def __init__(self, make: Callable[[Hashable], S], size: Callable[[S], int], capacity: int) -> None:
        self._make = make
        self._size = size
        self._capacity = capacity
        self._idle: list[_Entry[S]] = []  # the most recently used last
        self._used: dict[int, _Entry[S]] = {}  # by the session's id
        self._lost: set[int] = set()  # ids of sessions in use by threads that were given up
        self._waiting: dict[Hashable, deque[object]] = {}  # by key, first come first served
        self._making = 0
        self._held = 0
        self._changed = threading.Condition()
        self._closed = False

    @property
    def held(self) -> int:
        """Bytes of all sessions, as far as is known; those of threads that were given up do not count."""
        return self._held

    def take(self, key: Hashable, expected: int, until: float) -> S | None:
        """An idle session of the key, the one used last, or a new one; those who wait for a key take turns.

        expected: bytes that a new one will take. until: when to stop waiting, in time.monotonic(), for memory
        that sessions in use hold. None where none of it comes free in that time.
        """
        unused: list[_Entry[S]] = []
        asked = time.monotonic()
        settle, firsts = min(until, asked + REUSE_SECONDS), min(until, asked + FIRST_SECONDS)
        ticket = object()
        with self._changed:
            line = self._waiting.setdefault(key, deque())
            line.append(ticket)
            while True:
                entry, room, now = None, False, time.monotonic()
                wake = until
                if line[0] is ticket:
                    entry = self._pop_idle(key)
                    used = [other for other in self._used.values() if other.key == key]
                    if entry is None and now < firsts and self._without_decoder(used) >= AT_ONCE:
                        wake = firsts
                    elif entry is None:
                        patient = bool(used) and now < settle
                        wake = settle if patient else until
                        room = self._make_room(expected, not patient, unused)
                if entry is not None or room or now >= until or self._closed:
                    break
                self._changed.wait(wake - now)
            line.remove(ticket)
            if not line:
                del self._waiting[key]
            elif entry is not None or room:
                self._changed.notify_all()  # the next one is first now
        for old in unused:
            old.session.close()
        if room:
            return self._new(key, expected)
        return None if entry is None else entry.session

    def give_back(self, session: S) -> None:
        """Keeps a session for its next use; closes those idle the longest where there are too many."""
        unused: list[_Entry[S]] = []
        with self._changed:
            entry = self._used.pop(id(session), None)
            if entry is not None:
                nbytes = self._size(session) or entry.nbytes
                self._held += nbytes - entry.nbytes
                entry.nbytes = nbytes
                self._idle.append(entry)
                while self._idle and (self._closed or self._held > self._capacity):
                    unused.append(self._drop_oldest())
            self._changed.notify_all()
        if entry is None:
            self._forget(session)
        for old in unused:
            old.session.close()

    def discard(self, session: S) -> None:
        """Closes a session in use that must not be used again."""
        with self._changed:
            entry = self._used.pop(id(session), None)
            self._held -= 0 if entry is None else entry.nbytes
            self._changed.notify_all()
        self._forget(session)

    def give_up(self, thread: int) -> None:
        """Counts the sessions no more that a thread (its identifier) has, which may never give them back."""
        with self._changed:
            for number, entry in list(self._used.items()):
                if entry.thread == thread:
                    self._held -= self._used.pop(number).nbytes
                    self._lost.add(number)
            self._changed.notify_all()

    def close_idle(self) -> int:
        """Closes all sessions that nobody uses; how many there were."""
        with self._changed:
            unused = [self._drop_oldest() for _ in range(len(self._idle))]
            self._changed.notify_all()
        for entry in unused:
            entry.session.close()
        return len(unused)

    def close(self) -> None:
        """Closes idle sessions now, and the others as they come back."""
        self._closed = True
        self.close_idle()

    def _without_decoder(self, used: list[_Entry[S]]) -> int:
        """How many of these have no decoder yet; those that are being made count, whatever their key."""
        return self._making + sum(not self._size(entry.session) for entry in used)

    def _forget(self, session: S) -> None:
        self._lost.discard(id(session))
        session.close()

    def _pop_idle(self, key: Hashable) -> _Entry[S] | None:
        """An idle session of the key, in use from now on."""
        for place in range(len(self._idle) - 1, -1, -1):
            if self._idle[place].key == key:
                entry = self._idle.pop(place)
                entry.thread = threading.get_ident()
                self._used[id(entry.session)] = entry
                return entry
        return None

    def _make_room(self, expected: int, evict: bool, unused: list[_Entry[S]]) -> bool:
        """Whether there is room for a new session, which counts from now on.

        evict: whether idle sessions may give way, as many as must; they are appended to `unused`. None does
        where all of them together would not be enough.
        """
        free = self._capacity - self._held
        idle = sum(entry.nbytes for entry in self._idle) if evict else 0
        alone = evict and not (self._used or self._making)
        if expected > free + idle and not alone:
            return False
        while self._idle and evict and self._held + expected > self._capacity:
            unused.append(self._drop_oldest())
        self._held += expected
        self._making += 1
        return True

    def _new(self, key: Hashable, expected: int) -> S:
        try:
            session = self._make(key)
        except BaseException:
            with self._changed:
                self._held -= expected
                self._making -= 1
                self._changed.notify_all()
            raise
        with self._changed:
            self._making -= 1
            self._used[id(session)] = _Entry(key, session, expected, threading.get_ident())
        return session

    def _drop_oldest(self) -> _Entry[S]:
        entry = self._idle.pop(0)
        self._held -= entry.nbytes
        return entry
