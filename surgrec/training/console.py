"""Lines for the person at the terminal: one that is rewritten, or plain ones where output goes to a file."""

from __future__ import annotations

import sys
import time
from typing import TextIO


def format_duration(seconds: float) -> str:
    """12 s, 4 min 10 s, 3 h 05 min, 2 d 4 h"""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


class Console:
    """Progress of a run on rank 0; silent on the other ranks."""

    def __init__(self, total: int, start: int, enabled: bool = True, stream: TextIO | None = None) -> None:
        self._total = total
        self._start = start
        self._enabled = enabled
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._began = time.monotonic()
        self._line_open = False

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self._enabled:
            return
        self._close_line()
        print(text, file=self._stream, flush=True)

    def progress(self, step: int, loss: float, lr: float, clips_per_second: float, data_wait: float) -> None:
        """The state after `step`; data_wait is a share in 0..1."""
        if not self._enabled:
            return
        done = step - self._start
        left = (time.monotonic() - self._began) / max(done, 1) * (self._total - step)
        line = (
            f"step {step}/{self._total} {100 * step // self._total:3d}%  loss {loss:.4f}  lr {lr:.2e}  "
            f"{clips_per_second:.1f} clips/s  data wait {100 * data_wait:.0f}%  left {format_duration(left)}"
        )
        if self._live:
            print(f"\r\x1b[2K{line}", end="", file=self._stream, flush=True)
            self._line_open = True
        else:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the cursor on a line of its own."""
        if self._enabled:
            self._close_line()

    def _close_line(self) -> None:
        if self._line_open:
            print(file=self._stream, flush=True)
            self._line_open = False
