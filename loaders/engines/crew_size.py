"""How many of FFmpeg's processes help NVDEC: as many as make the whole faster, found by trying.

Where every core decodes, the threads that feed NVDEC are woken late. That costs nothing while a clip takes
milliseconds; with clips of small pictures it costs more than FFmpeg's part of them brings. On a machine with
an H200 and 16 cores, stacked proxies (proxy16s4 of bench/): 1,170 clips/s with 16 processes, 2,090 with 12,
1,890 with none; 480g250: 176 with 16, 167 with 12. Where it turns differs from machine to machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from typing import Final

BUSY_RATE: Final = 500.0
"""Clips a second below which all processes help."""
BETTER: Final = 1.1
"""A smaller crew must be faster by this factor: the rates of short stretches differ by a few hundredths."""
SETTLE_SECONDS: Final = 0.25
"""After a change, before clips are counted."""
WINDOW_SECONDS: Final = 0.5
"""For which they are counted."""
FIRST_REST: Final = 60.0
"""Seconds until a size that was found is looked into again; twice as long after each time that it is found
again, up to LONGEST_REST."""
LONGEST_REST: Final = 480.0


class CrewSize:
    """Tries crews of `most`, three quarters of it, and so on, as long as the smaller one is faster.

    `finished` is called for each clip, by any thread, and says when the size changes. clock: seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = most
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._search = self._sizes()
        self._seconds = next(self._search)
        self._count = 0
        self._begin = clock() + SETTLE_SECONDS

    def finished(self) -> int | None:
        """Counts a clip; the new size where it changes."""
        with self._lock:
            now = self._clock()
            if now < self._begin:
                return None
            self._count += 1
            if now < self._begin + self._seconds:
                return None
            before = self.size
            self._seconds = self._search.send(self._count / (now - self._begin))
            self._count = 0
            self._begin = now
            if self.size == before:
                return None
            self._begin += SETTLE_SECONDS
            return self.size

    def _sizes(self) -> Generator[float, float, None]:
        """Sets the size and gives the seconds to try it for; is sent the rate that came of it."""
        rest, last = FIRST_REST, self._most
        while True:
            self.size = best = self._most
            rate = yield WINDOW_SECONDS
            if rate < BUSY_RATE:
                continue
            while (smaller := best * 3 // 4) and smaller < best:
                self.size = smaller
                found = yield WINDOW_SECONDS
                if found < BETTER * rate:
                    break
                best, rate = smaller, found
            self.size = best
            rest = min(2 * rest, LONGEST_REST) if best == last else FIRST_REST
            last = best
            yield rest
