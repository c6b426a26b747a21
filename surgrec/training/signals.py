"""SIGTERM, SIGINT and SIGUSR1 ask the loop to finish its step; a second SIGINT ends it at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """While entered, remembers the first stop signal instead of dying of it.

    `received` is the signal's number, 0 while there is none. The exit status of a run that a signal ended is
    128 + that number, as a shell would say it, so that `pretrain && next` does not go on.
    A second SIGINT raises KeyboardInterrupt where the program stands.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in HANDLED:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # A handler that was not installed from Python reads as None and cannot be put back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]  # signal's own union is not nameable

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        self.received = self.received or number

    @property
    def exit_status(self) -> int:
        """128 + the signal, or 0."""
        return 128 + self.received if self.received else 0
