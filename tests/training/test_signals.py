"""The first signal asks, the second SIGINT ends."""

from __future__ import annotations

import os
import signal

import pytest

from surgrec.training.signals import HANDLED, StopRequest


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_is_remembered_and_not_died_of(number):
    with StopRequest() as stop:
        assert (stop.received, stop.exit_status) == (0, 0)
        os.kill(os.getpid(), number)
        assert stop.received == number
        assert stop.exit_status == 128 + number


def test_second_interrupt_ends_at_once():
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_termination_repeated_is_still_one_request():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGUSR1


def test_handlers_come_back():
    before = [signal.getsignal(number) for number in HANDLED]
    with StopRequest():
        assert [signal.getsignal(number) for number in HANDLED] != before
    assert [signal.getsignal(number) for number in HANDLED] == before
