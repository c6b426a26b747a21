"""Threads that work off a queue: order, lanes, passing on, closing, errors, and threads that hang."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.loaders.engines import threads as module
from surgrec.loaders.engines.threads import PassedOn, WorkerThreads, WorkQueue

SOON = 10.0
"""Seconds within which everything here has happened, unless something hangs."""


@contextmanager
def workers(*arguments: Any, **named: Any) -> Iterator[WorkerThreads[Any, Any, Any]]:
    made: WorkerThreads[Any, Any, Any] = WorkerThreads(*arguments, **named)
    try:
        yield made
    finally:
        close_soon(made)


def close_soon(made: WorkerThreads[Any, Any, Any]) -> None:
    """Closes, and fails where that takes for ever."""
    closing = threading.Thread(target=made.close, daemon=True)
    closing.start()
    closing.join(SOON)
    assert not closing.is_alive(), "close does not come back"


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "it never happens"
        time.sleep(0.002)


def plain(own: None, item: Any) -> Any:
    return item


def nothing() -> None:
    return None


class Gate:
    """Work that stops at items called "wait" until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Semaphore(0)
        self.done: list[Any] = []

    def work(self, own: Any, item: Any) -> Any:
        if item == "wait":
            self.reached.release()
            assert self.open.wait(3 * SOON)
        self.done.append(item)
        return item

    def wait_until_reached(self) -> None:
        assert self.reached.acquire(timeout=SOON)


# The queue by itself


@settings(deadline=None)
@given(
    puts=st.lists(st.tuples(st.integers(0, 2), st.integers()), max_size=30), order=st.permutations(range(3))
)
def test_lanes_are_first_in_first_out_and_taken_in_the_order_of_the_crew(puts, order):
    queue: WorkQueue[int, int] = WorkQueue(lanes=3)
    crew = queue.crew(tuple(order))
    futures = [Future() for _ in puts]
    for future, (lane, item) in zip(futures, puts, strict=True):
        queue.put(future, item, lane)
    expected = [
        (future, item)
        for wanted in order
        for future, (lane, item) in zip(futures, puts, strict=True)
        if lane == wanted
    ]
    assert [queue.take(crew) for _ in expected] == expected
    queue.close()
    assert queue.take(crew) is None


@given(st.lists(st.sampled_from(["put", "first", "last"]), max_size=60), st.integers(0, 5))
def test_a_crew_behind_takes_the_newest_beyond_what_it_leaves(steps, behind):
    queue: WorkQueue[int, int] = WorkQueue(lanes=2)
    first, last = queue.crew((0,)), queue.crew((1, 0), behind)
    model: deque[int] = deque()
    for number, step in enumerate(steps):
        if step == "put":
            queue.submit(number)
            model.append(number)
        elif step == "first" and model:
            taken = queue.take(first)
            assert taken is not None
            assert taken[1] == model.popleft()
        elif step == "last" and len(model) > behind:
            taken = queue.take(last)
            assert taken is not None
            assert taken[1] == model.pop()
    queue.put(Future(), -1, 1)  # what nobody else takes, it takes in any case
    taken = queue.take(last)
    assert taken is not None
    assert taken[1] == -1
    queue.close()
    assert queue.take(last) is None


def test_a_crew_behind_is_woken_by_the_first_item_that_it_may_take():
    queue: WorkQueue[int, int] = WorkQueue()
    crew = queue.crew((0,), 2)
    taken: list[int] = []

    def work() -> None:
        entry = queue.take(crew)
        assert entry is not None
        taken.append(entry[1])

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: len(crew.idle) == 1)
    queue.submit(1)
    queue.submit(2)
    time.sleep(0.05)
    assert taken == []
    assert len(crew.idle) == 1
    queue.submit(3)
    thread.join(5)
    assert taken == [3]
    queue.close()


