"""The cpu engine: packets from the index, decoded by FFmpeg in threads that release the interpreter lock.

Each thread keeps its decoders open. A clip costs one plan, a few preads, and the decoding of the packets
that its frames depend on; only the wanted frames are converted to RGB. Every packet is stamped with its
number, so that a frame is known by the packet it came from, never by counting.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from functools import lru_cache
from types import TracebackType
from typing import cast

import av
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from surgrec.loaders.clip_plan import (
    EMPTY_FIRST,
    LEADING,
    ClipPlan,
    ClipRequest,
    PlanError,
    check_positions,
    plan_clip,
)
from surgrec.loaders.engines.base import BadClip, ClipFailure, DecodedClip
from surgrec.loaders.engines.decoders import DecoderCache, parameter_sets
from surgrec.loaders.engines.pixels import PixelWriter
from surgrec.loaders.engines.sequential import SequentialReader
from surgrec.loaders.engines.threads import WorkerThreads
from surgrec.loaders.file_cache import FileCache
from surgrec.loaders.packet_index import ERROR, REMOVED, SEQUENTIAL, PacketIndex, VideoInfo

REINDEX = "run `python -m surgrec.index` again"


class CpuEngine:
    """Decodes clips on the CPU.

    threads: decoding threads; 0 takes one per core that this process may use. drop_disposable: leave out
    packets that no wanted frame depends on; the frames are the same either way. open_files: descriptors
    that stay open between clips.

    `submit` queues without bound: the caller decides how many clips it keeps in flight. Close it, or use it
    as a context manager; at the exit of the interpreter queued clips are dropped.
    """

    name = "cpu"

    def __init__(
        self, index: PacketIndex, threads: int = 0, drop_disposable: bool = True, open_files: int = 512
    ) -> None:
        if threads < 0:
            raise ValueError(f"threads is {threads}; 0 means one per core")
        self.index = index
        self.threads = threads or len(os.sched_getaffinity(0))
        self._drop = drop_disposable
        self._files = FileCache(open_files)
        self._info = lru_cache(maxsize=4096)(index.video)
        self._pool = WorkerThreads(self.threads, "surgrec-cpu", _Worker, self._run)

    def submit(self, request: ClipRequest) -> Future[DecodedClip | ClipFailure]:
        """Queues one clip.

        The future gives a DecodedClip, or a ClipFailure where the file's data is at fault. It raises for
        requests that are wrong in themselves: ValueError for positions outside the video.
        """
        return self._pool.submit(request)

    def decode(self, requests: Sequence[ClipRequest]) -> list[DecodedClip | ClipFailure]:
        """Decodes clips on all threads and waits; results in the order of the requests."""
        return [future.result() for future in [self.submit(request) for request in requests]]

    def close(self) -> None:
        """Cancels what is queued, waits for the clips that are being decoded, and closes all files."""
        self._pool.close()
        self._files.close()

    def __enter__(self) -> CpuEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, worker: _Worker, request: ClipRequest) -> DecodedClip | ClipFailure:
        if not 0 <= request.video < len(self.index):
            raise ValueError(
                f"video {request.video} is outside the index, which holds {len(self.index)} videos"
            )
        info = self._info(request.video)
        try:
            if info.status in (ERROR, REMOVED):
                raise BadClip(info.reason or "the index marks this video as removed")
            if info.status == SEQUENTIAL:
                check_positions(request.frames, info.frame_count, info.path)
                with self._files.borrow(info.path) as descriptor:
                    check_version(descriptor, info)
                return worker.sequential.decode(request, info)
            plan = plan_clip(self.index, request, self._drop)
            with self._files.borrow(info.path) as descriptor:
                check_version(descriptor, info)
                data = read_ranges(descriptor, plan)
            return worker.decode(request, info, plan, data)
        except (BadClip, PlanError) as error:
            reason = str(error)
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}; {_remedy(error)}"
        return ClipFailure(request, info.path, self.name, reason)


def check_version(descriptor: int, info: VideoInfo) -> None:
    """Raises BadClip unless the open file has the size and time of change that the index was made for."""
    found = os.fstat(descriptor)
    if (found.st_size, found.st_mtime_ns) != (info.file_size, info.mtime_ns):
        raise BadClip(
            f"the file is another version than the index was made for (size {found.st_size}, indexed"
            f" {info.file_size}; changed {found.st_mtime_ns} ns, indexed {info.mtime_ns}); {REINDEX}"
        )


def read_ranges(descriptor: int, plan: ClipPlan) -> memoryview:
    """The bytes of the plan's ranges, one after the other. Raises BadClip where the file ends early."""
    data = memoryview(bytearray(plan.read_bytes))
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
    return data


