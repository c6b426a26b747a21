"""From a clip request to the packets that must be decoded for it, and the byte ranges that hold them.

With key frames K, wanted frames w, frames that others refer to r and disposable frames d, in decode order,
the feed for a clip is marked ^:

    K r d d r d d K d d r d w r d d w d r d w d d K r d
                  ^     ^   ^ ^     ^   ^   ^

Decoding starts at the last key frame at or before the first wanted one and ends at the last wanted one.
Disposable packets whose frames nobody wants are left out: no other frame changes by that. Where a later
key frame makes the rest of a group of pictures useless, that rest is left out, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray
from surgrec.loaders.packet_index import (
    BROKEN,
    DISPOSABLE,
    ERROR,
    FAULTY,
    KEY,
    NO_RANK,
    OPEN_KEY,
    REMOVED,
    PacketIndex,
)

COALESCE_BYTES: Final = 32 * 1024
"""Gaps up to this many bytes between packets are read along rather than sought over."""

# Roles of a packet in a plan.
WANTED: Final = 1  # its frame is part of the clip
START: Final = 2  # does not follow on the packet fed before: decoding starts anew at this key frame
LEADING: Final = 4  # leading picture of an open-GOP start: fed for its side effects, its frame is no good
EMPTY_FIRST: Final = 8  # with START: drain and flush the decoder first, this key frame does not reset it

_BROKEN_PACKET: Final = -1
_NO_PACKET: Final = -2
_BAD_POSITIONS: Final = -3


class ClipTooLong(ValueError):  # noqa: N818 - named for what is wrong
    """The video has too few frames, or is too short, for one clip."""


class PlanError(ValueError):
    """The index says that a requested frame cannot be decoded."""


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """One clip: display positions `frames` of a video, non-decreasing, repeats allowed.

    `sample` is the number by which the run knows the clip; `video` counts within the index.
    """

    sample: int
    video: int
    frames: tuple[int, ...]

    def places(self, stack: int) -> tuple[int, ...]:
        """Which of the `stack` frames in its picture each row shows, from 0 at the top."""
        return tuple(frame % stack for frame in self.frames)


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """What to read and to feed for one clip. P packets, T rows, R byte ranges.

    packets: int64 [P], numbers within the video, in decode order.
    roles: uint8 [P], bits WANTED, START, LEADING, EMPTY_FIRST.
    places: int64 [P], first byte of each packet in the concatenation of the ranges.
    sizes: int64 [P], bytes of each packet.
    rows: int64 [T], number within the video of the packet whose frame each row shows; several rows may show
    frames of one picture (ClipRequest.places).
    ranges: int64 [R, 2], offset in the file and length, in bytes.
    """

    packets: NDArray[np.int64]
    roles: NDArray[np.uint8]
    places: NDArray[np.int64]
    sizes: NDArray[np.int64]
    rows: NDArray[np.int64]
    ranges: NDArray[np.int64]

    @property
    def read_bytes(self) -> int:
        """Bytes that the ranges hold."""
        return int(self.ranges[:, 1].sum())


def clip_frames(
    index: PacketIndex,
    video: int,
    start_frame: int,
    end_frame: int,
    position: float,
    frames: int,
    stride: int | None = None,
    fps: float | None = None,
    at_key: bool = False,
    within: bool = False,
) -> tuple[int, ...]:
    """Display positions of a clip of `frames` frames that starts inside [start_frame, end_frame).

    position in [0, 1) picks the start, evenly among the frames at which a whole clip still fits into the
    video; where no start in the segment leaves room, the last possible one is taken. With `stride`, frames
    are that many frames apart. With `fps`, frame k is the one on display k/fps seconds after the first:
    the last whose pts is not later than that, half a tick allowed for rounding. With `at_key` the clip starts
    at the last key frame on display at or before the start picked, which may lie before the segment; of
    stacked frames, at the first one in the key picture.

    With `within` all frames lie inside [start_frame, end_frame): the start is picked among those that leave
    room there, and with `at_key` stays where it is if no key frame of the segment is at or before it.

    Raises ClipTooLong where the video, or with `within` the segment, has no room for one clip, and ValueError
    for arguments that no video can meet.
    """
    if (stride is None) == (fps is None):
        raise ValueError(f"give either stride or fps, got stride={stride} and fps={fps}")
    if frames < 1 or (stride is not None and stride < 1) or (fps is not None and not fps > 0):
        raise ValueError(f"frames={frames}, stride={stride}, fps={fps}: each must be positive")
    if not 0.0 <= position < 1.0:
        raise ValueError(f"position {position} is outside [0, 1)")
    table = index.videos
    count = int(table.frame_count[video])
    if not 0 <= start_frame < end_frame <= count:
        raise ValueError(
            f"{table.path[video]}: segment [{start_frame}, {end_frame}) is not within its {count} frames"
        )
    least, end = (start_frame, end_frame) if within else (0, count)
    whole = f"the segment [{start_frame}, {end_frame})" if within else "the video"
    if fps is None:
        assert stride is not None
        room = end - (frames - 1) * stride
        if room <= least:
            raise ClipTooLong(
                f"{table.path[video]}: {frames} frames at stride {stride} span {(frames - 1) * stride + 1}"
                f" frames, {whole} has {end - least}"
            )
        first = _pick(start_frame, end_frame, room, position)
        if at_key:
            first = _snap(
                index.flags, index.display, table.packet_start[video], table.frame_start[video], first, least
            )
        return tuple(range(first, first + (frames - 1) * stride + 1, stride))
    num, den = int(table.time_base_num[video]), int(table.time_base_den[video])
    ticks = den / (num * fps)
    found = _frames_by_time(
        index.pts,
        index.flags,
        index.display,
        table.packet_start[video],
        table.frame_start[video],
        table.stack[video],
        table.frame_ticks[video],
        least,
        end,
        start_frame,
        end_frame,
        position,
        frames,
        ticks,
        at_key,
    )
    if found.size == 0:
        lasts = "" if within else f", which lasts {table.duration[video]:.3f} s"
        raise ClipTooLong(
            f"{table.path[video]}: {frames} frames at {fps:g} per second last {(frames - 1) / fps:.3f} s, too"
            f" long for the {end - least} frames of {whole}{lasts}"
        )
    return tuple(found.tolist())


def plan_clip(index: PacketIndex, request: ClipRequest, drop_disposable: bool = True) -> ClipPlan:
    """The packets and byte ranges that decode a request; both settings of drop_disposable give one picture.

    Raises PlanError where the index says that this cannot be decoded (with the reason), ValueError for
    positions outside the video or in decreasing order.
    """
    table = index.videos
    if not 0 <= request.video < len(table.path):
        raise ValueError(f"video {request.video} is outside the index, which holds {len(table.path)} videos")
    video = request.video
    if table.status[video] in (ERROR, REMOVED):
        raise PlanError(table.reason[video] or "the index marks this video as removed")
    if not request.frames:
        raise ValueError(f"{table.path[video]}: a clip request without frames")
    start = table.packet_start[video]
    count, packets, roles, rows = select_packets(
        index.pts,
        index.rank,
        index.flags,
        index.display,
        start,
        table.packet_count[video],
        table.frame_start[video],
        table.frame_count[video],
        np.array(request.frames, np.int64),
        drop_disposable,
    )
    if count == _BAD_POSITIONS:
        check_positions(request.frames, int(table.frame_count[video]), table.path[video])
    if count == _BROKEN_PACKET:
        raise PlanError(
            f"packet {packets[0]} is needed and damaged ({_what_is_broken(index.flags[start + packets[0]])})"
        )
    if count == _NO_PACKET:
        raise PlanError("the index names a packet that the video does not have; write the index again")
    places, sizes, ranges = byte_ranges(index.offset, index.size, start, packets, COALESCE_BYTES)
    return ClipPlan(packets, roles, places, sizes, rows, ranges)


def _what_is_broken(flags: int) -> str:
    if flags & BROKEN:
        return "its bytes lie outside the file, or its size or its header lies"
    return "FFmpeg reported an error when the index was written; put a sound copy there and index it again"


def check_positions(frames: tuple[int, ...], count: int, path: str) -> None:
    """Raises ValueError unless the positions are non-decreasing, at least one, and within [0, count)."""
    if not frames:
        raise ValueError(f"{path}: a clip request without frames")
    if frames[0] < 0 or frames[-1] >= count:
        raise ValueError(f"{path}: frames {frames[0]} to {frames[-1]} asked, the video has {count}")
    if any(later < earlier for earlier, later in pairwise(frames)):
        raise ValueError(f"{path}: display positions must not decrease, got {frames}")


@njit(cache=True)
def _pick(start, end, room, position):
    """The start frame: evenly among those of [start, end) that are below `room`, or room - 1."""
    high = min(end, room)
    low = min(start, high - 1)
    return min(low + int(position * (high - low)), high - 1)


@njit(cache=True)
def _snap(flags, display, packet_start, frame_start, first, least):
    """The last key frame on display in [least, first]; of the frames in one picture the first. Where there is
    none: 0 if that is the least, else `first` itself."""
    at = first
    while at > least and not flags[packet_start + display[frame_start + at]] & (KEY | OPEN_KEY):
        at -= 1
    if least > 0 and not flags[packet_start + display[frame_start + at]] & (KEY | OPEN_KEY):
        return first
    while at > least and display[frame_start + at - 1] == display[frame_start + at]:
        at -= 1
    return at


@njit(cache=True)
def frame_time(pts, display, packet_start, frame_start, stack, frame_ticks, frame):
    """pts of a video's frame by its display position; the columns are those of PacketIndex."""
    return pts[packet_start + display[frame_start + frame]] + frame % stack * frame_ticks