def test_only_those_who_may_help_take_from_the_first_lane():
    queue: WorkQueue[int, int] = WorkQueue(lanes=2)
    crew = queue.crew((1, 0), 0)
    queue.allow(crew, 1)
    taken: list[int] = []

    def work(rank: int) -> None:
        while (entry := queue.take(crew, rank)) is not None:
            taken.append(rank)
            entry[0].set_result(entry[1])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (1, 0)]
    threads[0].start()
    until(lambda: len(crew.idle) == 1)
    waits = queue.submit(5)
    time.sleep(0.05)
    assert not waits.done()
    refused: Future[int] = Future()
    queue.put(refused, 6, 1)  # what nobody else takes, each of them takes
    assert refused.result(SOON) == 6
    threads[1].start()
    assert waits.result(SOON) == 5
    assert taken == [1, 0]
    queue.allow(crew, 2)
    done = [queue.submit(number) for number in range(50)]
    assert [future.result(SOON) for future in done] == list(range(50))
    queue.close()
    for thread in threads:
        thread.join(5)


def test_a_crew_leaves_lanes_alone_that_are_not_its_own():
    queue: WorkQueue[str, str] = WorkQueue(lanes=2)
    first, second = queue.crew((0,)), queue.crew((1,))
    queue.put(Future(), "for the second", 1)
    queue.submit("for the first")
    assert queue.take(first)[1] == "for the first"
    assert queue.take(second)[1] == "for the second"


def test_crews_registered_first_are_woken_first():
    queue: WorkQueue[int, Any] = WorkQueue()
    with (
        workers(1, "first", lambda: "first", lambda own, item: own, queue),
        workers(1, "second", lambda: "second", lambda own, item: own, queue),
    ):
        for _ in range(20):
            until(lambda: all(crew.idle for crew in queue._crews))
            assert queue.submit(0).result(SOON) == "first"


def test_two_items_at_once_wake_two_crews(monkeypatch):
    """The second item must not wait until a sleeper looks up by itself."""
    monkeypatch.setattr(module, "LOOK_UP_SECONDS", 2 * SOON)
    queue: WorkQueue[int, int] = WorkQueue()
    together = threading.Barrier(2)

    def work(own: None, item: int) -> int:
        return together.wait(SOON)

    with workers(1, "first", nothing, work, queue), workers(1, "second", nothing, work, queue):
        until(lambda: all(crew.idle for crew in queue._crews))
        futures = [queue.submit(0) for _ in range(2)]
        assert {future.result(SOON) for future in futures} == {0, 1}


# Items, results, errors


def test_one_thread_works_in_the_order_of_submission():
    gate = Gate()
    with workers(1, "test", nothing, gate.work) as made:
        futures = [made.submit(item) for item in ("wait", *range(50))]
        gate.open.set()
        assert [future.result(SOON) for future in futures] == ["wait", *range(50)]
    assert gate.done == ["wait", *range(50)]


def test_all_threads_work_at_the_same_time():
    together = threading.Barrier(4)
    with workers(4, "test", nothing, lambda own, item: together.wait(SOON)) as made:
        futures = [made.submit(number) for number in range(4)]
        assert sorted(future.result(SOON) for future in futures) == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [KeyError("no such thing"), SystemExit(3)])
def test_what_work_raises_reaches_the_future_and_the_thread_goes_on(error):
    def work(own: None, item: int) -> int:
        if item == 0:
            raise error
        return item

    with workers(1, "test", nothing, work) as made:
        failed, fine = made.submit(0), made.submit(1)
        assert failed.exception(SOON) is error
        assert fine.result(SOON) == 1


def test_results_are_let_go_of():
    """A thread that waits for its next item holds no frames of the last."""

    class Frames:
        pass

    alive: list[Any] = []

    def work(own: None, item: int) -> Frames:
        made = Frames()
        alive.append(weakref.ref(made))
        return made

    with workers(1, "test", nothing, work, timeout=SOON, late=lambda item, thread: repr(item)) as made:
        future = made.submit(0)
        future.result(SOON)
        del future
        until(lambda: alive[0]() is None)


def test_a_future_cancelled_by_its_owner_is_passed_over():
    gate = Gate()
    with workers(1, "test", nothing, gate.work) as made:
        first, second, third = (made.submit(item) for item in ("wait", 1, 2))
        gate.wait_until_reached()
        assert second.cancel()
        gate.open.set()
        assert (first.result(SOON), third.result(SOON)) == ("wait", 2)
    assert gate.done == ["wait", 2]


# What each thread has of its own


class Own:
    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.closed_by: list[int] = []

    def close(self) -> None:
        self.closed_by.append(threading.get_ident())