def _remedy(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"put the file back, or {REINDEX}"
    if isinstance(error, PermissionError):
        return "allow this user to read it"
    return "check the disk and the limit of open files (ulimit -n)"


class _Worker:
    """What one thread keeps between clips."""

    def __init__(self) -> None:
        self.decoders = DecoderCache()
        self.pixels = PixelWriter()
        self.sequential = SequentialReader(self.pixels)

    def decode(self, request: ClipRequest, info: VideoInfo, plan: ClipPlan, data: memoryview) -> DecodedClip:
        """Feeds the plan's packets to a decoder. Raises BadClip where FFmpeg reports an error."""
        decoder = self.decoders.get(info)
        sink = _Sink(request, info, plan, self.pixels)
        try:
            fed = _feed(decoder, info, plan, data, sink)
        except av.FFmpegError as error:
            self.decoders.drop(info)
            raise BadClip(f"FFmpeg reports damaged data: {error}") from error
        except BadClip:
            self.decoders.drop(info)
            raise
        decoder.flush_buffers()
        return DecodedClip(request, sink.result(), fed, fed, plan.read_bytes)


def _feed(decoder: VideoCodecContext, info: VideoInfo, plan: ClipPlan, data: memoryview, sink: _Sink) -> int:
    """Feeds packets until all wanted frames are out; how many were fed."""
    sets = parameter_sets(info)
    fed = 0
    steps = zip(
        plan.packets.tolist(), plan.roles.tolist(), plan.places.tolist(), plan.sizes.tolist(), strict=True
    )
    for number, role, place, size in steps:
        if size == 0:  # an empty packet would end the stream
            continue
        if role & EMPTY_FIRST and fed:
            # Pictures of before the gap must not serve as references: end this stretch, start afresh.
            sink.take(decoder.decode(None))
            decoder.flush_buffers()
        packet = Packet(size)
        packet.update(cast(bytes, data[place : place + size]))  # any buffer will do
        packet.pts = number
        if sets is not None:
            packet.set_sidedata(sets)
            sets = None
        fed += 1
        try:
            frames = decoder.decode(packet)
        except av.error.InvalidDataError:
            if role & LEADING:  # its references are missing, as they may be
                continue
            raise
        if frames:
            sink.take(frames)
            if not sink.missing:
                return fed
    sink.take(decoder.decode(None))
    return fed


class _Sink:
    """Takes a decoder's frames and keeps those that the clip wants."""

    def __init__(self, request: ClipRequest, info: VideoInfo, plan: ClipPlan, pixels: PixelWriter) -> None:
        self.missing: dict[int, list[int]] = {}
        for row, packet in enumerate(plan.rows.tolist()):
            self.missing.setdefault(packet, []).append(row)
        self._leading = set(plan.packets[plan.roles & LEADING != 0].tolist())
        self._length = len(request.frames)
        self._rotation = info.rotation
        self._pixels = pixels
        self._clip: NDArray[np.uint8] | None = None

    def take(self, frames: Sequence[VideoFrame]) -> None:
        """Raises BadClip for a frame that FFmpeg marks as damaged."""
        for frame in frames:
            packet = frame.pts
            if packet is None or packet in self._leading:
                continue
            if frame.is_corrupt:
                raise BadClip(f"FFmpeg marks the frame of packet {packet} as damaged")
            rows = self.missing.pop(packet, None)
            if rows is not None:
                self._clip = self._pixels.write(frame, self._clip, rows, self._length, self._rotation)

    def result(self) -> NDArray[np.uint8]:
        """uint8 [T, H, W, 3]. Raises BadClip where frames are missing."""
        if self.missing or self._clip is None:
            raise BadClip(
                f"FFmpeg gave no frame for {len(self.missing)} of the packets needed, the first of them"
                f" {min(self.missing)}"
            )
        return self._clip
