"""Stage `dedup`: which stretches of the corpus show the same footage, and which segments that makes
duplicates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from surgrec.configs.curate import SegmentOptions
from surgrec.curation.fingerprint import RATE, clock_of
from surgrec.curation.near_duplicates import find_matches
from surgrec.curation.per_video import Progress, Workers, find_all
from surgrec.curation.records import Arrays, Found, VideoRecords, digest_of, key_of
from surgrec.curation.same_footage import Match
from surgrec.curation.scenes import choose_detector
from surgrec.curation.segment_stage import look, look_task
from surgrec.loaders.packet_index import OK, SEQUENTIAL, PacketIndex
from surgrec.loaders.segments import SegmentTable

VERSION: Final = 1
COLUMNS: Final = {
    "one": "i4",
    "other": "i4",
    "start": "i8",
    "end": "i8",
    "lag": "f8",
    "mirrored": "?",
    "score": "f8",
}
"""Of a table of matches, in the order of Match."""
EXACT: Final = "duplicate"
NEAR: Final = "near duplicate"

SamplesOf = Callable[[int], "NDArray[Any] | None"]


def find_footage(
    index: PacketIndex,
    segments: Arrays,
    options: SegmentOptions,
    records: VideoRecords,
    workers: Workers,
    seed: int,
    progress: Progress,
) -> Found:
    """The matches between all videos that have segments, as columns: COLUMNS. Of files with the same content
    one is compared. Noted are the videos that could not be looked at, with the reason.

    Raises CurationError and OSError as find_all does.
    """
    videos = np.unique(segments["video"]).tolist()
    samples_of, notes = fingerprints(
        index, videos, choose_detector(options.detector), options.threshold, records, workers, progress
    )
    same = {video for group in same_files(index, videos) for video in group[1:]}
    matches = find_matches(
        len(index), lambda video: None if video in same else samples_of(video), None, seed, progress
    )
    return Found(columns_of(matches), notes, not notes)


def footage_key(index: PacketIndex, segments: Arrays, options: SegmentOptions, seed: int) -> str:
    """Of the stage's table."""
    # Fingerprints come from the pictures that scenes are sought in.
    looked = choose_detector(options.detector), options.threshold
    return key_of("dedup", VERSION, index.digest, digest_of({"video": segments["video"]}), looked, seed)


def fingerprints(
    index: PacketIndex,
    videos: list[int],
    detector: str,
    threshold: float,
    records: VideoRecords,
    workers: Workers,
    progress: Progress,
) -> tuple[SamplesOf, dict[str, str]]:
    """What gives the samples of each of `videos`, and None for others; and why some have none, by path."""
    tasks = {video: look_task(index, video, detector, threshold) for video in videos}
    notes: dict[str, str] = {}
    seen: set[int] = set()
    found = find_all("dedup", look, list(tasks.values()), records, index, workers)
    for done, finding in enumerate(found, 1):
        if finding.arrays is None:
            notes[index.videos.path[finding.video]] = f"not compared with others: {finding.reason}"
        else:
            seen.add(finding.video)
        progress(done, len(tasks))

    def samples_of(video: int) -> NDArray[Any] | None:
        arrays = records.get(tasks[video].key) if video in seen else None
        return None if arrays is None else arrays["samples"]

    return samples_of, notes


def columns_of(matches: list[Match]) -> Arrays:
    """The table of matches."""
    rows = [astuple(match) for match in matches]
    return {
        name: np.array([row[place] for row in rows], kind)
        for place, (name, kind) in enumerate(COLUMNS.items())
    }


def matches_of(columns: Arrays) -> list[Match]:
    """What columns_of made a table of."""
    return [Match(*row) for row in zip(*(columns[name].tolist() for name in COLUMNS), strict=True)]


def same_files(index: PacketIndex, videos: list[int]) -> list[list[int]]:
    """Groups of videos whose files have the same content, each sorted by path; the first stands for all."""
    groups: dict[tuple[str, int, int], list[int]] = {}
    table = index.videos
    for video in videos:
        if table.xxh3[video] and table.status[video] in (OK, SEQUENTIAL):
            key = table.xxh3[video], int(table.file_size[video]), int(table.frame_count[video])
            groups.setdefault(key, []).append(video)
    return [sorted(group, key=lambda v: table.path[v]) for group in groups.values() if len(group) > 1]