@njit(cache=True)
def _frames_by_time(
    pts,
    flags,
    display,
    packet_start,
    frame_start,
    stack,
    frame_ticks,
    least,
    count,
    start,
    end,
    position,
    frames,
    ticks,
    at_key,
):
    """int64 [frames] in [least, count), or empty where no start leaves room for the clip."""
    span = (frames - 1) * ticks
    last = frame_time(pts, display, packet_start, frame_start, stack, frame_ticks, count - 1) + 0.5
    # The latest start that leaves room: pts grow with the display position.
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        time = frame_time(pts, display, packet_start, frame_start, stack, frame_ticks, middle)
        if time + span <= last:
            low = middle + 1
        else:
            high = middle
    if low <= least:
        return np.empty(0, np.int64)
    first = _pick(start, end, low, position)
    if at_key:
        first = _snap(flags, display, packet_start, frame_start, first, least)
    found = np.empty(frames, np.int64)
    origin = frame_time(pts, display, packet_start, frame_start, stack, frame_ticks, first)
    found[0] = first
    here = first
    for k in range(1, frames):
        target = origin + k * ticks + 0.5
        low, high = here, count
        while high - low > 1:
            middle = (low + high) // 2
            time = frame_time(pts, display, packet_start, frame_start, stack, frame_ticks, middle)
            if time <= target:
                low = middle
            else:
                high = middle
        here = low
        found[k] = here
    return found


