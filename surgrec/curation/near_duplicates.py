"""All stretches of a corpus that show the same footage as another one, in other videos or their own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from surgrec.curation.alike import TABLES, Moments, Pair, gather, pairs_of
from surgrec.curation.fingerprint import RATE
from surgrec.curation.same_footage import Match, follow

SamplesOf = Callable[[int], "NDArray[Any] | None"]
"""Samples of a video by number; None where it has none."""
HELD: Final = 256
"""Videos whose samples are held while pairs are compared."""


def find_matches(
    videos: int,
    samples_of: SamplesOf,
    side: NDArray[np.int8] | None = None,
    seed: int = 0,
    seen: Callable[[int, int], Any] = lambda done, total: None,
) -> list[Match]:
    """The matches between videos 0 ... videos - 1, ordered by number and time; `one` is before `other`.

    side: as pairs_of takes it. The same samples and seed give the same matches. seen(done, of how many).
    """
    steps = videos + 2 * TABLES
    moments: Moments = gather(videos, samples_of, lambda done: seen(done, steps))
    held = _Held(samples_of)
    found: list[Match] = []
    for pair in pairs_of(moments, side, seed, lambda table: seen(videos + table, steps)):
        if _is_known(pair, found):
            continue
        one, other = held.get(pair.one), held.get(pair.other)
        numbers = pair.one, pair.other
        for match in follow(numbers, one, other, list(pair.places), pair.lag, pair.mirrored):
            if not (match.one == match.other and match.lag < RATE):
                found.append(match)
    seen(steps, steps)
    return sorted(
        set(found), key=lambda match: (match.one, match.other, match.start, match.lag, match.mirrored)
    )


def _is_known(pair: Pair, found: list[Match]) -> bool:
    """Whether an earlier pair of the same videos led to all the places that this one names."""
    left = set(pair.places)
    for match in reversed(found):
        if (match.one, match.other) != (pair.one, pair.other):
            break
        if match.mirrored == pair.mirrored and abs(match.lag - pair.lag) <= RATE:
            left -= {place for place in left if match.start <= place < match.end}
    return not left


class _Held:
    """The samples of videos that were asked for last."""

    def __init__(self, samples_of: SamplesOf) -> None:
        self._samples_of = samples_of
        self._held: OrderedDict[int, NDArray[Any]] = OrderedDict()

    def get(self, video: int) -> NDArray[Any]:
        if video in self._held:
            self._held.move_to_end(video)
            return self._held[video]
        samples = self._samples_of(video)
        if samples is None:
            raise ValueError(f"video {video} had samples before, and has none now")
        self._held[video] = samples
        if len(self._held) > HELD:
            self._held.popitem(last=False)
        return samples