def segment_samples(index: PacketIndex, segments: SegmentTable) -> NDArray[np.float64]:
    """float64 [n, 2]: when each segment begins and ends, in samples of its video's fingerprint."""
    found = np.empty((len(segments), 2))
    for video, own in segments.by_video().items():
        clock = clock_of(index, video) * RATE
        found[own, 0], found[own, 1] = clock[segments.start[own]], clock[segments.end[own]]
    return found


@dataclass(frozen=True)
class Duplicates:
    """of: int64 [n], number of the segment that stands for each duplicate, -1 for others. exact: bool [n],
    whether the files are the same."""

    of: NDArray[np.int64]
    exact: NDArray[np.bool_]


def find_duplicates(
    index: PacketIndex, segments: SegmentTable, kept: NDArray[np.bool_], matches: list[Match], share: float
) -> Duplicates:
    """The segments that others show already.

    Videos are ranked: larger pictures first, then more bits a second, then the longer, then by path. A
    segment is a duplicate where at least `share` of its time is shown by segments of videos of higher rank,
    or earlier in its own. What it duplicates is the one that shows most of it among those that stay, or,
    where none of these does, what the one duplicates that shows most of it. Segments that are not kept
    neither are duplicates nor have any. Raises ValueError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"dedup.share is {share}; it must be above 0, and at most 1")
    parent = np.full(len(segments), -1, np.int64)
    exact = np.zeros(len(segments), bool)
    rows = segments.by_video()
    for group in same_files(index, list(rows)):
        first = rows[group[0]]
        places = {
            (int(segments.start[k]), int(segments.end[k])): k
            for k in range(first.start, first.stop)
            if kept[k]
        }
        for video in group[1:]:
            for k in range(rows[video].start, rows[video].stop):
                original = places.get((int(segments.start[k]), int(segments.end[k])))
                if kept[k] and original is not None:
                    parent[k], exact[k] = original, True
    times = segment_samples(index, segments)
    shown: dict[int, dict[int, list[tuple[float, float]]]] = {}
    rank = _ranks(index)
    for match in matches:
        if match.one not in rows or match.other not in rows:
            continue
        forward = match.one == match.other or rank[match.one] < rank[match.other]
        original, copy = (match.one, match.other) if forward else (match.other, match.one)
        lag = match.lag if forward else -match.lag  # a time of the copy is one of the original and this
        begin = match.start + (match.lag if forward else 0.0)
        for k, first_time, last_time in _within(times, rows[copy], begin, begin + match.end - match.start):
            for j, a, b in _within(times, rows[original], first_time - lag, last_time - lag):
                if j != k and kept[j] and kept[k]:
                    shown.setdefault(k, {}).setdefault(j, []).append((a + lag, b + lag))
    # From high rank to low: what is said of a segment is known before it stands for another one.
    for k in sorted(shown, key=lambda row: (rank[segments.video[row]], row)):
        originals = shown[k]
        if parent[k] >= 0:
            continue
        length = times[k, 1] - times[k, 0]
        whole = _length([span for spans in originals.values() for span in spans])
        if whole >= share * length:
            parent[k] = max(originals, key=lambda j: (parent[j] < 0, _length(originals[j]), -j))
    for k in np.flatnonzero(parent >= 0).tolist():
        while parent[parent[k]] >= 0:
            parent[k] = parent[parent[k]]
    return Duplicates(parent, exact)


def _ranks(index: PacketIndex) -> NDArray[np.int64]:
    """int64 [V]: place of each video in the order in which others are copies of it."""
    table = index.videos

    def order(video: int) -> tuple[float, float, float, str]:
        length = float(table.duration[video])
        bits = float(table.file_size[video]) / length if length > 0 else 0.0
        size = int(table.width[video]) * int(table.height[video]) // int(table.stack[video])
        return -size, -bits, -length, table.path[video]

    ranks = np.empty(len(index), np.int64)
    ranks[sorted(range(len(index)), key=order)] = np.arange(len(index))
    return ranks


def _within(
    times: NDArray[np.float64], own: slice, begin: float, end: float
) -> list[tuple[int, float, float]]:
    """The segments among the rows `own` that [begin, end) touches: row, and from when to when, in samples."""
    first = own.start + int(np.searchsorted(times[own, 1], begin, "right"))
    found = []
    for row in range(first, own.stop):
        if times[row, 0] >= end:
            break
        found.append((row, max(begin, float(times[row, 0])), min(end, float(times[row, 1]))))
    return found


def _length(spans: list[tuple[float, float]]) -> float:
    """Of the union."""
    total, reached = 0.0, -np.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
