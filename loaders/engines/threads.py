"""Threads that work off a queue, each with something of its own, and that never hold up the exit."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

Own = TypeVar("Own")
Item = TypeVar("Item")
Result = TypeVar("Result")

Late = Callable[[Item, int], Result]
"""What stands for the result of an item whose thread, of this identifier, was given up."""

LOOK_UP_SECONDS = 0.5
"""How often an idle thread looks whether the interpreter is about to exit."""


@dataclass(frozen=True)
class PassedOn:
    """What `work` returns for an item that belongs to another lane."""

    lane: int


@dataclass(eq=False)
class _Crew:
    """Threads that take from the same lanes, in this order. behind: as WorkQueue.crew has it. helping: how
    many of them, those of the lowest ranks, take from the first lane where `behind` is set.
    """

    lanes: tuple[int, ...]
    behind: int | None
    helping: int
    idle: deque[tuple[int, threading.Condition]] = field(default_factory=deque)
    """The rank of each thread that waits and has not been woken yet, and what wakes it."""


@runtime_checkable
class Closable(Protocol):
    """What a thread keeps and must let go of when it ends."""

    def close(self) -> None:
        """Called once, in the thread."""


class WorkQueue(Generic[Item, Result]):
    """Lanes of items, first in, first out, shared by crews of threads of which each takes from some lanes."""

    def __init__(self, lanes: int = 1) -> None:
        self._lock = threading.Lock()
        self._lanes: list[deque[tuple[Future[Result], Item]]] = [deque() for _ in range(lanes)]
        self._crews: list[_Crew] = []
        self.closed = False

    def crew(self, lanes: tuple[int, ...], behind: int | None = None) -> _Crew:
        """Registers threads that will `take` from these lanes; those registered first are woken first.

        behind: of the first lane, 0, they take the newest item, and only where more than this many wait: so
        slower threads never hold what is due next, nor leave others without work. All of them may, until
        `allow` says otherwise.
        """
        crew = _Crew(lanes, behind, sys.maxsize)
        self._crews.append(crew)
        return crew

    def allow(self, crew: _Crew, helping: int) -> None:
        """Lets only so many threads of a crew that stays behind take from the first lane."""
        with self._lock:
            crew.helping = helping

    def submit(self, item: Item) -> Future[Result]:
        """Queues an item in the first lane. RuntimeError after `close`."""
        future: Future[Result] = Future()
        self.put(future, item, 0)
        return future

    def put(self, future: Future[Result], item: Item, lane: int) -> None:
        """Queues an item with the future that stands for it."""
        with self._lock:
            if self.closed:
                raise RuntimeError("the engine is closed")
            self._lanes[lane].append((future, item))
            for crew in self._crews:
                for waiting in crew.idle if lane in crew.lanes else ():
                    if self._has(crew, lane, waiting[0]):
                        crew.idle.remove(waiting)
                        waiting[1].notify()
                        return

    def take(self, crew: _Crew, rank: int = 0) -> tuple[Future[Result], Item] | None:
        """The next item of the crew's lanes; waits for it. None once closed, or once the main thread ends.

        rank: of the thread in its crew, from 0.
        """
        main = threading.main_thread()
        with self._lock:
            while True:
                for lane in crew.lanes:
                    if self._has(crew, lane, rank):
                        newest = lane == 0 and crew.behind is not None
                        return self._lanes[lane].pop() if newest else self._lanes[lane].popleft()
                if self.closed or not main.is_alive():
                    return None
                # One for each wait: whoever is woken is off the list, and the next item wakes another.
                waiting = rank, threading.Condition(self._lock)
                crew.idle.append(waiting)
                waiting[1].wait(LOOK_UP_SECONDS)
                if waiting in crew.idle:
                    crew.idle.remove(waiting)

    def _has(self, crew: _Crew, lane: int, rank: int) -> bool:
        """Whether a lane has an item for a crew's thread."""
        if lane or crew.behind is None:
            return bool(self._lanes[lane])
        return rank < crew.helping and len(self._lanes[lane]) > crew.behind

    def close(self) -> None:
        """Cancels what is queued; no more items are taken up, and the threads end."""
        with self._lock:
            self.closed = True
            queued = [future for lane in self._lanes for future, _ in lane]
            for lane in self._lanes:
                lane.clear()
            for crew in self._crews:
                while crew.idle:
                    crew.idle.popleft()[1].notify()
        for future in queued:
            _cancel(future)


