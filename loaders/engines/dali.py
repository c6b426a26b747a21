"""The dali engine: DALI's own decoder, `fn.decoders.video`, on the packets that a clip needs.

A second way to the same frames, which shares no decoding code with the nvdec engine.

    requests --> plan, read, remux: one small file a clip --> DALI, a batch of files --> RGB planes
                        |                                          |
                        +-- what DALI would get wrong -------------+-- what it refuses --> cpu engine

One thread does this; DALI runs in another, which is given up where it hangs (dali_watch.py).

DALI reports neither damaged pictures nor missing ones, so a clip comes from it only where all that could go
wrong is either excluded beforehand or seen afterwards (remux.py, dali_decode.py):
H.264 and HEVC, progressive, 4:2:0, 8 bits, a frame in each packet, and a first picture that comes out equal
when it is fed again at the end. Damage inside a slice that its headers do not show stays unseen. VP9 and AV1
go to the cpu engine: their packets may hold hidden pictures, which DALI counts.

DALI converts by BT.601. For limited range of another matrix, the file states full range: DALI's numbers then
keep 16 levels of foot room and 20 of head room, from which the right colours are computed. Clips with more
colours outside of that than MAX_CLIPPED, and full range of another matrix, go to the cpu engine.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from surgrec.kernels.colour import colour_matrix
from surgrec.kernels.planes import Colour, Planes
from surgrec.loaders.clip_plan import ClipRequest, PlanError
from surgrec.loaders.engines.base import (
    BadClip,
    ClipFailure,
    DecodedClip,
    Engine,
    Outcome,
    PooledEngine,
    check_timeout,
)
from surgrec.loaders.engines.clip_reader import ClipReader, os_reason
from surgrec.loaders.engines.cpu import CpuEngine, count_threads
from surgrec.loaders.engines.cpu_processes import START_SECONDS, CpuProcesses
from surgrec.loaders.engines.dali_decode import DaliDecoder, with_index
from surgrec.loaders.engines.dali_watch import DecodeBatch, WatchedDecoder
from surgrec.loaders.engines.pixels import MATRIX_NAMES
from surgrec.loaders.engines.threads import LOOK_UP_SECONDS
from surgrec.loaders.file_cache import FileCache
from surgrec.loaders.packet_index import SEQUENTIAL, PacketIndex, VideoInfo
from surgrec.loaders.remux import NotRemuxable, RemuxedClip, remux_clip
from torch import Tensor

MAX_CLIPPED: Final = 0.001
"""Share of the values of a clip that may lie outside of what DALI's conversion keeps."""

_ALIKE: Final = {"bt601", "fcc"}
"""Matrices that BT.601 stands for: fcc is within two levels of it."""


@dataclass(frozen=True, slots=True)
class _Job:
    request: ClipRequest
    future: Future[Outcome]


@dataclass(frozen=True, slots=True)
class _Prepared:
    job: _Job
    info: VideoInfo
    clip: RemuxedClip
    colour: Colour | None  # what DALI takes for BT.601 of full range, None where it converts rightly
    read_bytes: int