def test_each_thread_makes_uses_and_closes_its_own():
    made_owns: list[Own] = []
    together = threading.Barrier(3)

    def make() -> Own:
        made_owns.append(Own())
        return made_owns[-1]

    def work(own: Own, item: int) -> bool:
        together.wait(SOON)
        return own.thread == threading.get_ident() and not own.closed_by

    with workers(3, "test", make, work) as made:
        futures = [made.submit(number) for number in range(9)]
        assert all(future.result(SOON) for future in futures)
    assert len({own.thread for own in made_owns}) == len(made_owns) == 3
    assert all(own.closed_by == [own.thread] for own in made_owns)


def test_own_that_cannot_be_made_fails_every_item():
    error = OSError("no decoder here")

    def make() -> None:
        raise error

    with workers(2, "test", make, plain) as made:
        futures = [made.submit(number) for number in range(10)]
        assert all(future.exception(SOON) is error for future in futures)
        time.sleep(0.05)
        assert made.submit(11).exception(SOON) is error


def test_own_that_cannot_be_made_fails_items_that_were_passed_on():
    def make() -> None:
        raise OSError("no decoder here")

    queue: WorkQueue[int, int] = WorkQueue(lanes=2)
    with (
        workers(1, "first", nothing, lambda own, item: PassedOn(1), queue),
        workers(1, "second", make, plain, queue, (1,)) as second,
        pytest.raises(OSError, match="no decoder"),
    ):
        second.submit(3).result(SOON)


# Passing on


def test_passed_on_items_keep_their_future_and_go_to_the_other_crew():
    queue: WorkQueue[int, Any] = WorkQueue(lanes=2)
    with (
        workers(
            1, "first", nothing, lambda own, item: PassedOn(1) if item % 2 else ("first", item), queue, (0,)
        ) as first,
        workers(1, "second", nothing, lambda own, item: ("second", item), queue, (1,)),
    ):
        futures = [first.submit(item) for item in range(20)]
        assert [future.result(SOON) for future in futures] == [
            ("second" if item % 2 else "first", item) for item in range(20)
        ]


def test_ten_thousand_items_through_two_crews_arrive_once(monkeypatch):
    monkeypatch.setattr(module, "LOOK_UP_SECONDS", 2 * SOON)  # who is forgotten, stays so
    count = 10_000
    seen: Counter[tuple[str, int]] = Counter()
    lock = threading.Lock()

    def work(own: str, item: int) -> Any:
        with lock:
            seen[own, item] += 1
        return PassedOn(1) if own == "nvdec" and item % 7 == 0 else (own, item)

    queue: WorkQueue[int, Any] = WorkQueue(lanes=2)
    with (
        workers(3, "nvdec", lambda: "nvdec", work, queue, (0,)),
        workers(3, "cpu", lambda: "cpu", work, queue, (1, 0)),
    ):
        futures: list[Future[Any]] = []
        submitters = [
            threading.Thread(
                target=lambda part=part: futures.extend(map(queue.submit, range(part, count, 4)))
            )
            for part in range(4)
        ]
        for thread in submitters:
            thread.start()
        for thread in submitters:
            thread.join(SOON)
        assert not wait(futures, 3 * SOON).not_done
        results = [future.result(0) for future in futures]
    assert sorted(item for _, item in results) == list(range(count))
    assert all(own == "cpu" for own, item in results if item % 7 == 0)
    assert all(seen[own, item] == 1 for own, item in results)
    assert max(seen.values()) == 1


@settings(deadline=None, max_examples=25)
@given(
    items=st.lists(st.sampled_from(["plain", "pass", "raise", "pass and raise"]), max_size=60),
    counts=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    close_at=st.none() | st.integers(0, 60),
)
def test_every_future_ends(items, counts, close_at):
    """Whatever is submitted and whenever it is closed: each future gets its result, its error or its end."""

    def first(own: None, item: str) -> Any:
        if item == "raise":
            raise KeyError(item)
        return PassedOn(1) if item.startswith("pass") else "first"

    def second(own: None, item: str) -> str:
        if item.endswith("raise"):
            raise KeyError(item)
        return "second"

    queue: WorkQueue[str, Any] = WorkQueue(lanes=2)
    futures = []
    with (
        workers(counts[0], "first", nothing, first, queue, (0,)) as made,
        workers(counts[1], "second", nothing, second, queue, (1,)),
    ):
        for place, item in enumerate(items):
            if place == close_at:
                close_soon(made)
            if close_at is not None and place >= close_at:
                with pytest.raises(RuntimeError, match="closed"):
                    made.submit(item)
            else:
                futures.append((made.submit(item), item))
        if close_at is None:
            wait([future for future, _ in futures], SOON)
    assert not wait([future for future, _ in futures], SOON).not_done
    for future, item in futures:
        if future.cancelled():
            assert close_at is not None
            continue
        error = future.exception(0)
        if isinstance(error, RuntimeError):
            assert close_at is not None
            assert item.startswith("pass")
        elif item.endswith("raise"):
            assert isinstance(error, KeyError)
        else:
            assert future.result(0) == ("second" if item == "pass" else "first")


