"""Which pairs of videos are worth comparing, and at which lag: of all pairs of moments in a corpus a few.

Twice a second, what changes within 3 s is described by few numbers; random planes turn these into a key, by
locality-sensitive hashing (Charikar, "Similarity estimation techniques from rounding algorithms", 2002).
Moments with the same key in one of TABLES tables vote for their pair of videos and their lag, and what has
two votes is compared. Keys are long enough that few have them by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from surgrec.curation.fingerprint import RATE, SIDE
from surgrec.curation.same_footage import STILL, WINDOW

STEP: Final = 2
"""Samples from one moment to the next."""
TABLES: Final = 80
VOTES: Final = 2
LIKE: Final = 0.7
"""Cosine of two moments' vectors below which the same key is chance: of copies trimmed, cropped by 5 % or a
sample apart, 95 in 100 are above 0.89."""
VOTES_EACH: Final = 0.1
"""Votes of a table for each moment, about: what memory the search takes, and how much is compared in vain."""
LEAST_VOTES: Final = 10_000
FEWEST_BITS: Final = 14
MOST_BITS: Final = 31
PARTS: Final = 16
"""Votes are sorted in so many parts."""
FULLEST: Final = 32
"""In a bucket of one key, a moment is paired with so many that follow: of what is shown a thousand times, a
chain of pairs is found instead of all."""
PLACES: Final = 3
"""Voted moments of a pair at which it is compared."""

_LOW: Final = 4  # frequencies of each direction that moments are described by
_SMOOTH: Final = 5  # samples of which the mean is taken, as two copies' moments may be a sample apart
_VERTICAL, _HORIZONTAL = (axis.ravel()[1:] for axis in np.mgrid[:_LOW, :_LOW])
# Those that a mirror leaves as they are come first: their planes are a block of their own.
_ORDER: Final = np.argsort(_HORIZONTAL % 2, kind="stable")
_TAKEN: Final = (_VERTICAL * SIDE + _HORIZONTAL)[_ORDER]
_WEIGHT: Final = np.hypot(_VERTICAL, _HORIZONTAL)[_ORDER].astype(np.float32)
_OFFSETS: Final = np.arange(-(WINDOW // 2), WINDOW // 2 + 1, 3)
_EVEN: Final = int((_HORIZONTAL % 2 == 0).sum()) * len(_OFFSETS)
DIMENSIONS: Final = len(_OFFSETS) * len(_TAKEN)
_REACH: Final = WINDOW // 2 + _SMOOTH // 2  # samples before and behind a moment that describe it
_LOUD: Final = 400.0  # int8 levels of a vector of length 1
_BLOCK: Final = 1 << 17

_VIDEO_BITS: Final = 21
_LAG_BITS: Final = 21


@dataclass(frozen=True, slots=True)
class Moments:
    """vectors: int8 [n, DIMENSIONS]. video: int32 [n], ascending; sample: int32 [n], ascending within a
    video."""

    vectors: NDArray[np.int8]
    video: NDArray[np.int32]
    sample: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two videos that may show the same, at about this lag in samples, from these samples of `one` on."""

    one: int
    other: int
    lag: int
    mirrored: bool
    places: tuple[int, ...]