class DaliEngine(PooledEngine):
    """Decodes clips with DALI, and with the cpu engine where DALI cannot be trusted.

    device: where the planes go; "cuda" is the current GPU. threads: of DALI and of the cpu engine, each;
    0 takes one per core. drop_disposable: leave out packets that no wanted frame depends on. batch: clips of
    one DALI run. fallback: the cpu engine, which this one closes; None makes the one that suits the device.
    decode_batch: stands in for DALI in tests. timeout: seconds that DALI has for a batch, and a process of
    the cpu engine for a clip; the clips of a batch that does not come back are ClipFailures, and DALI starts
    anew.

    `fallbacks` counts the clips that went to the cpu engine, by reason; `last_error` is what DALI said last.
    The futures of `submit` behave as those of CpuEngine do.
    """

    name = "dali"

    def __init__(
        self,
        index: PacketIndex,
        device: torch.device,
        threads: int = 0,
        drop_disposable: bool = True,
        batch: int = 8,
        fallback: Engine | None = None,
        decode_batch: DecodeBatch | None = None,
        timeout: float = 30.0,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}; at least one clip is needed")
        check_timeout(timeout)
        device = with_index(device)  # here: in another thread, another GPU may be the current one
        self.index = index
        self.device = device
        self.threads = count_threads(threads)
        self.batch = batch
        self.fallbacks: Counter[str] = Counter()
        self.last_error = ""
        self._timeout = timeout
        self._decode_batch = WatchedDecoder(
            lambda: decode_batch or DaliDecoder(device, self.threads, batch), timeout, START_SECONDS
        )
        self._files = FileCache()
        self._reader = ClipReader(index, self._files, drop_disposable)
        self._sizes: dict[tuple[str, int, int], tuple[int, int]] = {}
        self._cpu = (
            _cpu_engine(index, device, self.threads, drop_disposable, timeout)
            if fallback is None
            else fallback
        )
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="surgrec-dali")
        self._thread.start()

    @property
    def parallel(self) -> int:
        """Clips that it works on at a time."""
        return self.batch

    def submit(self, request: ClipRequest) -> Future[Outcome]:
        """Queues one clip. RuntimeError after `close`."""
        future: Future[Outcome] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._queue.put(_Job(request, future))
        return future

    def close(self) -> None:
        """Cancels what is queued, waits for the batch that is being decoded, and closes all files."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()
        self._files.close()

    def _loop(self) -> None:
        main = threading.main_thread()
        more = True
        while more:
            jobs, more = self._next()
            if self._closed or not main.is_alive():
                for job in jobs:
                    job.future.cancel()
                    job.future.set_running_or_notify_cancel()
            elif jobs:
                self._run([job for job in jobs if job.future.set_running_or_notify_cancel()])
            jobs.clear()  # let go of the frames before waiting
            if not more or not main.is_alive():
                break
        self._decode_batch.close()
        self._cpu.close()

    def _next(self) -> tuple[list[_Job], bool]:
        """What is queued, at most a batch and soon nothing, and whether more may come."""
        jobs: list[_Job] = []
        try:
            job = self._queue.get(timeout=LOOK_UP_SECONDS)
            while job is not None:
                jobs.append(job)
                if len(jobs) == self.batch:
                    return jobs, True
                job = self._queue.get_nowait()
        except queue.Empty:
            return jobs, True
        return jobs, False

    def _run(self, jobs: list[_Job]) -> None:
        prepared = []
        for job in jobs:
            try:
                found = self._prepare(job)
            except NotRemuxable as refusal:
                self._fall_back(job, str(refusal))
            except BaseException as error:  # the caller gets it from the future
                job.future.set_exception(error)
            else:
                if isinstance(found, ClipFailure):
                    job.future.set_result(found)
                else:
                    prepared.append(found)
        if prepared:
            self._decode(prepared)

    def _prepare(self, job: _Job) -> _Prepared | ClipFailure:
        request = job.request
        info = self._reader.info(request)
        if info.status == SEQUENTIAL:
            raise NotRemuxable("a video without random access")
        try:
            plan, data = self._reader.read(request, info)
        except (BadClip, PlanError) as error:
            return ClipFailure(request, info.path, self.name, str(error))
        except OSError as error:
            return ClipFailure(request, info.path, self.name, os_reason(error))
        colour, full_range = _conversion(info)
        packets = self.index.packets(request.video)
        pts, rank = self.index.pts[packets][plan.packets], self.index.rank[packets][plan.packets]
        clip = remux_clip(info, plan, data, pts, rank, full_range)
        size = clip.picture.width, clip.picture.height
        blocks = info.codec, -(-size[0] // 16), -(-size[1] // 16)
        if self._sizes.setdefault(blocks, size) != size:
            # DALI would decode it in a session of the other size, with the chroma of other lines.
            raise NotRemuxable("a coded size that shares its 16x16 blocks with another one")
        return _Prepared(job, info, clip, colour, plan.read_bytes)

    def _decode(self, prepared: list[_Prepared]) -> None:
        try:
            clips = self._decode_batch([p.clip.file for p in prepared], [p.clip.frames for p in prepared])
        except TimeoutError:
            self._give_up(prepared)
            return
        except Exception as error:  # DALI's own, or CUDA's
            if len(prepared) == 1:
                self.last_error = str(error)
                self._fall_back(prepared[0].job, "DALI refused the file")
            else:  # one of them may be at fault
                for one in prepared:
                    self._decode([one])
            return
        for one, pictures in zip(prepared, clips, strict=True):
            try:
                outcome = self._finish(one, pictures)
            except NotRemuxable as refusal:
                self._fall_back(one.job, str(refusal))
            except BaseException as error:  # the caller gets it from the future
                one.job.future.set_exception(error)
            else:
                one.job.future.set_result(outcome)

    def _give_up(self, prepared: list[_Prepared]) -> None:
        self.last_error = (
            f"DALI did not give its batch of {len(prepared)} clips within {self._timeout:g} s"
            " (decoder_timeout); its pipeline was given up, the next batch gets a new one"
        )
        for one in prepared:
            failure = ClipFailure(one.job.request, one.info.path, self.name, self.last_error)
            one.job.future.set_result(failure)

    def _finish(self, one: _Prepared, pictures: Tensor) -> DecodedClip:
        clip, shown = one.clip, one.clip.picture
        expected = (len(clip.frames), shown.height, shown.width, 3)
        if tuple(pictures.shape) != expected or pictures.dtype != torch.uint8:
            raise NotRemuxable("DALI gave pictures of another number or size")
        if not torch.equal(pictures[clip.first], pictures[clip.last]):
            raise NotRemuxable("DALI gave wrong pictures, or not all of them")
        used = pictures[
            : max(clip.rows) + 1,
            shown.top : shown.top + shown.shown_height,
            shown.left : shown.left + shown.shown_width,
        ]
        if one.colour is not None:
            clipped = torch.count_nonzero((used == 0) | (used == 255)).item() / used.numel()
            if clipped > MAX_CLIPPED:
                raise NotRemuxable("colours outside of what DALI's conversion keeps")
            used = _recolour(used, one.colour)
            if used.is_cuda:
                torch.cuda.current_stream(used.device).synchronize()
        info, request = one.info, one.job.request
        # Frames of a stacked picture are views of its lines.
        red, green, blue = used.unflatten(1, (info.stack, -1)).flatten(0, 1).unbind(3)
        places = request.places(info.stack)
        rows = tuple(k * info.stack + place for k, place in zip(clip.rows, places, strict=True))
        planes = Planes((red, green, blue), rows, Colour("rgb", full_range=True), info.rotation)
        return DecodedClip(request, planes, clip.packets * info.stack, clip.packets, one.read_bytes)

    def _fall_back(self, job: _Job, reason: str) -> None:
        self.fallbacks[reason] += 1

        def pass_on(done: Future[Outcome]) -> None:
            try:
                found = done.result()
                if isinstance(found, ClipFailure):
                    found = replace(found, engine=self.name)
            except Exception as error:  # the cpu engine was closed, or the request is wrong in itself
                job.future.set_exception(error)
            else:
                job.future.set_result(found)

        self._cpu.submit(job.request).add_done_callback(pass_on)


def _cpu_engine(
    index: PacketIndex, device: torch.device, threads: int, drop_disposable: bool, timeout: float
) -> Engine:
    if device.type == "cpu":
        return CpuEngine(index, threads, drop_disposable)
    return CpuProcesses(index, device, threads, drop_disposable, timeout)


def _conversion(info: VideoInfo) -> tuple[Colour | None, bool]:
    """What to make of DALI's numbers (see _Prepared.colour), and whether the file must state full range.

    Raises NotRemuxable where DALI's conversion cannot be made good.
    """
    if info.pix_fmt not in ("yuv420p", "yuvj420p"):
        raise NotRemuxable(f"pixel format {info.pix_fmt}")
    matrix = MATRIX_NAMES.get(info.color_space)
    full_range = info.pix_fmt == "yuvj420p" or info.color_range == "pc"
    if matrix in _ALIKE:
        return None, full_range
    if matrix is None or full_range:
        raise NotRemuxable(f"colour matrix {info.color_space}{' of full range' if full_range else ''}")
    return Colour(matrix, full_range=False), True


@lru_cache(maxsize=16)
def _correction(colour: Colour) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix [3, 3] and bias [3]: RGB = matrix @ (RGB that full-range BT.601 makes of the planes) + bias."""
    right, right_bias = colour_matrix(colour)
    taken, taken_bias = colour_matrix(Colour("bt601", full_range=True))
    matrix = right @ np.linalg.inv(taken)
    return matrix, right_bias - matrix @ taken_bias


def _recolour(pictures: Tensor, colour: Colour) -> Tensor:
    """uint8 [K, H, W, 3] with the colours put right, one picture at a time: it takes 24 bytes a pixel."""
    matrix, bias = (torch.from_numpy(a).to(pictures.device, torch.float32) for a in _correction(colour))
    out = torch.empty(pictures.shape, dtype=torch.uint8, device=pictures.device)
    for k in range(len(pictures)):
        out[k] = (
            torch.addmm(bias, pictures[k].reshape(-1, 3).float(), matrix.T)
            .round_()
            .clamp_(0, 255)
            .view(*pictures.shape[1:])
        )
    return out
