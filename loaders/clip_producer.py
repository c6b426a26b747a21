"""The thread behind ClipLoader: keeps the engine busy, replaces clips that fail, crops, makes batches.

    decodes --submit--> engine (many at a time) --in sample order--> crop --> this batch
                                                                         \\-> pool --> later batches

Clips are cropped many at a time: each call that gives the interpreter's lock away may wait long to have it
back where dozens of threads decode, so that the crop's calls are counted by the chunk, not by the clip. Nor
does the thread wait for the GPU: it holds pictures until they are read, and a batch comes with the event
behind its last crop. Large pictures are cropped earlier: most of the memory is for clips that the engine
works on. Where several samples share a decode, all of them that are this rank's are cropped when the first is
due; those of later batches wait in the pool, finished.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field

import torch
from surgrec.loaders.batch_rows import BatchRows, Cropped
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_source import ClipSource
from surgrec.loaders.crop_way import Crop
from surgrec.loaders.engines.base import ClipFailure, DecodedClip, Engine
from surgrec.loaders.failure_watch import ClipLoaderError, FailureWatch
from surgrec.loaders.picture_bytes import picture_bytes
from surgrec.loaders.pictures import length_of
from surgrec.loaders.shared_decode import SharedDecode
from surgrec.loaders.streams import loader_stream
from torch import Tensor

MAX_ATTEMPTS = 16
"""Substitutes that are tried for one decode."""
CHUNK = 64
"""Clips that are cropped at a time, at most."""
CROP_SHARE = 8
"""Clips are cropped once they take this part of the bytes for pictures, an eighth, however few they are."""
JOIN_SECONDS = 10.0
_POLL_SECONDS = 0.2

_log = logging.getLogger(__name__)


class _Stopped(Exception):  # noqa: N818 - no error: the way out of the thread's loops
    """The thread was told to end."""


@dataclass(frozen=True, slots=True)
class Produced:
    """One batch, before the consumer's waiting time is known. Rows in the order of their samples.

    done: on a GPU, the event behind the work that makes the frames.
    """

    frames: Tensor
    done: torch.cuda.Event | None
    requests: list[ClipRequest]
    substitutes: int
    decoded_frames: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a producer makes and may hold.

    batch: clips of a batch. stride: samples from one batch of this rank to the next. ahead: finished batches
    that wait at most. in_flight: decodes that are with the engine at most. picture_bytes: of the pictures of
    decodes that are submitted and that the crop has not read yet; one decode is always let through.
    """

    batch: int
    stride: int
    ahead: int
    in_flight: int
    picture_bytes: int


@dataclass(frozen=True, slots=True)
class _Submitted:
    decode: SharedDecode
    future: Future[DecodedClip | ClipFailure]
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Reading:
    """Decoded clips that the GPU still reads, and their bytes."""

    done: torch.cuda.Event
    clips: list[DecodedClip]
    nbytes: int


@dataclass(slots=True)
class _Run:
    """What one run of the thread holds.

    decoded: by sample, what is to be cropped, and whether it is a substitute. reading: what was cropped, as
    long as the GPU reads it. held: bytes of `waiting`, `decoded` and `reading`. pool: by the first sample of
    the batch, cropped clips of later ones.
    """

    decodes: Iterator[SharedDecode]
    stop: threading.Event
    next: SharedDecode | None = None
    waiting: deque[_Submitted] = field(default_factory=deque)
    decoded: dict[int, tuple[DecodedClip, bool]] = field(default_factory=dict)
    decoded_bytes: int = 0
    reading: deque[_Reading] = field(default_factory=deque)
    held: int = 0
    pool: dict[int, list[Cropped]] = field(default_factory=dict)
    pooled: int = 0


