"""The pool of sessions: who gets which one, how much memory they may take, and when they are closed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.loaders.engines.nvdec_pool import AT_ONCE, FIRST_SECONDS, REUSE_SECONDS, SessionPool

NOW = 0.0
"""A time that has passed: nothing is waited for."""


class Session:
    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.nbytes = 1
        self.closed = 0
        self.users = 0

    def size(self) -> int:
        return self.nbytes

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


def make_pool(factory: Factory, capacity: int) -> SessionPool[Session]:
    return SessionPool(factory, Session.size, capacity)


def take(pool: SessionPool[Session], key: Hashable, expected: int = 1) -> Session:
    session = pool.take(key, expected, NOW)
    assert session is not None
    return session


def test_sessions_are_reused_by_key_the_newest_first():
    pool = make_pool(Factory(), 9)
    a, b, other = take(pool, "wide"), take(pool, "wide"), take(pool, "high")
    assert len({a, b, other}) == 3
    assert (a.key, other.key) == ("wide", "high")
    for session in (a, b, other):
        pool.give_back(session)
    assert take(pool, "wide") is b
    assert take(pool, "wide") is a
    assert take(pool, "wide") not in (a, b, other)
    assert take(pool, "high") is other


def test_the_one_idle_the_longest_gives_way():
    factory = Factory()
    pool = make_pool(factory, 3)
    a, b, c = (take(pool, key) for key in "abc")
    for session in (a, b, c):
        pool.give_back(session)
    d = take(pool, "d")
    assert [session.closed for session in (a, b, c)] == [1, 0, 0]
    assert take(pool, "b") is b
    pool.give_back(b)  # b is the newest now
    pool.give_back(d)
    take(pool, "e", expected=2)
    assert [session.closed for session in (b, c, d)] == [1, 1, 0]
    assert pool.held == 3


def test_nobody_gets_more_than_there_is():
    factory = Factory()
    pool = make_pool(factory, 3)
    a, b = take(pool, "a"), take(pool, "b")
    assert pool.take("c", 2, NOW) is None
    assert len(factory.made) == 2
    c = take(pool, "c", expected=1)
    assert pool.take("a", 1, NOW) is None
    for session in (a, b, c):
        pool.give_back(session)
    assert pool.held == 3
    assert take(pool, "a") is a


def test_the_first_is_let_through_however_large():
    pool = make_pool(Factory(), 3)
    large = take(pool, "large", expected=50)
    assert pool.take("small", 1, NOW) is None
    large.nbytes = 50
    pool.give_back(large)
    assert large.closed == 1, "it is larger than all that may be held"
    assert pool.held == 0
    assert take(pool, "small").closed == 0


def test_one_that_came_out_larger_makes_others_go():
    pool = make_pool(Factory(), 4)
    a, b, c = (take(pool, key) for key in "abc")
    pool.give_back(a)
    pool.give_back(b)
    c.nbytes = 3
    pool.give_back(c)
    assert [session.closed for session in (a, b, c)] == [1, 0, 0]
    assert pool.held == 4


@pytest.mark.parametrize("how", ["give back", "discard", "fails"])
def test_who_waits_gets_the_memory_that_comes_free(how):
    failing = threading.Event()

    def make(key: Hashable) -> Session:
        if key == "fails":
            failing.wait(10)
            raise RuntimeError("no decoder")
        return Session(key)

    pool = SessionPool(make, Session.size, 1)
    with ThreadPoolExecutor(2) as threads:
        if how == "fails":
            first = threads.submit(pool.take, "fails", 1, NOW)
            while not pool.held:
                time.sleep(0.001)
        else:
            held = take(pool, "a")
        waiting = threads.submit(pool.take, "b", 1, time.monotonic() + 10)
        time.sleep(0.05)
        assert not waiting.done()
        if how == "give back":
            pool.give_back(held)
        elif how == "discard":
            pool.discard(held)
            assert held.closed == 1
        else:
            failing.set()
            with pytest.raises(RuntimeError, match="no decoder"):
                first.result(10)
        found = waiting.result(10)
        assert found is not None
        assert found.key == "b"
    assert pool.held == 1


def test_idle_ones_do_not_go_where_it_would_not_help():
    """One large clip that waits must not close the sessions of all others as they come back."""
    pool = make_pool(Factory(), 10)
    used, idle = take(pool, "a", expected=8), take(pool, "b", expected=1)
    used.nbytes = 8
    pool.give_back(idle)
    assert pool.take("large", 5, NOW) is None
    assert idle.closed == 0
    assert take(pool, "b") is idle


def test_own_sessions_in_use_are_waited_for_before_others_go():
    pool = make_pool(Factory(), 2)
    own, other = take(pool, "own"), take(pool, "other")
    pool.give_back(other)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.take, "own", 1, time.monotonic() + 10)
        time.sleep(REUSE_SECONDS / 4)
        pool.give_back(own)
        assert waiting.result(10) is own
    assert other.closed == 0
    # Where it does not come back, the others do go.
    began = time.monotonic()
    assert take_by(pool, "own", began + 10).key == "own"
    assert time.monotonic() - began >= REUSE_SECONDS
    assert other.closed == 1


def test_only_so_many_are_made_at_once():
    """A clip that could have a session soon does not wait for the driver to make another decoder."""
    factory = Factory()
    pool = make_pool(factory, 100)
    fresh = [take(pool, "a") for _ in range(AT_ONCE)]
    for session in fresh:
        session.nbytes = 0
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(take_by, pool, "a", time.monotonic() + 10)
        assert take_by(pool, "b", time.monotonic() + 10).key == "b"  # others are not held up
        fresh[0].nbytes = 5
        pool.give_back(fresh[0])
        assert waiting.result(10) is fresh[0]
        # One has its decoder: there is room for another one.
        assert take_by(pool, "a", time.monotonic() + 10) is factory.made[-1]
        factory.made[-1].nbytes = 0
        # Where none comes back, no clip waits for long.
        began = time.monotonic()
        late = take_by(pool, "a", began + 10)
        assert late is factory.made[-1]
        assert FIRST_SECONDS <= time.monotonic() - began < 8


def test_those_who_wait_take_turns():
    """A thread that gives a session back and asks again does not overtake those who wait for it."""
    pool = make_pool(Factory(), 1)
    session = take(pool, "a")
    order: list[int] = []

    def wait(number: int) -> None:
        found = take_by(pool, "a", time.monotonic() + 10)
        order.append(number)
        pool.give_back(found)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(3)]
    for count, thread in enumerate(threads, 1):
        thread.start()
        while len(pool._waiting.get("a", ())) < count:
            time.sleep(0.001)
    pool.give_back(session)
    last = take_by(pool, "a", time.monotonic() + 10)
    assert order == [0, 1, 2]
    assert last is session
    for thread in threads:
        thread.join(10)


def take_by(pool: SessionPool[Session], key: Hashable, until: float) -> Session:
    session = pool.take(key, 1, until)
    assert session is not None
    return session


def test_what_a_lost_thread_has_does_not_count():
    pool = make_pool(Factory(), 2)
    held: list[Session] = []
    thread = threading.Thread(target=lambda: held.extend(take(pool, key) for key in "ab"))
    thread.start()
    thread.join()
    assert pool.take("c", 1, NOW) is None
    assert thread.ident is not None
    pool.give_up(thread.ident)
    assert pool.held == 0
    mine = [take(pool, "c"), take(pool, "d")]
    # It comes back after all: what it had is closed, and counts for nothing.
    pool.give_back(held[0])
    pool.discard(held[1])
    assert [session.closed for session in held] == [1, 1]
    assert pool.held == 2
    for session in mine:
        pool.give_back(session)
    assert pool.held == 2


def test_one_that_has_not_decoded_counts_as_expected():
    pool = make_pool(Factory(), 100)
    fresh = take(pool, "a", expected=60)
    fresh.nbytes = 0
    pool.give_back(fresh)
    assert pool.held == 60
    assert take(pool, "a", expected=60) is fresh
    assert pool.take("b", 60, NOW) is None


def test_nobody_waits_for_a_pool_that_is_closed():
    pool = make_pool(Factory(), 1)
    take(pool, "a")
    pool.close()
    began = time.monotonic()
    assert pool.take("b", 1, began + 10) is None
    assert time.monotonic() - began < 5


def test_close_idle_leaves_those_in_use_alone():
    pool = make_pool(Factory(), 4)
    idle, used = take(pool, "a"), take(pool, "a")
    pool.give_back(idle)
    assert pool.close_idle() == 1
    assert (idle.closed, used.closed) == (1, 0)
    assert pool.close_idle() == 0
    pool.give_back(used)
    assert take(pool, "a") is used


def test_close_while_in_use():
    factory = Factory()
    pool = make_pool(factory, 4)
    idle, used = take(pool, "a"), take(pool, "b")
    pool.give_back(idle)
    pool.close()
    assert (idle.closed, used.closed) == (1, 0)
    pool.give_back(used)
    assert used.closed == 1
    pool.close()
    assert [session.closed for session in factory.made] == [1, 1]
    assert pool.held == 0


@settings(deadline=None)
@given(
    capacity=st.integers(1, 6),
    steps=st.lists(
        st.tuples(st.sampled_from(["take", "give back", "discard"]), st.integers(0, 7)), max_size=60
    ),
)
def test_any_use(capacity, steps):
    """Against plain lists: right key, used by one, open while used, and never more bytes than allowed."""
    factory = Factory()
    pool = make_pool(factory, capacity)
    idle: list[Session] = []
    used: list[Session] = []
    for step, number in steps:
        if step == "take":
            key, nbytes = number % 3, 1 + number % 3
            expected = next((session for session in reversed(idle) if session.key == key), None)
            full = bool(used) and sum(s.nbytes for s in used) + nbytes > capacity
            while (
                expected is None
                and idle
                and not full
                and sum(s.nbytes for s in used + idle) + nbytes > capacity
            ):
                idle.pop(0)
            session = pool.take(key, nbytes, NOW)
            if expected is not None:
                assert session is expected
                idle.remove(expected)
                used.append(expected)
            elif full:
                assert session is None
            else:
                assert session is factory.made[-1]
                assert session not in used + idle
                session.nbytes = nbytes
                used.append(session)
        elif used:
            session = used.pop(number % len(used))
            if step == "discard":
                pool.discard(session)
            else:
                pool.give_back(session)
                idle.append(session)
                while idle and sum(s.nbytes for s in used + idle) > capacity:
                    idle.pop(0)
        assert Counter(factory.open()) == Counter(used + idle)
        assert pool.held == sum(s.nbytes for s in used + idle)
        assert pool.held <= capacity or len(used) == 1
    pool.close()
    assert Counter(factory.open()) == Counter(used)


def test_threads_never_share_a_session():
    factory = Factory()
    capacity, threads = 5, 8
    pool = make_pool(factory, capacity)
    start = threading.Barrier(threads)
    most = 0

    def use(thread: int) -> None:
        nonlocal most
        start.wait(10)
        for step in range(500):
            key = (thread + step) % 4
            session = pool.take(key, 1, time.monotonic() + 10)
            assert session is not None
            assert session.key == key
            assert not session.closed
            session.users += 1
            assert session.users == 1
            most = max(most, pool.held)
            session.users -= 1
            pool.give_back(session)
            if thread == 0 and step == 250:
                pool.close_idle()

    with ThreadPoolExecutor(threads) as executor:
        for future in [executor.submit(use, thread) for thread in range(threads)]:
            future.result()
    assert most <= capacity
    assert len(factory.open()) <= capacity
    pool.close()
    assert factory.open() == []
