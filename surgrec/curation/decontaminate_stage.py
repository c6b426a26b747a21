"""Stage `decontaminate`: which segments show what a model will be tested on, and the proof of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from surgrec.configs.curate import DecontaminateOptions, SegmentOptions
from surgrec.corpus.build import BuildError, build_index
from surgrec.curation.alike import describe_moments, span_seconds
from surgrec.curation.dedup_stage import (
    columns_of,
    fingerprints,
    matches_of,
    segment_samples,
)
from surgrec.curation.downstream import Clip, entries_of
from surgrec.curation.fingerprint import RATE, clock_of
from surgrec.curation.near_duplicates import find_matches
from surgrec.curation.per_video import Progress, Workers
from surgrec.curation.records import Arrays, CurationError, Found, VideoRecords, digest_of, key_of
from surgrec.curation.same_footage import Match
from surgrec.curation.scenes import choose_detector
from surgrec.loaders.packet_index import OK, SEQUENTIAL, STATUS_NAMES, PacketIndex
from surgrec.loaders.segments import SegmentTable
from surgrec.loaders.whole_file import replacing

VERSION: Final = 1
SHOWN: Final = 10
HEADER: Final = (
    "video",
    "start",
    "end",
    "dataset",
    "split",
    "downstream_video",
    "downstream_start",
    "downstream_end",
    "mirrored",
    "score",
    "remark",
)
"""Columns of the report; seconds from the first frame on."""


@dataclass(frozen=True, slots=True)
class Contact:
    """A segment, by number, that shows seconds [start, end) of a downstream clip's video."""

    segment: int
    clip: Clip
    start: float
    end: float
    mirrored: bool
    score: float


def index_downstream(clips: Sequence[Clip], work: Path, workers: int) -> PacketIndex:
    """The index of the clips' videos, in `work`; what did not change is not read again. Raises
    CurationError."""
    out = work / "downstream.h5"
    work.mkdir(parents=True, exist_ok=True)
    try:
        build_index(entries_of(clips), out, workers)
    except BuildError as error:
        raise CurationError(f"the downstream videos cannot be indexed: {error}") from error
    return PacketIndex.open(out)


def counted(clips: Sequence[Clip], options: DecontaminateOptions) -> list[Clip]:
    """The clips of splits that matter. Raises ValueError where none is left."""
    found = [clip for clip in clips if clip.split in options.splits]
    if not found:
        raise ValueError(
            f"decontaminate.videos names {len(clips)} clips, but none of the splits"
            f" {', '.join(options.splits)}"
        )
    return found


def find_contacts(
    index: PacketIndex,
    segments: Arrays,
    segmenting: SegmentOptions,
    downstream: PacketIndex,
    clips: Sequence[Clip],
    options: DecontaminateOptions,
    records: VideoRecords,
    workers: Workers,
    seed: int,
    progress: Progress,
) -> Found:
    """The matches between videos of the corpus, `one`, and downstream ones, `other`, as columns. Noted are
    the videos of both that could not be compared, with the reason.

    Raises CurationError for downstream videos that cannot be compared, unless the options let it go on, and
    as find_all does.
    """
    ours = np.unique(segments["video"]).tolist()
    theirs = videos_of(downstream, clips)
    looked = choose_detector(segmenting.detector), segmenting.threshold
    of_ours, notes = fingerprints(index, ours, *looked, records, workers, progress)
    usable = [video for video in theirs if downstream.videos.status[video] in (OK, SEQUENTIAL)]
    of_theirs, lost = fingerprints(downstream, usable, "none", 0.0, records, workers, progress)
    same = _same_content(index, ours, downstream, theirs)
    exact = {match.other for match in same}
    problems = dict(lost)
    for video in theirs:
        path = downstream.videos.path[video]
        if video not in usable:
            status = STATUS_NAMES[downstream.videos.status[video]]
            problems[path] = f"status {status} in their index: {downstream.videos.reason[video]}"
        elif path not in lost and video not in exact:
            samples = of_theirs(video)
            if samples is None or not len(describe_moments(samples)[0]):
                problems[path] = (
                    f"nothing in it can be recognised: it is shorter than {span_seconds():g} s, or nothing"
                    f" moves"
                )
    if problems and not options.go_on:
        raise CurationError(_refusal(problems))
    side = np.repeat(np.array([0, 1], np.int8), [len(index), len(downstream)])
    mine, other = set(ours), set(usable)

    def samples_of(video: int) -> np.ndarray | None:
        if video < len(index):
            return of_ours(video) if video in mine else None
        return of_theirs(video - len(index)) if video - len(index) in other else None

    found = find_matches(len(side), samples_of, side, seed, progress)
    matches = [Match(m.one, m.other - len(index), m.start, m.end, m.lag, m.mirrored, m.score) for m in found]
    return Found(columns_of(matches + same), notes | problems, not (notes or problems))


def contacts_key(
    index: PacketIndex,
    segments: Arrays,
    segmenting: SegmentOptions,
    downstream: PacketIndex,
    clips: Sequence[Clip],
    seed: int,
) -> str:
    """Of the stage's table."""
    looked = choose_detector(segmenting.detector), segmenting.threshold
    videos = videos_of(downstream, clips)
    own = digest_of({"video": segments["video"]})
    return key_of("decontaminate", VERSION, index.digest, own, looked, downstream.digest, videos, seed)


def videos_of(downstream: PacketIndex, clips: Sequence[Clip]) -> list[int]:
    """Numbers of the clips' videos in their index."""
    paths = {clip.path for clip in clips}
    return [video for video, path in enumerate(downstream.videos.path) if path in paths]


