"""When requests to a server may begin: so many a minute, not while it asks to wait, and later after
failures."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from surgrec.kernels.counter_rng import stream_key

LONGEST: Final = 60.0
"""Seconds between two tries at most, where the server does not say how long."""


class Pace:
    """Of all requests of a run."""

    def __init__(self, requests_per_minute: int | None) -> None:
        self._gap = 0.0 if requests_per_minute is None else 60.0 / requests_per_minute
        self._next = 0.0

    async def turn(self) -> None:
        """Waits until another request may begin."""
        while (now := time.monotonic()) < self._next:
            await asyncio.sleep(self._next - now)
        self._next = now + self._gap

    def hold(self, seconds: float) -> None:
        """No request begins before so many seconds are over."""
        self._next = max(self._next, time.monotonic() + seconds)


def backoff(seed: int, key: str, failures: int, first: float) -> float:
    """Seconds before the next try after `failures` of one request: first 2^(failures - 1), LONGEST at most,
    of which the last half is drawn, so that requests that failed together do not come back together."""
    longest = min(first * 2.0 ** (failures - 1), LONGEST)
    return longest * (0.5 + stream_key(seed, f"vlm/backoff/{key}/{failures}") / 2**65)
