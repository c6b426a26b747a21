"""The nvdec and hybrid engines: the GPU's own video decoders, fed with exactly the packets that clips need.

    requests --+--> NVDEC threads: plan, read, start codes, session --> planes on the GPU
               |        | what NVDEC refuses or finds damaged
               |        v
               +--> CPU processes (hybrid: also from the requests): FFmpeg --> planes on the GPU

The decode itself is bit-exact by the standards, so that a clip's planes are the same whichever side decoded
it. What FFmpeg says of a clip that NVDEC refused is final. Sessions live as long as the engine; a clip
costs no set-up.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Final

import torch
from surgrec.kernels.planes import Colour, Nv12Pictures, Planes
from surgrec.loaders.clip_plan import ClipRequest, PlanError
from surgrec.loaders.engines.base import (
    BadClip,
    ClipFailure,
    DecodedClip,
    Outcome,
    PooledEngine,
    check_timeout,
)
from surgrec.loaders.engines.clip_reader import ClipReader, os_reason
from surgrec.loaders.engines.cpu import count_threads
from surgrec.loaders.engines.cpu_processes import ProcessWorker
from surgrec.loaders.engines.crew_size import CrewSize
from surgrec.loaders.engines.decode_process import Setup
from surgrec.loaders.engines.nvcuvid import CODECS, Driver, NvdecUnavailable, decode_caps, load_driver
from surgrec.loaders.engines.nvdec_feed import Describer, Fed, FeedReader, RefusedClip, describer
from surgrec.loaders.engines.nvdec_pool import SessionPool
from surgrec.loaders.engines.nvdec_session import (
    LIKELY_SURFACES,
    DeviceMemoryError,
    NvdecSession,
    session_bytes,
)
from surgrec.loaders.engines.pixels import MATRIX_NAMES
from surgrec.loaders.engines.threads import PassedOn, WorkerThreads, WorkQueue
from surgrec.loaders.file_cache import FileCache
from surgrec.loaders.packet_index import SEQUENTIAL, PacketIndex, VideoInfo
from surgrec.loaders.streams import loader_stream, memory_stream

FORMATS: Final = {"yuv420p": 8, "yuvj420p": 8, "yuv420p10le": 10}
"""Pixel formats that NVDEC decodes, and their depth."""
TAKEN_CODECS: Final = ("h264", "hevc", "vp8", "vp9", "av1")
IN_ORDER_CODECS: Final = ("vp8", "vp9", "av1")
SESSIONS_PER_ENGINE: Final = 4
"""One decodes while the others read, wait for the interpreter, or sleep. Small clips need them all."""
PATIENCE: Final = 0.25
"""Part of the timeout that a clip waits for the memory of a session; then FFmpeg decodes it."""
GIVE_UP_AFTER: Final = 3
"""Sound clips of a video that NVDEC fails on before it is asked no more for that video."""
EITHER: Final = 0  # lane of all requests
CPU_ONLY: Final = 1  # lane of those that NVDEC does not take


class NvdecEngine(PooledEngine):
    """Decodes clips on NVDEC; with `share` FFmpeg's processes take from the same queue (the hybrid engine).

    index: the videos. device: a CUDA device. sessions: clips that NVDEC decodes at a time; 0 takes four for
    each of the GPU's decoders. session_memory: bytes on the GPU for sessions, about; where they are full,
    fewer decode at a time. threads: processes of FFmpeg; 0 takes one per core. drop_disposable: leave out
    packets that no wanted frame depends on; the frames are the same. timeout: seconds after which a session
    that does not answer is given up: its clip is a ClipFailure, another thread and session take its place.

    `fallbacks` counts the clips that NVDEC passed on to FFmpeg, by reason. Raises NvdecUnavailable where the
    machine has no NVDEC. Frames are Planes on the device. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        index: PacketIndex,
        device: torch.device,
        sessions: int = 0,
        threads: int = 0,
        share: bool = False,
        drop_disposable: bool = True,
        timeout: float = 30.0,
        open_files: int = 512,
        driver: Driver | None = None,
        session_memory: int = 2 << 30,
    ) -> None:
        check_timeout(timeout)
        self.name = "hybrid" if share else "nvdec"
        self.index = index
        self.device = device
        self.fallbacks: Counter[str] = Counter()
        self._driver = load_driver() if driver is None else driver
        self._caps = _Capabilities(self._driver, device)
        self.sessions = sessions or SESSIONS_PER_ENGINE * self._caps.engines
        if self.sessions < 1:
            raise NvdecUnavailable("this GPU decodes no video; use the cpu engine")
        self.threads = count_threads(threads)
        self._files = FileCache(open_files)
        reader = ClipReader(index, self._files, drop_disposable)
        describe = describer(index)
        self._refused: Counter[int] = Counter()
        self._failed: set[ClipRequest] = set()
        self._lock = threading.Lock()
        pool = SessionPool(self._make_session, _StreamSession.nbytes, session_memory)
        self._pool = pool
        self.memory_stream = memory_stream(device)
        """Whose memory pictures come from: one for all threads, so that each can use what any gave back."""
        queue: WorkQueue[ClipRequest, Outcome] = WorkQueue(lanes=2)
        self._gpu: WorkerThreads[_NvdecWorker, ClipRequest, Outcome] = WorkerThreads(
            self.sessions,
            "surgrec-nvdec",
            lambda: _NvdecWorker(self, reader, describe, pool, PATIENCE * timeout),
            self._on_nvdec,
            queue,
            (EITHER,),
            timeout,
            self._late,
        )
        setup = Setup(str(index.path.absolute()), self.name, drop_disposable, open_files)
        self._cpu: WorkerThreads[ProcessWorker, ClipRequest, Outcome] = WorkerThreads(
            self.threads,
            "surgrec-cpu",
            lambda: ProcessWorker(index, setup, device, timeout, self.memory_stream, background=share),
            self._on_cpu,
            queue,
            (CPU_ONLY, EITHER) if share else (CPU_ONLY,),
            behind=self.sessions,
        )
        self._share = share
        self._crew = CrewSize(self.threads) if share else None

    @property
    def parallel(self) -> int:
        """Clips that it works on at a time."""
        return self.sessions + (self.threads if self._share else 0)

    @property
    def held_bytes(self) -> int:
        """Of the GPU's memory, held by sessions, about. It rises when more clips of one format are decoded at
        a time than ever before, at most to `session_memory`."""
        return self._pool.held

    def submit(self, request: ClipRequest) -> Future[Outcome]:
        """Queues one clip; as CpuEngine.submit."""
        return self._gpu.submit(request)

    def close(self) -> None:
        """Cancels what is queued, waits for the clips that are being decoded, frees sessions and files."""
        self._gpu.close()
        self._cpu.close()
        self._pool.close()
        self._files.close()

    def refusal(self, info: VideoInfo, video: int) -> str:
        """Why NVDEC does not take a video, or nothing."""
        if info.status == SEQUENTIAL:
            return "no random access"
        if info.codec not in TAKEN_CODECS:
            return f"codec {info.codec}"
        if info.pix_fmt not in FORMATS or info.color_space not in MATRIX_NAMES:
            return f"format {info.pix_fmt} {info.color_space}".rstrip()
        if info.field_order not in ("", "progressive"):
            return "interlaced"
        if self._refused[video] >= GIVE_UP_AFTER:
            return "refused before"
        return self._caps.refusal(info)

    def pass_on(self, reason: str, failed: ClipRequest | None = None) -> PassedOn:
        """Counts a clip that FFmpeg is to decode. failed: the clip, if NVDEC tried it in vain."""
        with self._lock:
            self.fallbacks[reason] += 1
            if failed is not None:
                self._failed.add(failed)
        return PassedOn(CPU_ONLY)

    def _on_nvdec(self, worker: _NvdecWorker, request: ClipRequest) -> Outcome | PassedOn:
        outcome = worker.run(request)
        if not isinstance(outcome, PassedOn):
            self._finished()
        return outcome

    def _finished(self) -> None:
        """A clip is done: perhaps another number of FFmpeg's processes helps from now on."""
        size = None if self._crew is None else self._crew.finished()
        if size is not None:
            self._cpu.allow(size)

    def _on_cpu(self, worker: ProcessWorker, request: ClipRequest) -> Outcome:
        outcome = worker.run(request)
        self._finished()
        with self._lock:
            if request in self._failed:
                self._failed.remove(request)
                # Damage that FFmpeg finds, too, says nothing about the rest of the video.
                if isinstance(outcome, DecodedClip):
                    self._refused[request.video] += 1
        return outcome

    def _make_session(self, key: Hashable) -> _StreamSession:
        assert isinstance(key, tuple)
        return _StreamSession(self._driver, key[0], self.device)

    def _late(self, request: ClipRequest, thread: int) -> Outcome:
        self._pool.give_up(thread)
        reason = "NVDEC did not answer in time; its session was given up"
        return ClipFailure(request, self.index.videos.path[request.video], self.name, reason)