@njit(nogil=True, cache=True)
def _leads(pts, rank, key, packet):
    """Whether `packet`, decoded after the key frame, is displayed before it."""
    if rank[key] != NO_RANK and rank[packet] != NO_RANK:
        return rank[packet] < rank[key]
    return pts[packet] < pts[key]


@njit(nogil=True, cache=True)
def _intervals(pts, rank, flags, start, wanted):
    """int64 [n, 2]: runs of packets (first, last) that decode `wanted`, ascending and apart."""
    keys = np.empty(wanted.size, np.int64)
    nearest = -1  # the last key frame at or before the target, -1 where there is none
    low = 0
    for k in range(wanted.size):
        target = wanted[k]
        for packet in range(target, low - 1, -1):
            if flags[start + packet] & (KEY | OPEN_KEY):
                nearest = packet
                break
        low = target + 1
        key = nearest
        # A leading picture of an open GOP needs the key frame before, at which it may lead again.
        while key > 0 and not flags[start + key] & KEY:
            if flags[start + key] & OPEN_KEY and not _leads(pts, rank, start + key, start + target):
                break
            key -= 1
        keys[k] = max(key, 0)
    runs = np.empty((wanted.size, 2), np.int64)
    at = wanted.size
    for k in range(wanted.size - 1, -1, -1):
        if at < wanted.size and runs[at, 0] <= wanted[k]:
            runs[at, 0] = min(runs[at, 0], keys[k])
        else:
            at -= 1
            runs[at, 0] = keys[k]
            runs[at, 1] = wanted[k]
    return runs[at:]


