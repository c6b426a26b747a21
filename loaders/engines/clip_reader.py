"""From a clip request to the bytes of its packets: plan, file, version, reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from surgrec.loaders.checksum import first_changed
from surgrec.loaders.clip_plan import ClipPlan, ClipRequest, check_positions, plan_clip
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.file_cache import FileCache, Loan
from surgrec.loaders.packet_index import ERROR, REMOVED, PacketIndex, VideoInfo

REINDEX = "run `python -m surgrec.index` again"
RESCAN = "run `python -m surgrec.index --rescan` on it"


class ClipReader:
    """Reads what clips need. Threads may share it.

    check: whether packets are compared with the index's checksums.
    """

    def __init__(
        self, index: PacketIndex, files: FileCache, drop_disposable: bool = True, check: bool = True
    ) -> None:
        self.index = index
        self._files = files
        self._videos = lru_cache(maxsize=4096)(index.video)
        self.drop_disposable = drop_disposable
        self.check = check

    def info(self, request: ClipRequest) -> VideoInfo:
        """What the index knows of the clip's video. ValueError for a video that it does not hold."""
        if not 0 <= request.video < len(self.index):
            raise ValueError(
                f"video {request.video} is outside the index, which holds {len(self.index)} videos"
            )
        return self._videos(request.video)

    @contextmanager
    def open(self, request: ClipRequest, info: VideoInfo) -> Iterator[int]:
        """A descriptor of the clip's file.

        Raises BadClip where the index says that nothing can be decoded, or was made for another version of
        the file; ValueError for positions outside the video; OSError.
        """
        with self.open_unseen(request, info) as descriptor:
            check_version(descriptor, info)
            yield descriptor

    def open_unseen(self, request: ClipRequest, info: VideoInfo) -> Loan:
        """As `open`, but whether the file is the indexed version is the caller's to find out."""
        if info.status in (ERROR, REMOVED):
            raise BadClip(info.reason or "the index marks this video as removed")
        check_positions(request.frames, info.frame_count, info.path)
        return self._files.borrow(info.path)

    def read(self, request: ClipRequest, info: VideoInfo) -> tuple[ClipPlan, bytearray]:
        """The clip's plan, and the bytes of the plan's ranges, one after the other.

        Raises as `open` does, BadClip where a packet is not the one that was indexed, and PlanError where the
        index says that a frame cannot be decoded.
        """
        with self.open(request, info) as descriptor:
            plan = plan_clip(self.index, request, self.drop_disposable)
            data = bytearray(plan.read_bytes)
            _read_ranges(descriptor, plan, memoryview(data))
        if self.check:
            self._compare(plan, data, info)
        return plan, data

    def _compare(self, plan: ClipPlan, data: bytearray, info: VideoInfo) -> None:
        """Raises BadClip where a packet is not the one that was indexed."""
        content = np.frombuffer(data, np.uint8)
        checksums = self.index.checksum
        bad = first_changed(content, plan.places, plan.sizes, plan.packets, checksums, info.packet_start)
        if bad >= 0:
            raise BadClip(changed_packet(int(plan.packets[bad])))

    def checksums(self, info: VideoInfo) -> NDArray[np.uint32] | None:
        """uint32 [P], of the video's packets; None where they are not to be compared."""
        part = slice(info.packet_start, info.packet_start + info.packet_count)
        return self.index.checksum[part] if self.check else None


def changed_packet(number: int) -> str:
    """Why a packet is refused that is not the one that was indexed."""
    return (
        f"packet {number} has other bytes than when it was indexed: the file was damaged or changed since,"
        f" and kept its size and time of change; restore it, or {RESCAN}"
    )


def os_reason(error: OSError) -> str:
    """Why a file cannot be read, and what helps."""
    if isinstance(error, FileNotFoundError):
        remedy = f"put the file back, or {REINDEX}"
    elif isinstance(error, PermissionError):
        remedy = "allow this user to read it"
    else:
        remedy = "check the disk and the limit of open files (ulimit -n)"
    return f"cannot be read: {error.strerror or error}; {remedy}"


def check_version(descriptor: int, info: VideoInfo) -> None:
    """Raises BadClip unless the open file has the size and time of change that the index was made for."""
    found = os.fstat(descriptor)
    if (found.st_size, found.st_mtime_ns) != (info.file_size, info.mtime_ns):
        raise BadClip(
            f"the file is another version than the index was made for (size {found.st_size}, indexed"
            f" {info.file_size}; changed {found.st_mtime_ns} ns, indexed {info.mtime_ns}); {REINDEX}"
        )


def _read_ranges(descriptor: int, plan: ClipPlan, data: memoryview) -> None:
    """Raises BadClip where the file ends early."""
    place = 0
    for offset, length in plan.ranges.tolist():
        end = place + length
        while place < end:
            # pread, not a mapping: a file that shrinks under a mapping kills the process.
            count = os.preadv(descriptor, [data[place:end]], offset)
            if count == 0:
                raise BadClip(f"the file ends at byte {offset}, the index goes on; {REINDEX}")
            place += count
            offset += count