# Closing


def test_close_cancels_what_is_queued_and_waits_for_what_is_worked_on():
    gate = Gate()
    own = Own()
    made: WorkerThreads[Any, Any, Any] = WorkerThreads(1, "test", lambda: own, gate.work)
    running, *queued = (made.submit(item) for item in ("wait", 1, 2, 3))
    gate.wait_until_reached()
    closing = threading.Thread(target=made.close, daemon=True)
    closing.start()
    for future in queued:  # at once, not only when the thread gets to it
        with pytest.raises(CancelledError):
            future.result(SOON)
    with pytest.raises(RuntimeError, match="closed"):
        made.submit(4)
    closing.join(0.2)
    assert closing.is_alive()
    assert not own.closed_by
    gate.open.set()
    closing.join(SOON)
    assert not closing.is_alive()
    assert running.result(0) == "wait"
    assert gate.done == ["wait"]
    assert len(own.closed_by) == 1
    close_soon(made)


def test_close_of_one_crew_ends_items_that_wait_for_the_other():
    """An item that was passed on counts as running and cannot be cancelled: it gets an error."""
    gate = Gate()
    queue: WorkQueue[Any, Any] = WorkQueue(lanes=2)
    with (
        workers(1, "first", nothing, lambda own, item: PassedOn(1), queue, (0,)) as first,
        workers(1, "second", nothing, gate.work, queue, (1,)),
    ):
        running = queue.submit("wait")
        gate.wait_until_reached()
        passed_on = queue.submit(1)
        until(lambda: bool(queue._lanes[1]))
        close_soon(first)
        with pytest.raises(RuntimeError, match="closed"):
            passed_on.result(SOON)
        gate.open.set()
        assert running.result(SOON) == "wait"


def test_an_item_passed_on_after_close_ends():
    gate = Gate()
    queue: WorkQueue[Any, Any] = WorkQueue(lanes=2)
    made: WorkerThreads[Any, Any, Any] = WorkerThreads(
        1, "test", nothing, lambda own, item: gate.work(own, item) and PassedOn(1), queue
    )
    future = made.submit("wait")
    gate.wait_until_reached()
    queue.close()
    gate.open.set()
    with pytest.raises(RuntimeError, match="closed"):
        future.result(SOON)
    close_soon(made)


def test_idle_threads_end_at_once_when_closed(monkeypatch):
    monkeypatch.setattr(module, "LOOK_UP_SECONDS", 2 * SOON)
    made: WorkerThreads[Any, Any, Any] = WorkerThreads(3, "idle", nothing, plain)
    until(lambda: len(made.queue._crews[0].idle) == 3)
    close_soon(made)
    assert not any(thread.name.startswith("idle-") for thread in threading.enumerate())


# Threads that hang


@pytest.mark.parametrize("raises", [False, True])
def test_a_hung_thread_is_given_up_and_its_late_return_changes_nothing(raises):
    gate = Gate()
    owns: list[Own] = []

    def make() -> Own:
        owns.append(Own())
        return owns[-1]

    def work(own: Own, item: Any) -> Any:
        found = gate.work(own, item)
        if item == "wait" and raises:
            raise KeyError("too late")
        return found

    given_up: list[int] = []

    def late(item: Any, thread: int) -> str:
        given_up.append(thread)
        return f"late: {item}"

    with workers(1, "test", make, work, timeout=0.1, late=late) as made:
        futures = [made.submit(item) for item in (0, "wait", 1, 2)]
        first = made._posts[0].thread
        assert [future.result(SOON) for future in futures] == [0, "late: wait", 1, 2]
        assert first is not None
        assert given_up == [first.ident]
        assert len(owns) == 2
        assert not owns[0].closed_by
        gate.open.set()
        until(lambda: bool(owns[0].closed_by))
        assert futures[1].result(0) == "late: wait"
        assert made.submit(3).result(SOON) == 3
        assert len(owns) == 2
    assert [own.closed_by for own in owns] == [[own.thread] for own in owns]