@njit(nogil=True, cache=True)
def select_packets(pts, rank, flags, display, start, count, frame_start, frame_count, positions, drop):
    """(P or an error, packets [P], roles [P], rows [T])."""
    length = positions.size
    rows = np.empty(length, np.int64)
    no_roles = np.empty(0, np.uint8)
    for row in range(length):
        if positions[row] < 0 or positions[row] >= frame_count or positions[row] < positions[max(row - 1, 0)]:
            return _BAD_POSITIONS, rows, no_roles, rows
        rows[row] = display[frame_start + positions[row]]
        if rows[row] >= count:
            return _NO_PACKET, rows, no_roles, rows
    wanted = np.unique(rows)
    runs = _intervals(pts, rank, flags, start, wanted)
    most = 0
    for run in range(runs.shape[0]):
        most += runs[run, 1] - runs[run, 0] + 1
    packets = np.empty(most, np.int64)
    roles = np.empty(most, np.uint8)
    total = 0
    next_wanted = 0
    for run in range(runs.shape[0]):
        first = runs[run, 0]
        anew = first == 0 or run == 0 or first != runs[run - 1, 1] + 1
        if anew:
            open_start = first > 0 and not flags[start + first] & KEY
            open_key = first
        for packet in range(first, runs[run, 1] + 1):
            flag = flags[start + packet]
            role = 0
            if packet == wanted[next_wanted]:
                role |= WANTED
                next_wanted += 1
            if packet == first and anew:
                role |= START if flag & KEY else START | EMPTY_FIRST
            elif open_start and _leads(pts, rank, start + open_key, start + packet):
                role |= LEADING
            if flag & DISPOSABLE and not role & (WANTED | START) and (drop or role & LEADING):
                continue
            if flag & (BROKEN | FAULTY):
                return _BROKEN_PACKET, np.array([packet]), no_roles, rows
            packets[total] = packet
            roles[total] = role
            total += 1
    return total, packets[:total], roles[:total], rows


@njit(nogil=True, cache=True)
def byte_ranges(offset, size, start, packets, gap):
    """(places [P], sizes [P], ranges [R, 2]): the packets' bytes, close neighbours in one range."""
    total = packets.size
    places = np.empty(total, np.int64)
    sizes = np.empty(total, np.int64)
    ranges = np.empty((total, 2), np.int64)
    used = 0
    base = 0  # where the current range begins in the concatenation
    for k in range(total):
        at = np.int64(offset[start + packets[k]])
        length = np.int64(size[start + packets[k]])
        if used:
            end = ranges[used - 1, 0] + ranges[used - 1, 1]
        if used and 0 <= at - end <= gap:
            ranges[used - 1, 1] = at + length - ranges[used - 1, 0]
        else:
            if used:
                base += ranges[used - 1, 1]
            ranges[used, 0] = at
            ranges[used, 1] = length
            used += 1
        places[k] = base + at - ranges[used - 1, 0]
        sizes[k] = length
    return places, sizes, ranges[:used]