def describe_moments(samples: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
    """Vectors int8 [n, DIMENSIONS] and their samples int32 [n]; those left out in which nothing moves."""
    count = len(samples)
    middle = np.arange(_REACH, count - _REACH, STEP)
    if not len(middle):
        return np.zeros((0, DIMENSIONS), np.int8), np.zeros(0, np.int32)
    low = samples[:, _TAKEN].astype(np.float32) * _WEIGHT
    total = np.cumsum(np.concatenate([np.zeros_like(low[:1]), low]), axis=0, dtype=np.float64)
    smooth = ((total[_SMOOTH:] - total[:-_SMOOTH]) / _SMOOTH).astype(np.float32)
    rows = smooth[middle[:, None] + _OFFSETS - _SMOOTH // 2]
    rows -= rows.mean(1, keepdims=True)
    flat = rows.transpose(0, 2, 1).reshape(len(middle), DIMENSIONS)
    size = np.sqrt((flat * flat).sum(1))
    moving = size**2 > STILL * len(_OFFSETS)
    flat = flat[moving] * (_LOUD / size[moving])[:, None]
    return np.clip(np.rint(flat), -127, 127).astype(np.int8), middle[moving].astype(np.int32)


def gather(
    videos: int, samples_of: Callable[[int], NDArray[Any] | None], seen: Callable[[int], Any]
) -> Moments:
    """The moments of all videos; samples_of gives those of one, or None. seen(done) is called after each."""
    vectors, video, sample = [], [], []
    for number in range(videos):
        samples = samples_of(number)
        if samples is not None:
            found, places = describe_moments(samples)
            vectors.append(found)
            sample.append(places)
            video.append(np.full(len(places), number, np.int32))
        seen(number + 1)
    if not vectors:
        return Moments(np.zeros((0, DIMENSIONS), np.int8), np.zeros(0, np.int32), np.zeros(0, np.int32))
    return Moments(np.concatenate(vectors), np.concatenate(video), np.concatenate(sample))


def pairs_of(
    moments: Moments, side: NDArray[np.int8] | None, seed: int, seen: Callable[[int], Any]
) -> Iterator[Pair]:
    """Pairs of videos to compare, ordered by their numbers and, from many to few, votes; `one` before
    `other`.

    side: int8 [videos]; only videos of different sides are paired. None pairs all, and each with itself at
    lags of WINDOW samples or more. seen(done) is called after each of TABLES tables.
    """
    if len(moments.video) < 2:
        return
    if int(moments.video[-1]) >= 1 << _VIDEO_BITS:
        raise ValueError(f"video {moments.video[-1]}: no more than {1 << _VIDEO_BITS} can be compared")
    sides = np.zeros(0, np.int8) if side is None else side
    codes: list[NDArray[np.uint64]] = []
    places: list[NDArray[np.int32]] = []
    for table, (entries, size) in enumerate(_tables(moments, sides, seed)):
        code, place = np.empty(size, np.uint64), np.empty(size, np.int32)
        filled = _emit(entries, moments.vectors, moments.video, moments.sample, sides, code, place)
        codes.append(code[:filled].copy())
        places.append(place[:filled].copy())
        seen(table + 1)
    yield from _elected(np.concatenate(codes), np.concatenate(places))


def _tables(moments: Moments, side: NDArray[np.int8], seed: int) -> Iterator[tuple[NDArray[np.uint64], int]]:
    """The sorted entries of each table, and how many votes they have.

    Keys have as many bits as leave a table VOTES_EACH votes a moment, found on the first one: how often
    moments are alike by chance depends on the corpus.
    """
    count = len(moments.video)
    most = max(LEAST_VOTES, round(VOTES_EACH * count))
    bits = int(np.clip(np.ceil(np.log2(1.5 * float(count) ** 2 / most)), FEWEST_BITS, MOST_BITS))
    for table in range(TABLES):
        while True:
            entries = _entries(moments, bits, np.random.default_rng([seed, table]))
            entries.sort()
            size = _emit(entries, moments.vectors, moments.video, moments.sample, side, None, None)
            if table > 0 or size <= most or bits == MOST_BITS:
                break
            bits = min(MOST_BITS, bits + 2)
        yield entries, size


def _entries(moments: Moments, bits: int, draw: np.random.Generator) -> NDArray[np.uint64]:
    """uint64 [2 n]: key, whether mirrored, and number of each moment."""
    planes = draw.standard_normal((DIMENSIONS, bits)).astype(np.float32)
    count = len(moments.vectors)
    entries = np.empty(2 * count, np.uint64)
    for first in range(0, count, _BLOCK):
        rows = moments.vectors[first : first + _BLOCK].astype(np.float32)
        even_part, odd_part = rows[:, :_EVEN] @ planes[:_EVEN], rows[:, _EVEN:] @ planes[_EVEN:]
        numbers = np.arange(first, first + len(rows), dtype=np.uint64)
        for mirrored, sides in enumerate((even_part + odd_part, even_part - odd_part)):
            key = _packed(sides)
            place = mirrored * count + first
            entries[place : place + len(rows)] = (
                key << np.uint64(32) | np.uint64(mirrored) << np.uint64(31) | numbers
            )
    return entries


@njit(cache=True)
def _packed(values):
    """uint64 [n]: the signs of float32 [n, bits] as bits."""
    keys = np.zeros(len(values), np.uint64)
    for row in range(values.shape[0]):
        key = np.uint64(0)
        for bit in range(values.shape[1]):
            key = (key << np.uint64(1)) | np.uint64(values[row, bit] > 0)
        keys[row] = key
    return keys


@njit(cache=True)
def _emit(entries, vectors, video, sample, side, codes, places):
    """Votes of the pairs in each bucket that are LIKE enough; how many. Without arrays to fill, all pairs are
    counted."""
    found = 0
    count = len(entries)
    shift, flag, low = np.uint64(32), np.uint64(1 << 31), np.uint64((1 << 31) - 1)
    start = 0
    while start < count:
        end = start + 1
        while end < count and entries[end] >> shift == entries[start] >> shift:
            end += 1
        for i in range(start, end):
            if entries[i] & flag:
                break  # plain ones come first: pairs of two mirrored moments are pairs of two plain ones
            one = np.int64(entries[i] & low)
            paired = 0
            for j in range(i + 1, end):
                mirrored = entries[j] & flag != 0
                other = np.int64(entries[j] & low)
                if other <= one:
                    continue
                a, b = video[one], video[other]
                lag = np.int64(sample[other]) - np.int64(sample[one])
                if len(side) > 0:
                    if side[a] == side[b]:
                        continue
                elif a == b and lag < WINDOW:
                    continue
                paired += 1
                if codes is not None:
                    near = np.int64(0)
                    for k in range(vectors.shape[1]):
                        product = np.int64(vectors[one, k]) * np.int64(vectors[other, k])
                        near += -product if mirrored and k >= _EVEN else product
                    if near < LIKE * _LOUD * _LOUD:
                        if paired == FULLEST:
                            break
                        continue
                    code = np.uint64(a) << np.uint64(_VIDEO_BITS + _LAG_BITS + 1)
                    code |= np.uint64(b) << np.uint64(_LAG_BITS + 1)
                    code |= np.uint64(mirrored) << np.uint64(_LAG_BITS)
                    code |= np.uint64(lag // STEP + (1 << (_LAG_BITS - 1)))
                    codes[found] = code
                    places[found] = sample[one]
                found += 1
                if paired == FULLEST:
                    break
        start = end
    return found


def _elected(codes: NDArray[np.uint64], places: NDArray[np.int32]) -> Iterator[Pair]:
    """The pairs with VOTES, from all votes; a part of the videos at a time, as sorting takes memory."""
    if not len(codes):
        return
    shift = np.uint64(_VIDEO_BITS + _LAG_BITS + 1)
    edges = np.linspace(0, int(codes.max() >> shift) + 1, PARTS + 1).astype(np.uint64)
    for low, high in pairwise(edges << shift):
        part = np.flatnonzero((codes >= low) & (codes < high))
        yield from _elected_of(codes[part], places[part])


def _elected_of(codes: NDArray[np.uint64], places: NDArray[np.int32]) -> Iterator[Pair]:
    order = np.argsort(codes, kind="stable")
    codes, places = codes[order], places[order]
    if not len(codes):
        return
    firsts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1]))
    counts = np.diff(np.append(firsts, len(codes)))
    kinds = codes[firsts]
    # A lag that lies between two steps has its votes in both.
    after = np.append((kinds[1:] - kinds[:-1] == 1) * counts[1:], 0)
    elected = np.flatnonzero(counts + after >= VOTES)
    videos = kinds[elected] >> np.uint64(_LAG_BITS + 1)
    for k in elected[np.lexsort((kinds[elected], -(counts + after)[elected], videos))].tolist():
        code = int(kinds[k])
        own = np.unique(places[firsts[k] : firsts[k] + counts[k] + after[k]])
        chosen = own[(np.arange(min(PLACES, len(own))) * len(own)) // min(PLACES, len(own))]
        lag = (code & (1 << _LAG_BITS) - 1) - (1 << _LAG_BITS - 1)
        yield Pair(
            code >> _VIDEO_BITS + _LAG_BITS + 1,
            code >> _LAG_BITS + 1 & (1 << _VIDEO_BITS) - 1,
            lag * STEP,
            bool(code >> _LAG_BITS & 1),
            tuple(chosen.tolist()),
        )


def span_seconds() -> float:
    """A video shorter than this has no moment, and cannot be found."""
    return (2 * _REACH + 1) / RATE