class _Capabilities:
    """What the GPU decodes, asked once for each codec and depth."""

    def __init__(self, driver: Driver, device: torch.device) -> None:
        with torch.cuda.device(device):
            torch.zeros(1, device=device)  # makes the context current that the driver is asked in
            self._caps = {
                (codec, depth): decode_caps(driver, CODECS[codec], depth)
                for codec in TAKEN_CODECS
                for depth in (8, 10)
            }
        self.engines = max(caps.engines for caps in self._caps.values())

    def refusal(self, info: VideoInfo) -> str:
        depth = FORMATS[info.pix_fmt]
        caps = self._caps[info.codec, depth]
        width, height = max(info.width, info.coded_width), max(info.picture_height, info.coded_height)
        if not caps.supported:
            return f"{info.codec} of {depth} bit"
        blocks = (width + 15) // 16 * ((height + 15) // 16)
        if (
            not (caps.min_width <= width <= caps.max_width and caps.min_height <= height <= caps.max_height)
            or blocks > caps.max_blocks
        ):
            return f"{info.codec} of {width}x{height}"
        return ""


class _NoSession(Exception):  # noqa: N818 - it never leaves the worker
    """No memory for a session came free in time."""


class _StreamSession:
    """An NVDEC session and the stream that it copies on."""

    def __init__(self, driver: Driver, codec: str, device: torch.device) -> None:
        self._stream = loader_stream(device)  # kept: the session knows its handle only
        self.session = NvdecSession(driver, CODECS[codec], codec in IN_ORDER_CODECS, self._stream.cuda_stream)

    def nbytes(self) -> int:
        """Of the GPU's memory, about; 0 as long as there is no decoder."""
        return self.session.nbytes if self.session.surfaces else 0

    def close(self) -> None:
        self.session.close()


