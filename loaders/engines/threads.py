"""Threads that work off a queue, each with something of its own, and that never hold up the exit."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Own = TypeVar("Own")
Item = TypeVar("Item")
Result = TypeVar("Result")

LOOK_UP_SECONDS = 0.5
"""How often an idle thread looks whether the interpreter is about to exit."""


class WorkerThreads(Generic[Own, Item, Result]):
    """`count` threads that call work(own, item) for each item; `own` is made by each thread for itself.

    concurrent.futures' pool would finish all that is queued before the interpreter exits. Here queued items
    are cancelled when the main thread ends.
    """

    def __init__(
        self, count: int, name: str, make_own: Callable[[], Own], work: Callable[[Own, Item], Result]
    ) -> None:
        self._make_own = make_own
        self._work = work
        self._queue: queue.SimpleQueue[tuple[Future[Result], Item] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = [threading.Thread(target=self._loop, name=f"{name}-{n}") for n in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, item: Item) -> Future[Result]:
        """Queues an item. The future raises what `work` raises. RuntimeError after `close`."""
        future: Future[Result] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._queue.put((future, item))
        return future

    def close(self) -> None:
        """Cancels what is queued, and waits for what is being worked on."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _loop(self) -> None:
        own = self._make_own()
        main = threading.main_thread()
        while True:
            try:
                entry = self._queue.get(timeout=LOOK_UP_SECONDS)
            except queue.Empty:
                if main.is_alive():
                    continue
                return
            if entry is None:
                return
            future, item = entry
            if self._closed or not main.is_alive():
                future.cancel()
                future.set_running_or_notify_cancel()
            elif future.set_running_or_notify_cancel():
                try:
                    result = self._work(own, item)
                except BaseException as error:  # the caller gets it from the future
                    future.set_exception(error)
                else:
                    future.set_result(result)
            # Let go of the frames before waiting for the next item.
            entry = future = item = result = None  # type: ignore[assignment] # nothing uses them below
