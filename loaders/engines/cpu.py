"""The cpu engine: packets from the index, decoded by FFmpeg in threads that release the interpreter lock.

A clip costs one plan, a few preads, a new decoder, and the decoding of the packets that its frames depend
on; only the wanted frames are converted to RGB. Every packet is stamped with its number, so that a frame is
known by the packet it came from, never by counting.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
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
)
from surgrec.loaders.engines.base import BadClip, ClipFailure, DecodedClip, Outcome, PooledEngine
from surgrec.loaders.engines.clip_reader import ClipReader, os_reason
from surgrec.loaders.engines.decoders import Decoders
from surgrec.loaders.engines.pixels import ClipPictures, PictureWriter, PlaneArrays, RgbWriter
from surgrec.loaders.engines.sequential import SequentialReader
from surgrec.loaders.engines.threads import WorkerThreads
from surgrec.loaders.file_cache import FileCache
from surgrec.loaders.packet_index import SEQUENTIAL, PacketIndex, VideoInfo


class CpuEngine(PooledEngine):
    """Decodes clips on the CPU, in threads of this process, to RGB in memory.

    threads: decoding threads; 0 takes one per core that this process may use. drop_disposable: leave out
    packets that no wanted frame depends on; the frames are the same either way. open_files: descriptors
    that stay open between clips.

    `submit` queues without bound: the caller decides how many clips it keeps in flight. Close it, or use it
    as a context manager; at the exit of the interpreter queued clips are dropped.
    """

    name = "cpu"

    def __init__(
        self,
        index: PacketIndex,
        threads: int = 0,
        drop_disposable: bool = True,
        open_files: int = 512,
    ) -> None:
        self.index = index
        self.threads = count_threads(threads)
        self._files = FileCache(open_files)
        reader = ClipReader(index, self._files, drop_disposable)
        self._pool: WorkerThreads[CpuWorker, ClipRequest, Outcome] = WorkerThreads(
            self.threads, "surgrec-cpu", lambda: CpuWorker(reader, RgbWriter(), self.name), CpuWorker.run
        )

    @property
    def parallel(self) -> int:
        """Clips that it works on at a time."""
        return self.threads

    def submit(self, request: ClipRequest) -> Future[Outcome]:
        """Queues one clip.

        The future gives a DecodedClip, or a ClipFailure where the file's data is at fault. It raises for
        requests that are wrong in themselves: ValueError for positions outside the video.
        """
        return self._pool.submit(request)

    def close(self) -> None:
        """Cancels what is queued, waits for the clips that are being decoded, and closes all files."""
        self._pool.close()
        self._files.close()


def count_threads(threads: int) -> int:
    """The threads asked for; for 0 one per core that this process may use."""
    if threads < 0:
        raise ValueError(f"threads is {threads}; 0 means one per core")
    return threads or len(os.sched_getaffinity(0))


class CpuWorker:
    """What one thread keeps between clips: how decoders are set up, files of videos without random access, a
    scaler."""

    def __init__(self, reader: ClipReader, writer: PictureWriter, engine: str) -> None:
        self._reader = reader
        self._writer = writer
        self._engine = engine
        self._decoders = Decoders()
        self._sequential = SequentialReader(writer)

    def run(self, request: ClipRequest) -> Outcome:
        """Decodes one clip. A ClipFailure for bad data, ValueError for a request that is wrong in itself."""
        info = self._reader.info(request)
        try:
            if info.status == SEQUENTIAL:
                with self._reader.open(request, info):
                    return self._sequential.decode(request, info, self._reader.checksums(info))
            plan, data = self._reader.read(request, info)
            return self._decode(request, info, plan, memoryview(data))
        except (BadClip, PlanError) as error:
            reason = str(error)
        except OSError as error:
            reason = os_reason(error)
        return ClipFailure(request, info.path, self._engine, reason)

    def _decode(self, request: ClipRequest, info: VideoInfo, plan: ClipPlan, data: memoryview) -> DecodedClip:
        """Feeds the plan's packets to a decoder. Raises BadClip where FFmpeg reports an error."""
        decoder = self._decoders.make(info)
        sink = _Sink(plan, self._writer.start(request.places(info.stack), info.stack, info.rotation))
        try:
            fed = _feed(decoder, plan, data, sink)
        except av.FFmpegError as error:
            raise BadClip(f"FFmpeg reports damaged data: {error}") from error
        # PlaneArrays stay within a decoding process: outside of it they are Planes.
        frames = cast(NDArray[np.uint8], sink.result())
        return DecodedClip(request, frames, fed * info.stack, fed, plan.read_bytes)


def _feed(decoder: VideoCodecContext, plan: ClipPlan, data: memoryview, sink: _Sink) -> int:
    """Feeds packets until all wanted frames are out; how many were fed."""
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

    def __init__(self, plan: ClipPlan, pictures: ClipPictures) -> None:
        self.missing: dict[int, list[int]] = {}
        for row, packet in enumerate(plan.rows.tolist()):
            self.missing.setdefault(packet, []).append(row)
        self._leading = set(plan.packets[plan.roles & LEADING != 0].tolist())
        self._pictures = pictures

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
                self._pictures.add(frame, rows)

    def result(self) -> NDArray[np.uint8] | PlaneArrays:
        """The clip. Raises BadClip where frames are missing."""
        clip = None if self.missing else self._pictures.finish()
        if clip is None:
            raise BadClip(
                f"FFmpeg gave no frame for {len(self.missing)} of the packets needed, the first of them"
                f" {min(self.missing)}"
            )
        return clip
