"""The thread behind ClipLoader: keeps the engine busy, replaces clips that fail, crops, makes batches.

    requests --submit--> engine (many clips at a time) --in sample order--> CropGraph --> finished batches

Clips leave the engine in chunks of a few, so that the pictures of a whole batch never lie in memory at their
full size.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass

import torch
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_source import ClipSource
from surgrec.loaders.dali_graph import CropGraph
from surgrec.loaders.engines.base import ClipFailure, DecodedClip, Engine
from surgrec.loaders.ledger import Ledger
from torch import Tensor

MAX_ATTEMPTS = 16
"""Substitutes that are tried for one sample."""
WINDOW = 1000
"""Clips over which the share of failures is taken."""
CHUNK = 8
"""Clips that are cropped at a time."""
JOIN_SECONDS = 10.0
_POLL_SECONDS = 0.2

_log = logging.getLogger(__name__)


_Result = Future[DecodedClip | ClipFailure]
_Clip = tuple[ClipRequest, _Result]


class ClipLoaderError(RuntimeError):
    """Too many clips cannot be decoded."""


class _Stopped(Exception):  # noqa: N818 - no error: the way out of the thread's loops
    """The thread was told to end."""


@dataclass(frozen=True, slots=True)
class Produced:
    """One batch, before the consumer's waiting time is known. Rows in the order of their samples."""

    frames: Tensor
    requests: list[ClipRequest]
    substitutes: int
    decoded_frames: int


class FailureWatch:
    """Counts decoded and failed clips and stops a run in which too many of the last 1,000 failed."""

    def __init__(self, max_share: float, ledger: Ledger | None) -> None:
        if not 0.0 <= max_share <= 1.0:
            raise ValueError(f"max_failures is {max_share}; it is a share, between 0 and 1")
        self.max_share = max_share
        self.ledger = ledger
        self.failures = 0
        self._recent: deque[str | None] = deque(maxlen=WINDOW)
        self._reasons: Counter[str] = Counter()  # of the failures in _recent

    def success(self) -> None:
        self._push(None)

    def failure(self, failure: ClipFailure) -> None:
        """Ledger the failure. Raises ClipLoaderError where it is one too many."""
        self.failures += 1
        if self.ledger is None:
            _log.warning("%s, frames %s: %s", failure.path, failure.request.frames, failure.reason)
        else:
            self.ledger.record(failure)
        self._push(failure.reason)
        failed = self._reasons.total()
        if failed > self.max_share * WINDOW:
            raise ClipLoaderError(
                f"{failed} of the last {len(self._recent)} clips could not be decoded, more than "
                f"max_failures = {self.max_share:g} of {WINDOW} allows. {self.explain()}"
            )

    def explain(self) -> str:
        """The most frequent reason, and where to read all of them."""
        reason, count = self._reasons.most_common(1)[0]
        where = (
            "the log, since no ledger was given" if self.ledger is None else f"the ledger {self.ledger.path}"
        )
        return f"Most frequent reason ({count} times): {reason}. Each failure is in {where}."

    def _push(self, reason: str | None) -> None:
        if len(self._recent) == WINDOW:
            oldest = self._recent[0]
            if oldest is not None:
                self._reasons -= Counter({oldest: 1})
        self._recent.append(reason)
        if reason is not None:
            self._reasons[reason] += 1


class ClipProducer:
    """Produces the batches of one rank in order, in a thread of its own, from `start` until `stop`."""

    def __init__(
        self,
        source: ClipSource,
        engine: Engine,
        graph: CropGraph,
        watch: FailureWatch,
        batch: int,
        stride: int,
        ahead: int,
        in_flight: int,
    ) -> None:
        """batch: clips of a batch. stride: samples from one batch of this rank to the next. ahead: finished
        batches that wait at most. in_flight: clips that are with the engine at most."""
        self._source = source
        self._engine = engine
        self._graph = graph
        self._watch = watch
        self._batch = batch
        self._stride = stride
        self._ahead = ahead
        self._in_flight = max(in_flight, CHUNK)
        self._changed = threading.Condition()
        self._ready: deque[Produced] = deque()
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        cuda = graph.device.type == "cuda"
        self._stream = torch.cuda.Stream(graph.device) if cuda else None

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
        waiting: deque[_Clip] = deque()
        try:
            requests = self._requests(first)
            while True:
                batch = self._make(requests, waiting, stop)
                with self._changed:
                    while len(self._ready) >= self._ahead and not stop.is_set():
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
            for _, future in waiting:
                future.cancel()

    def _requests(self, first: int) -> Iterator[ClipRequest]:
        for number in itertools.count():
            yield from self._source.requests(first + number * self._stride, self._batch)

    def _make(
        self, requests: Iterator[ClipRequest], waiting: deque[_Clip], stop: threading.Event
    ) -> Produced:
        """One batch; `waiting` holds the clips that are with the engine, in the order of their samples."""
        parts: list[Tensor] = []
        done: list[ClipRequest] = []
        substitutes = decoded_frames = 0
        for start in range(0, self._batch, CHUNK):
            clips: list[DecodedClip] = []
            for _ in range(min(CHUNK, self._batch - start)):
                while len(waiting) < self._in_flight:
                    request = next(requests)
                    waiting.append((request, self._engine.submit(request)))
                clip, attempts = self._resolve(*waiting.popleft(), stop)
                clips.append(clip)
                substitutes += attempts > 0
                decoded_frames += clip.decoded_frames
            done += [clip.request for clip in clips]
            parts.append(self._graph([clip.frames for clip in clips], self._source.windows(clips)))
        return Produced(self._join(parts), done, substitutes, decoded_frames)

    def _resolve(
        self, request: ClipRequest, future: _Result, stop: threading.Event
    ) -> tuple[DecodedClip, int]:
        """The clip of a sample, and how many substitutes it took: 0 where the sample itself decoded."""
        for attempt in range(MAX_ATTEMPTS + 1):
            if attempt:
                future = self._engine.submit(self._source.substitute(request.sample, attempt))
            while not future.done() and not stop.is_set():
                wait([future], _POLL_SECONDS)
            # Once the interpreter exits, the engine refuses clips: no fault of theirs.
            if stop.is_set() or not threading.main_thread().is_alive():
                raise _Stopped
            result = future.result()
            if isinstance(result, DecodedClip):
                self._watch.success()
                return result, attempt
            self._watch.failure(result)
        raise ClipLoaderError(
            f"sample {request.sample} and its {MAX_ATTEMPTS} substitutes could not be decoded. "
            f"{self._watch.explain()}"
        )

    def _join(self, parts: list[Tensor]) -> Tensor:
        """The parts as one tensor. On a GPU it is torch's own memory, freed in the order of its streams."""
        if self._stream is None:
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        with torch.cuda.stream(self._stream):
            frames = torch.empty(
                (self._batch, *parts[0].shape[1:]), dtype=torch.uint8, device=self._graph.device
            )
            torch.cat(parts, out=frames)
        self._stream.synchronize()
        return frames