class _NvdecWorker:
    """What one thread does: everything but the decoding itself, which the session's hardware does."""

    def __init__(
        self,
        engine: NvdecEngine,
        reader: ClipReader,
        describe: Describer,
        pool: SessionPool[_StreamSession],
        patience: float,
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._feeds = FeedReader(reader, describe)
        self._pool = pool
        self._patience = patience
        torch.cuda.set_device(engine.device)
        torch.zeros(1, device=engine.device)  # makes the GPU's context current in this thread
        torch.cuda.set_stream(engine.memory_stream)

    def run(self, request: ClipRequest) -> Outcome | PassedOn:
        """Decodes one clip, or passes it on to FFmpeg. ClipFailure where its file cannot be read."""
        info = self._reader.info(request)
        reason = self._engine.refusal(info, request.video)
        if reason:
            return self._engine.pass_on(reason)
        try:
            with self._reader.open_unseen(request, info) as descriptor:
                return self._decode(request, info, descriptor)
        except _NoSession:
            return self._engine.pass_on("no session came free")
        except RefusedClip as error:
            # FFmpeg has the last word. One reason for all clips that have it: without the packet's number.
            return self._engine.pass_on(str(error).split(",")[0], request)
        except (BadClip, PlanError) as error:
            return ClipFailure(request, info.path, self._engine.name, str(error))
        except OSError as error:
            return ClipFailure(request, info.path, self._engine.name, os_reason(error))

    def _decode(self, request: ClipRequest, info: VideoInfo, descriptor: int) -> DecodedClip:
        until = time.monotonic() + self._patience
        try:
            decoded, fed, pictures = self._on_session(request, info, descriptor, until)
        except DeviceMemoryError:
            # Sessions of other formats may lie idle.
            self._pool.close_idle()
            torch.cuda.empty_cache()
            decoded, fed, pictures = self._on_session(request, info, descriptor, until)
        clip = planes_of(request, info, pictures, fed.rows)
        return DecodedClip(request, clip, decoded * info.stack, fed.packets, fed.read_bytes)

    def _on_session(
        self, request: ClipRequest, info: VideoInfo, descriptor: int, until: float
    ) -> tuple[int, Fed, Nv12Pictures]:
        """(pictures decoded, what was fed, the wanted pictures), complete. until: for SessionPool.take."""
        depth = FORMATS[info.pix_fmt]
        key = (info.codec, info.coded_width, info.coded_height, depth)
        expected = session_bytes(info.coded_width, info.coded_height, depth, LIKELY_SURFACES)
        held = self._pool.take(key, expected, until)
        if held is None:
            raise _NoSession
        try:
            count = len({frame // info.stack for frame in request.frames})
            pictures = _new_pictures(count, info.picture_height, info.width, depth, self._engine.device)
            luma, chroma, _ = pictures.layouts()
            size = (info.width, info.picture_height)
            state = held.session.begin(size, depth, luma.address, chroma.address)
            fed = self._feeds.feed(request, descriptor, state)
        except BaseException:
            self._pool.give_back(held)  # nothing was fed
            raise
        try:
            decoded = held.session.end(fed.stage, fed.wanted)
        except BaseException:
            self._pool.discard(held)  # what its hardware's state is now, nobody knows
            raise
        self._pool.give_back(held)
        return decoded, fed, pictures


def planes_of(
    request: ClipRequest, info: VideoInfo, pictures: Nv12Pictures, numbers: tuple[int, ...]
) -> Planes:
    """The clip in NVDEC's pictures, as it lies in memory: stacked frames are the lines of theirs.

    pictures: K whole ones. numbers: the picture of each row.
    """
    rows = numbers
    if info.stack > 1:
        count = pictures.count * info.stack
        pictures = Nv12Pictures(pictures.memory, count, info.height, info.width)
        places = request.places(info.stack)
        rows = tuple(k * info.stack + place for k, place in zip(numbers, places, strict=True))
    return Planes(pictures, rows, colour_of(info), info.rotation)


def colour_of(info: VideoInfo) -> Colour:
    """The colours of NVDEC's pictures of a video."""
    depth = FORMATS[info.pix_fmt]
    full = info.pix_fmt.startswith("yuvj") or info.color_range == "pc"
    return Colour(MATRIX_NAMES[info.color_space], full, depth, 16 - depth if depth > 8 else 0)


def _new_pictures(count: int, height: int, width: int, depth: int, device: torch.device) -> Nv12Pictures:
    """Memory for pictures, from torch's current stream."""
    dtype = torch.uint8 if depth == 8 else torch.uint16
    values = Nv12Pictures.values(count, height, width, dtype)
    try:
        memory = torch.empty(values, dtype=dtype, device=device)
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceMemoryError("decoded pictures") from error
    return Nv12Pictures(memory, count, height, width)