def contacts_of(
    index: PacketIndex,
    segments: SegmentTable,
    downstream: PacketIndex,
    clips: Sequence[Clip],
    columns: Arrays,
) -> list[Contact]:
    """The segments that show a part of a clip, by number and time; of each pair the longest contact."""
    times = segment_samples(index, segments)
    rows = segments.by_video()
    by_path: dict[str, list[Clip]] = {}
    for clip in clips:
        by_path.setdefault(clip.path, []).append(clip)
    best: dict[tuple[int, Clip], Contact] = {}
    for match in matches_of(columns):
        own = rows.get(match.one)
        wanted = by_path.get(downstream.videos.path[match.other], [])
        if own is None or not wanted:
            continue
        clock = clock_of(downstream, match.other)
        seconds = _seconds(downstream, match.other)
        for clip in wanted:
            # Bounds in seconds of the file; where the clock of fingerprints leaves out holes, they move
            # along.
            low, high = np.interp([clip.start, min(clip.end, seconds[-1])], seconds, clock) * RATE
            begin = max(match.start + match.lag, float(low))
            end = min(match.end + match.lag, float(high))
            first, last = (
                np.maximum(times[own, 0] + match.lag, begin),
                np.minimum(times[own, 1] + match.lag, end),
            )
            for row in np.flatnonzero(last > first).tolist():
                a, b = np.interp([first[row] / RATE, last[row] / RATE], clock, seconds).tolist()
                contact = Contact(own.start + row, clip, a, b, match.mirrored, match.score)
                known = best.get((contact.segment, clip))
                if known is None or known.end - known.start < b - a:
                    best[contact.segment, clip] = contact
    return sorted(
        best.values(), key=lambda c: (c.segment, c.clip.path, c.start, c.clip.split, c.clip.dataset)
    )


def reasons_of(contacts: Sequence[Contact]) -> dict[int, str]:
    """Why each segment is not drawn, by number: `shows DATASET SPLIT`, test before others."""
    found: dict[int, str] = {}
    for contact in sorted(contacts, key=lambda c: (c.segment, c.clip.split != "test", c.clip.dataset)):
        found.setdefault(contact.segment, f"shows {contact.clip.dataset} {contact.clip.split}")
    return found


def write_report(
    path: Path,
    index: PacketIndex,
    segments: SegmentTable,
    contacts: Sequence[Contact],
    clips: Sequence[Clip],
    notes: dict[str, str],
) -> None:
    """The CSV table of all contacts, then a row for each video that could not be compared. Raises OSError."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADER)
    for contact in contacts:
        video = int(segments.video[contact.segment])
        seconds = _seconds(index, video)
        start, end = segments.start[contact.segment], segments.end[contact.segment]
        spans = [f"{value:.2f}" for value in (seconds[start], seconds[end], contact.start, contact.end)]
        clip = contact.clip
        of_clip = (clip.dataset, clip.split, clip.path)
        table.writerow(
            (
                index.videos.path[video],
                *spans[:2],
                *of_clip,
                *spans[2:],
                int(contact.mirrored),
                f"{contact.score:.3f}",
                "",
            )
        )
    sets = {clip.path: (clip.dataset, clip.split) for clip in clips}
    for name, why in sorted(notes.items()):
        if name in sets:
            table.writerow(("", "", "", *sets[name], name, "", "", "", "", f"not compared: {why}"))
        else:
            table.writerow((name, "", "", "", "", "", "", "", "", "", f"not compared: {why}"))
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def record_of(clips: Sequence[Clip], downstream: PacketIndex) -> list[dict[str, object]]:
    """What was compared with, for the plan's record: the content of each clip's file instead of where it
    lies."""
    contents = dict(zip(downstream.videos.path, downstream.videos.xxh3, strict=True))
    rows = [asdict(clip) | {"path": Path(clip.path).name, "xxh3": contents[clip.path]} for clip in clips]
    return [row | {"end": None if np.isinf(row["end"]) else row["end"]} for row in rows]


def _same_content(
    index: PacketIndex, ours: Sequence[int], downstream: PacketIndex, theirs: Sequence[int]
) -> list[Match]:
    """Whole-video matches of files with the same content: still ones are found, too, and short ones."""
    known: dict[tuple[str, int], list[int]] = {}
    for video in ours:
        known.setdefault((index.videos.xxh3[video], int(index.videos.file_size[video])), []).append(video)
    found = []
    for other in theirs:
        if downstream.videos.xxh3[other] and downstream.videos.status[other] in (OK, SEQUENTIAL):
            key = downstream.videos.xxh3[other], int(downstream.videos.file_size[other])
            end = int(np.ceil(clock_of(downstream, other)[-1] * RATE))
            found += [Match(video, other, 0, end, 0.0, False, 1.0) for video in known.get(key, [])]
    return found


def _seconds(index: PacketIndex, video: int) -> np.ndarray:
    """float64 [frames + 1]: when each frame comes on display by its time stamp, from the first one on, and
    the end of the last one."""
    tick = int(index.videos.time_base_num[video]) / int(index.videos.time_base_den[video])
    times = index.frame_pts(video)
    clock = clock_of(index, video)
    seconds = np.maximum.accumulate((times - times[0]) * tick)
    return np.append(seconds, seconds[-1] + clock[-1] - clock[-2])


def _refusal(problems: dict[str, str]) -> str:
    shown = [f"{path}: {why}" for path, why in sorted(problems.items())[:SHOWN]]
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return (
        f"{len(problems)} downstream videos cannot be compared, so that nothing would be proven: "
        f"{'; '.join(shown)}{more}. Repair or remove them, or pass --decontaminate.go-on, and the report"
        f" says so"
    )