@dataclass(eq=False)
class _Post(Generic[Item, Result]):
    """What one thread is at, for those who watch it."""

    rank: int = 0
    thread: threading.Thread | None = None
    work: tuple[Future[Result], Item] | None = None
    since: float = 0.0
    given_up: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class WorkerThreads(Generic[Own, Item, Result]):
    """`count` threads that call work(own, item) for each item; `own` is made by each thread for itself,
    and closed by it at the end if it is Closable.

    concurrent.futures' pool would finish all that is queued before the interpreter exits. Here queued items
    are cancelled when the main thread ends. With a `timeout`, a thread that is at one item for longer
    (seconds) is given up: its item gets late(item, identifier of the thread) for a result and another thread
    takes its place. Raises ValueError where one of timeout and late is given without the other.
    """

    def __init__(
        self,
        count: int,
        name: str,
        make_own: Callable[[], Own],
        work: Callable[[Own, Item], Result | PassedOn],
        queue: WorkQueue[Item, Result] | None = None,
        lanes: tuple[int, ...] = (0,),
        timeout: float | None = None,
        late: Late[Item, Result] | None = None,
        behind: int | None = None,
    ) -> None:
        if (timeout is None) != (late is None):
            raise ValueError("timeout and late belong together: give both or neither")
        self.queue: WorkQueue[Item, Result] = WorkQueue() if queue is None else queue
        self._crew = self.queue.crew(lanes, behind)
        self._name = name
        self._make_own = make_own
        self._work = work
        self._timeout = timeout
        self._posts: list[_Post[Item, Result]] = []
        self._posts_lock = threading.Lock()
        self._made = 0
        for rank in range(count):
            self._start(rank)
        if timeout is not None and late is not None:
            watch = (timeout, late)
            threading.Thread(target=self._watch, args=watch, name=f"{name}-watch", daemon=True).start()

    def allow(self, helping: int) -> None:
        """As WorkQueue.allow, for these threads."""
        self.queue.allow(self._crew, helping)

    def submit(self, item: Item) -> Future[Result]:
        """Queues an item. The future raises what `work` raises. RuntimeError after `close`."""
        return self.queue.submit(item)

    def close(self) -> None:
        """Cancels what is queued, and waits for what is being worked on, but for threads given up."""
        self.queue.close()
        with self._posts_lock:  # from here on the watcher starts no more threads
            posts = list(self._posts)
        for post in posts:
            while not post.given_up and post.thread is not None and post.thread.is_alive():
                post.thread.join(0.1)

    def _start(self, rank: int) -> None:
        post: _Post[Item, Result] = _Post(rank)
        # A thread that hangs in a driver must not keep the process from ending.
        post.thread = threading.Thread(
            target=self._loop,
            args=(post,),
            name=f"{self._name}-{self._made}",
            daemon=self._timeout is not None,
        )
        self._made += 1
        self._posts.append(post)
        post.thread.start()

    def _loop(self, post: _Post[Item, Result]) -> None:
        try:
            own = self._make_own()
        except BaseException as error:  # those who wait for results must not wait for ever
            self._refuse_all(error)
            return
        try:
            self._work_off(post, own)
        finally:
            if isinstance(own, Closable):
                own.close()

    def _refuse_all(self, error: BaseException) -> None:
        while (entry := self.queue.take(self._crew)) is not None:
            if entry[0].running() or entry[0].set_running_or_notify_cancel():
                entry[0].set_exception(error)

    def _work_off(self, post: _Post[Item, Result], own: Own) -> None:
        main = threading.main_thread()
        while True:
            entry = self.queue.take(self._crew, post.rank)
            if entry is None:
                return
            future, item = entry
            if self.queue.closed or not main.is_alive():
                _cancel(future)
            elif future.running() or future.set_running_or_notify_cancel():
                post.since, post.work = time.monotonic(), entry
                try:
                    result = self._work(own, item)
                except BaseException as error:  # the caller gets it from the future
                    if not self._done(post):
                        return
                    future.set_exception(error)
                else:
                    if not self._done(post):
                        return
                    self._settle(future, item, result)
            # Let go of the frames before waiting for the next item.
            entry = future = item = result = None  # type: ignore[assignment] # nothing uses them below

    def _done(self, post: _Post[Item, Result]) -> bool:
        """Ends the thread's work on an item; False where another has taken its place meanwhile."""
        with post.lock:
            post.work = None
            return not post.given_up

    def _settle(self, future: Future[Result], item: Item, result: Result | PassedOn) -> None:
        if not isinstance(result, PassedOn):
            future.set_result(result)
            return
        try:
            self.queue.put(future, item, result.lane)
        except RuntimeError:  # closed meanwhile
            _cancel(future)

    def _watch(self, timeout: float, late: Late[Item, Result]) -> None:
        main = threading.main_thread()
        while main.is_alive() and not (self.queue.closed and self._all_ended()):
            time.sleep(min(LOOK_UP_SECONDS, timeout / 4))
            for post in list(self._posts):
                self._look_at(post, timeout, late)

    def _all_ended(self) -> bool:
        return not any(post.thread is not None and post.thread.is_alive() for post in self._posts)

    def _look_at(
        self, post: _Post[Item, Result], timeout: float, late: Callable[[Item, int], Result]
    ) -> None:
        """Gives a thread up that is at its item for too long."""
        with post.lock:
            work = post.work
            if work is None or time.monotonic() - post.since < timeout:
                return
            post.given_up = True
        with self._posts_lock:
            self._posts.remove(post)
            if not self.queue.closed:
                self._start(post.rank)
        future, item = work
        thread = post.thread.ident if post.thread is not None else None
        try:
            future.set_result(late(item, thread or 0))
        except BaseException as error:  # the caller gets it from the future
            future.set_exception(error)


def _cancel(future: Future[Result]) -> None:
    """Cancels a future, also one that was passed on and so counts as running."""
    if not future.running():
        future.cancel()
        future.set_running_or_notify_cancel()
        return
    try:
        future.set_exception(RuntimeError("the engine is closed"))
    except InvalidStateError:
        return
