"""Open files, shared by threads: the most recently used descriptors stay open, those in use always."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import threading
from collections import OrderedDict
from dataclasses import dataclass
from types import TracebackType


@dataclass(slots=True)
class _Entry:
    descriptor: int
    users: int


class FileCache:
    """Keeps up to `capacity` files open for reading.

        with cache.borrow(path) as descriptor:
            os.pread(descriptor, size, offset)

    A borrowed descriptor is never closed under its user; the capacity is passed while more are in use. It
    is at most half of the process's limit of open files, whatever is asked for.
    """

    def __init__(self, capacity: int = 512) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        half = capacity if limit == resource.RLIM_INFINITY else limit // 2
        self.capacity = max(1, min(capacity, half))
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def borrow(self, path: str) -> Loan:
        """A context manager that gives a descriptor; entering raises OSError as os.open does."""
        return Loan(self, path)

    def __len__(self) -> int:
        return len(self._entries)

    def close(self) -> None:
        """Closes all that is idle now, and the rest when it is handed back."""
        with self._lock:
            self._closed = True
            self._shrink(0)

    def _acquire(self, path: str) -> _Entry:
        with self._lock:
            if self._closed:
                raise ValueError("the file cache is closed")
            entry = self._entries.get(path)
            if entry is not None:
                entry.users += 1
                self._entries.move_to_end(path)
                return entry
        descriptor = self._open(path)  # outside the lock: a slow disk must not hold up the other threads
        with self._lock:
            entry = self._entries.get(path)
            if entry is None:
                entry = self._entries[path] = _Entry(descriptor, 0)
            else:  # another thread was faster
                os.close(descriptor)
            entry.users += 1
            self._entries.move_to_end(path)
            self._shrink(self.capacity)
            return entry

    def _open(self, path: str) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            return os.open(path, flags)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        with self._lock:
            self._shrink(0)
        return os.open(path, flags)

    def _release(self, entry: _Entry) -> None:
        with self._lock:
            entry.users -= 1
            if self._closed or len(self._entries) > self.capacity:
                self._shrink(0 if self._closed else self.capacity)

    def _shrink(self, size: int) -> None:
        """Closes idle files, the least recently used first, until `size` are open. Needs the lock."""
        surplus = len(self._entries) - size
        if surplus <= 0:
            return
        idle = (path for path, entry in self._entries.items() if entry.users == 0)
        for path in list(itertools.islice(idle, surplus)):  # only as far as it must look
            os.close(self._entries.pop(path).descriptor)


class Loan:
    """One use of a file: a context manager that gives its descriptor."""

    __slots__ = ("_cache", "_entry", "_path")

    def __init__(self, cache: FileCache, path: str) -> None:
        self._cache = cache
        self._path = path

    def __enter__(self) -> int:
        self._entry = self._cache._acquire(self._path)
        return self._entry.descriptor

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cache._release(self._entry)