class ClipProducer:
    """Produces the batches of one rank in order, in a thread of its own, from `start` until `stop`."""

    def __init__(
        self, source: ClipSource, engine: Engine, crop: Crop, watch: FailureWatch, limits: Limits
    ) -> None:
        self._source = source
        self._engine = engine
        self._cropper = crop
        self._watch = watch
        self._limits = limits
        self._changed = threading.Condition()
        self._ready: deque[Produced] = deque()
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._stream = loader_stream(crop.device) if crop.device.type == "cuda" else None
        self.most_pooled = 0
        """Cropped clips that have waited for a later batch at a time, at most."""
        self.most_held = 0
        """Bytes of pictures, from their submission until the crop has read them, at most."""

    @property
    def running(self) -> bool:
        return self._thread is not None

    def start(self, first: int) -> None:
        """Begin with the batch whose first sample is `first`."""
        self._stop = threading.Event()
        self._ready.clear()
        self._error = None
        self._thread = threading.Thread(
            target=self._run, args=(first, self._stop), name="surgrec-clips", daemon=True
        )
        self._thread.start()

    def get(self) -> tuple[Produced, float]:
        """The next batch and the seconds waited for it. Raises what the thread raised."""
        started = time.perf_counter()
        with self._changed:
            while not self._ready:
                if self._error is not None:
                    raise self._error
                if self._thread is None:
                    raise RuntimeError("the loader was closed while a batch was waited for")
                self._changed.wait()
            batch = self._ready.popleft()
            self._changed.notify_all()
        return batch, time.perf_counter() - started

    def stop(self) -> None:
        """End the thread and drop what it has made. The engine goes on with the clips that it is decoding."""
        thread = self._thread
        if thread is None:
            return
        self._stop.set()
        with self._changed:
            self._thread = None
            self._changed.notify_all()
        if thread is threading.current_thread():
            return  # a forgotten loader can be collected in here; the thread ends at its next look at _stop
        thread.join(JOIN_SECONDS)
        if thread.is_alive():
            _log.warning("the loader's thread is still decoding after %g s; it is left behind", JOIN_SECONDS)
        with self._changed:
            self._ready.clear()

    def _run(self, first: int, stop: threading.Event) -> None:
        run = _Run(self._decodes(first), stop)
        try:
            with self._on_stream():
                self._submit(run)
                # While the engine makes its first decoders.
                self._cropper.prepare(len(run.waiting[0].decode.clips[0][0].frames))
                for number in itertools.count():
                    begin = first + number * self._limits.stride
                    batch = self._make(run, range(begin, begin + self._limits.batch))
                    with self._changed:
                        while len(self._ready) >= self._limits.ahead and not stop.is_set():
                            self._changed.wait()
                        if stop.is_set():
                            return
                        self._ready.append(batch)
                        self._changed.notify_all()
        except _Stopped:
            return
        except BaseException as error:  # the consumer raises it
            with self._changed:
                if not stop.is_set():
                    self._error = error
                self._changed.notify_all()
        finally:
            for submitted in run.waiting:
                submitted.future.cancel()
            # What the engine decodes next can get the memory of pictures that go with this run, while batches
            # that were given away are still made of them.
            with suppress(RuntimeError):  # a GPU that failed: whoever waits for a batch is told
                if (done := self._mark()) is not None:
                    done.synchronize()

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _decodes(self, first: int) -> Iterator[SharedDecode]:
        """The decodes of this rank, in the order in which their first clips are due."""
        sharing, batch, stride = self._source.sharing, self._limits.batch, self._limits.stride
        for begin in itertools.count(first, stride):
            for sample in range(begin, begin + batch):
                unit = sharing.unit(sample)[0]
                members = (sharing.sample(unit, member) for member in range(sharing.members))
                mine = [s for s in members if s >= first and (s - first) % stride < batch]
                if mine[0] == sample:
                    yield self._source.decode(unit, mine)

    def _make(self, run: _Run, samples: range) -> Produced:
        """One batch."""
        batch = BatchRows(samples, self._cropper.device)
        for cropped in run.pool.pop(samples.start, ()):
            run.pooled -= len(cropped.rows)
            batch.take(cropped)
        for sample in samples:
            if sample not in batch.requests and sample not in run.decoded:
                self._decode(run, batch)
                full = run.decoded_bytes * CROP_SHARE >= self._limits.picture_bytes
                if full or len(run.decoded) >= CHUNK:
                    self._crop(run, batch)
        self._crop(run, batch)
        self.most_pooled = max(self.most_pooled, run.pooled)
        assert batch.frames is not None
        requests = [batch.requests[sample] for sample in samples]
        return Produced(batch.frames, self._mark(), requests, batch.substitutes, batch.decoded_frames)

    def _decode(self, run: _Run, batch: BatchRows) -> None:
        """Wait for the next decode, and take its clips to those that are to be cropped."""
        self._submit(run)
        if not run.waiting:
            # The next one is so large that it needs the bytes of what is decoded.
            self._crop(run, batch)
            for reading in run.reading:
                reading.done.synchronize()
            self._submit(run)
        submitted = run.waiting.popleft()
        decode, clip, attempts = self._resolve(submitted, run.stop)
        batch.decoded_frames += clip.decoded_frames
        for part in decode.cut(clip):
            run.decoded[part.request.sample] = (part, attempts > 0)
        run.decoded_bytes += submitted.nbytes

    def _submit(self, run: _Run) -> None:
        """Give the engine as many decodes as the limits allow; run.next is the one that must wait."""
        while len(run.waiting) < self._limits.in_flight:
            decode = run.next or next(run.decodes)
            run.next = None
            nbytes = picture_bytes(self._source.index, decode.request, self._cropper.device)
            if run.held + nbytes > self._limits.picture_bytes:
                self._let_go(run)
            if run.held and run.held + nbytes > self._limits.picture_bytes:
                run.next = decode
                return
            run.held += nbytes
            self.most_held = max(self.most_held, run.held)
            run.waiting.append(_Submitted(decode, self._engine.submit(decode.request), nbytes))

    def _let_go(self, run: _Run) -> None:
        """Drops the pictures that the GPU has read. It is asked seldom: whoever asks holds the interpreter's
        lock, and waits for the threads that are with the driver."""
        while run.reading and run.reading[0].done.query():
            run.held -= run.reading.popleft().nbytes

    def _resolve(self, submitted: _Submitted, stop: threading.Event) -> tuple[SharedDecode, DecodedClip, int]:
        """A decode that succeeded, its pictures, and how many substitutes it took, 0 where none."""
        decode, future = submitted.decode, submitted.future
        samples = [clip.sample for clip, _ in decode.clips]
        for attempt in range(MAX_ATTEMPTS + 1):
            if attempt:
                decode = self._source.decode(decode.unit, samples, attempt)
                future = self._engine.submit(decode.request)
            while not future.done() and not stop.is_set():
                with suppress(TimeoutError, CancelledError):
                    future.exception(_POLL_SECONDS)
            # Once the interpreter exits, the engine refuses clips: no fault of theirs.
            if stop.is_set() or not threading.main_thread().is_alive():
                raise _Stopped
            result = future.result()
            if isinstance(result, DecodedClip):
                self._watch.success()
                return decode, result, attempt
            self._watch.failure(result)
        raise ClipLoaderError(
            f"sample {samples[0]} and its {MAX_ATTEMPTS} substitutes could not be decoded. "
            f"{self._watch.explain()}"
        )

    def _crop(self, run: _Run, batch: BatchRows) -> None:
        """Crop what is decoded: into the batch, or into the pool for a later one."""
        if not run.decoded:
            return
        self._let_go(run)
        decoded = list(run.decoded.values())
        for start in range(0, len(decoded), self._cropper.max_clips):
            by_batch: dict[int, list[tuple[DecodedClip, bool]]] = {}
            for clip, substitute in decoded[start : start + self._cropper.max_clips]:
                number = (clip.request.sample - batch.samples.start) // self._limits.stride
                by_batch.setdefault(number, []).append((clip, substitute))
            for number, clips in by_batch.items():
                first = batch.samples.start + number * self._limits.stride
                if number == 0:
                    batch.take(self._cropped(clips, first, batch))
                else:
                    run.pool.setdefault(first, []).append(self._cropped(clips, first))
                    run.pooled += len(clips)
        done = self._mark()
        if done is None:
            run.held -= run.decoded_bytes
        else:
            run.reading.append(_Reading(done, [clip for clip, _ in decoded], run.decoded_bytes))
        run.decoded_bytes = 0
        run.decoded.clear()

    def _cropped(
        self, decoded: list[tuple[DecodedClip, bool]], first: int, batch: BatchRows | None = None
    ) -> Cropped:
        """Clips of the batch whose first sample is `first`; where it is at hand, in its memory if they lie
        there one behind the other."""
        clips = [clip for clip, _ in decoded]
        rows = [clip.request.sample - first for clip in clips]
        shape = (length_of(clips[0].frames), self._cropper.size, self._cropper.size, 3)
        place = None if batch is None else batch.place(rows, shape)
        cropped = self._cropper([clip.frames for clip in clips], self._source.windows(clips), place)
        requests = [clip.request for clip in clips]
        return Cropped(cropped, rows, requests, sum(substitute for _, substitute in decoded))

    def _mark(self) -> torch.cuda.Event | None:
        """On a GPU, when all is done that was queued so far. Who waits for it sleeps."""
        if self._stream is None:
            return None
        event = torch.cuda.Event(blocking=True)
        event.record(self._stream)
        return event
