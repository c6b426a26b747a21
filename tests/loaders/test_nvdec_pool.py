"""The pool of sessions: who gets which one, and when they are closed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.loaders.engines.nvdec_pool import SessionPool


class Session:
    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.closed = 0
        self.users = 0

    def close(self) -> None:
        assert not self.users
        self.closed += 1


class Factory:
    """Makes sessions and remembers them."""

    def __init__(self) -> None:
        self.made: list[Session] = []
        self._lock = threading.Lock()

    def __call__(self, key: Hashable) -> Session:
        session = Session(key)
        with self._lock:
            self.made.append(session)
        return session

    def open(self) -> list[Session]:
        return [session for session in self.made if not session.closed]


def test_sessions_are_reused_by_key_the_newest_first():
    pool = SessionPool(Factory(), 4)
    a, b, other = pool.take("wide"), pool.take("wide"), pool.take("high")
    assert len({a, b, other}) == 3
    assert (a.key, other.key) == ("wide", "high")
    pool.give_back("wide", a)
    pool.give_back("wide", b)
    pool.give_back("high", other)
    assert pool.take("wide") is b
    assert pool.take("wide") is a
    assert pool.take("wide") not in (a, b, other)
    assert pool.take("high") is other


def test_too_many_idle_ones_close_the_one_idle_the_longest():
    factory = Factory()
    pool = SessionPool(factory, 2)
    a, b, c = (pool.take(key) for key in "abc")
    for session in (a, b, c):
        pool.give_back(session.key, session)
    assert [session.closed for session in (a, b, c)] == [1, 0, 0]
    assert pool.take("b") is b
    pool.give_back("b", b)  # b is the newest now
    pool.give_back("a", pool.take("a"))
    assert [session.closed for session in (a, b, c)] == [1, 0, 1]
    assert pool.take("b") is b


def test_sessions_in_use_do_not_count():
    factory = Factory()
    pool = SessionPool(factory, 1)
    used = [pool.take("a") for _ in range(5)]
    assert len(factory.open()) == 5
    for session in used:
        pool.give_back("a", session)
    assert factory.open() == [used[-1]]


def test_close_idle_leaves_those_in_use_alone():
    factory = Factory()
    pool = SessionPool(factory, 4)
    idle, used = pool.take("a"), pool.take("a")
    pool.give_back("a", idle)
    assert pool.close_idle() == 1
    assert (idle.closed, used.closed) == (1, 0)
    assert pool.close_idle() == 0
    pool.give_back("a", used)
    assert pool.take("a") is used


def test_close_while_in_use():
    factory = Factory()
    pool = SessionPool(factory, 4)
    idle, used = pool.take("a"), pool.take("b")
    pool.give_back("a", idle)
    pool.close()
    assert (idle.closed, used.closed) == (1, 0)
    pool.give_back("b", used)
    assert used.closed == 1
    pool.close()
    assert [session.closed for session in factory.made] == [1, 1]


@settings(deadline=None)
@given(
    capacity=st.integers(0, 4),
    steps=st.lists(st.tuples(st.sampled_from(["take", "give back"]), st.integers(0, 7)), max_size=60),
)
def test_any_use(capacity, steps):
    """Against a plain list of the idle ones: right key, used by one, open while used, few enough idle."""
    factory = Factory()
    pool = SessionPool(factory, capacity)
    idle: list[Session] = []
    used: list[Session] = []
    for step, number in steps:
        if step == "take":
            key = number % 3
            expected = next((session for session in reversed(idle) if session.key == key), None)
            session = pool.take(key)
            if expected is None:
                assert session is factory.made[-1]
                assert session not in used + idle
            else:
                assert session is expected
                idle.remove(session)
            assert session.key == key
            used.append(session)
        elif used:
            session = used.pop(number % len(used))
            pool.give_back(session.key, session)
            idle.append(session)
            idle = idle[max(0, len(idle) - capacity) :]
        assert Counter(factory.open()) == Counter(used + idle)
    pool.close()
    assert Counter(factory.open()) == Counter(used)


def test_threads_never_share_a_session():
    factory = Factory()
    capacity, threads = 5, 8
    pool = SessionPool(factory, capacity)
    start = threading.Barrier(threads)

    def use(thread: int) -> None:
        start.wait(10)
        for step in range(500):
            key = (thread + step) % 4
            session = pool.take(key)
            assert session.key == key
            assert not session.closed
            session.users += 1
            assert session.users == 1
            session.users -= 1
            pool.give_back(key, session)
            if thread == 0 and step == 250:
                pool.close_idle()

    with ThreadPoolExecutor(threads) as executor:
        for future in [executor.submit(use, thread) for thread in range(threads)]:
            future.result(timeout=60)
    assert len(factory.open()) <= capacity
    pool.close()
    assert [session.closed for session in factory.made] == [1] * len(factory.made)
