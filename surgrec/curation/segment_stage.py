"""Stage `segments`: every video that can be decoded, cut at scenes and into pieces of a length."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from typing import Any, Final

import numpy as np

from surgrec.configs.curate import SegmentOptions
from surgrec.curation.fingerprint import Printer, clock_of
from surgrec.curation.frames_in_order import frames_in_order
from surgrec.curation.per_video import Progress, Task, Workers, find_all
from surgrec.curation.records import Arrays, Found, VideoRecords, key_of
from surgrec.curation.scenes import CONTENT_SIZE, TRANSNET_SIZE, choose_detector, scene_starts
from surgrec.curation.segment_video import segment_bounds
from surgrec.loaders.packet_index import OK, SEQUENTIAL, STATUS_NAMES, PacketIndex

VERSION: Final = 2
"""Goes up when the same video would be cut elsewhere, or its fingerprint would be another."""


def find_segments(
    index: PacketIndex, options: SegmentOptions, records: VideoRecords, workers: Workers, progress: Progress
) -> Found:
    """The segments of all videos: video int32, start and end int64 [n]. Noted are the videos that have none,
    or whose scenes could not be looked for, with the reason.

    Raises ValueError for options that make no sense, CurationError and OSError as find_all does.
    """
    if not (np.isfinite(options.seconds) and options.seconds > 0):
        raise ValueError(f"segments of {options.seconds} s: the length must be above 0")
    if not options.threshold > 0:
        raise ValueError(f"the scene threshold is {options.threshold}; it must be above 0")
    detector = choose_detector(options.detector)
    table = index.videos
    notes: dict[str, str] = {}
    wanted = []
    for video in range(len(index)):
        if table.status[video] not in (OK, SEQUENTIAL):
            status = STATUS_NAMES[table.status[video]]
            notes[table.path[video]] = f"status {status} in the index: {table.reason[video]}"
        elif table.frame_count[video] == 0:
            notes[table.path[video]] = "the index knows no frame of it"
        else:
            wanted.append(video)
    scenes: dict[int, list[int]] = {video: [] for video in wanted}
    complete = True
    if detector != "none":
        tasks = [look_task(index, video, detector, options.threshold) for video in wanted]
        for done, finding in enumerate(find_all("segments", look, tasks, records, index, workers), 1):
            if finding.arrays is None:
                complete = False
                notes[table.path[finding.video]] = f"cut without looking for scenes: {finding.reason}"
            else:
                scenes[finding.video] = finding.arrays["starts"].tolist()
            progress(done, len(tasks))
    bounds = {video: segment_bounds(index, video, options.seconds, scenes[video]) for video in wanted}
    pairs = [(video, a, b) for video in wanted for a, b in pairwise(bounds[video].tolist())]
    columns = np.array(pairs, np.int64).reshape(-1, 3)
    arrays: Arrays = {"video": columns[:, 0].astype(np.int32), "start": columns[:, 1], "end": columns[:, 2]}
    return Found(arrays, notes, complete)


def segments_key(index: PacketIndex, options: SegmentOptions) -> str:
    """Of the stage's table."""
    known = asdict(options) | {"detector": choose_detector(options.detector)}
    return key_of("segments", VERSION, index.digest, known)


def look_task(index: PacketIndex, video: int, detector: str, threshold: float) -> Task:
    """The task of `look` for a video; its key knows the file's content, so that stages share its record."""
    about = (detector, threshold)
    content = index.videos.xxh3[video], int(index.videos.frame_count[video])
    return Task(video, key_of("look", VERSION, about, content), about)


def look(index: PacketIndex, video: int, about: tuple[Any, float]) -> Arrays:
    """What is found by one look at every frame: `starts` of scenes, int64, and `samples`, the fingerprint of
    the video. Runs in a process of per_video. detector `none` finds no scenes."""
    detector, threshold = about
    size = TRANSNET_SIZE if detector == "transnet" else CONTENT_SIZE
    printer = Printer(clock_of(index, video), int(index.videos.rotation[video]))
    frames = printer.passing(frames_in_order(index, video, *size))
    starts: list[int] = []
    if detector == "none":
        for _ in frames:
            pass
    else:
        starts = scene_starts(frames, detector, float(index.videos.rate[video]), threshold)
    return {"starts": np.array(starts, np.int64), "samples": printer.samples()}