def test_a_hung_thread_that_passes_on_too_late_is_not_listened_to():
    gate = Gate()
    second: list[Any] = []
    queue: WorkQueue[Any, Any] = WorkQueue(lanes=2)
    with (
        workers(
            1,
            "first",
            nothing,
            lambda own, item: gate.work(own, item) and PassedOn(1),
            queue,
            (0,),
            timeout=0.1,
            late=lambda item, thread: "late",
        ) as made,
        workers(1, "second", nothing, lambda own, item: second.append(item) or "second", queue, (1,)),
    ):
        assert made.submit("wait").result(SOON) == "late"
        gate.open.set()
        assert made.submit(1).result(SOON) == "second"
        until(lambda: len(gate.done) == 2)
        time.sleep(0.05)
    assert second == [1]


def test_all_threads_may_hang_again_and_again():
    gate = Gate()
    with workers(2, "test", nothing, gate.work, timeout=0.05, late=lambda item, thread: "late") as made:
        futures = [made.submit("wait") for _ in range(6)]
        assert [future.result(SOON) for future in futures] == ["late"] * 6
        assert made.submit(1).result(SOON) == 1
        gate.open.set()


def test_a_thread_that_is_slow_over_many_items_is_not_given_up():
    """The time counts by item."""
    names = set()

    def work(own: None, item: int) -> int:
        names.add(threading.current_thread().name)
        time.sleep(0.02)
        return item

    with workers(1, "test", nothing, work, timeout=0.5, late=lambda item, thread: "late") as made:
        futures = [made.submit(item) for item in range(40)]
        assert [future.result(SOON) for future in futures] == list(range(40))
    assert names == {"test-0"}


def test_an_item_that_has_no_late_result_gets_the_error():
    gate = Gate()
    with workers(1, "test", nothing, gate.work, timeout=0.05, late=lambda item, thread: 1 / 0) as made:
        assert isinstance(made.submit("wait").exception(SOON), ZeroDivisionError)
        assert made.submit(1).result(SOON) == 1
        assert isinstance(made.submit("wait").exception(SOON), ZeroDivisionError)
        gate.open.set()


def test_close_gives_up_a_thread_that_hangs_by_then():
    gate = Gate()
    made: WorkerThreads[Any, Any, Any] = WorkerThreads(
        1, "test", nothing, gate.work, timeout=0.3, late=lambda item, thread: "late"
    )
    hung, queued = made.submit("wait"), made.submit(1)
    gate.wait_until_reached()
    close_soon(made)
    assert hung.result(SOON) == "late"
    assert queued.cancelled()
    assert gate.done == []
    gate.open.set()


def test_a_timeout_wants_a_late_result():
    with pytest.raises(ValueError, match="late"):
        WorkerThreads(1, "test", nothing, plain, timeout=1.0)


EXIT = """
import sys, threading
from surgrec.loaders.engines.threads import WorkerThreads

reached = threading.Event()

def work(own, item):
    reached.set()
    threading.Event().wait(300)

timeout = {timeout}
made = WorkerThreads(2, "test", lambda: None, work, timeout=timeout, late=lambda item, thread: repr(item))
futures = [made.submit(number) for number in range(50)]
assert reached.wait(10)
{then}
print("end of the main thread")
"""


@pytest.mark.parametrize(
    ("timeout", "then"),
    [(1000.0, ""), (0.2, "assert futures[0].result(10) == '0'"), (0.2, "made.close()")],
    ids=["hanging", "given up", "closed"],
)
def test_the_process_ends_while_a_thread_hangs(timeout, then):
    done = run_python(EXIT.format(timeout=timeout, then=then))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "end of the main thread"


def test_the_process_ends_with_items_still_queued():
    done = run_python(
        """
import time
from surgrec.loaders.engines.threads import WorkerThreads

made = WorkerThreads(2, "test", lambda: None, lambda own, item: time.sleep(0.2))
futures = [made.submit(number) for number in range(1000)]
print("end of the main thread")
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "end of the main thread"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=3 * SOON, check=False
    )
