"""ClipLoader: batches of uint8 video on the device, drawn in balance, the same for any number of ranks.

Of step s, micro-batch m, rank r, row j, with W ranks, b rows and A micro-batches a step, G = A * W * b:

    sample number = s * G + m * W * b + r * b + j

A sample number says which clip it is and how it is cropped (loaders/clip_source.py), so that the position of
the loader is one number, and a resumed run goes on with the very batch that the stopped one would have had.
That holds where samples share a decode, too (loaders/sharing.py): a rank decodes a unit when one of its own
samples first needs it, and a resumed one decodes again what its pool held.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import torch
from numpy.typing import ArrayLike
from surgrec.configs.data import DataConfig
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_producer import CHUNK, ClipProducer, Limits
from surgrec.loaders.clip_source import ClipSource
from surgrec.loaders.corpus_plan import CorpusPlan
from surgrec.loaders.crop_way import make_crop
from surgrec.loaders.engines.base import Engine
from surgrec.loaders.engines.select import make_engine
from surgrec.loaders.failure_watch import ClipLoaderError, FailureWatch
from surgrec.loaders.ledger import Ledger
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.sampler import Mix
from surgrec.loaders.segments import Unusable
from torch import Tensor

__all__ = ["AHEAD", "SPARE", "Batch", "ClipLoader", "ClipLoaderError"]

AHEAD: Final = 4
"""Clips that an engine has for each one that it works on, so that what FFmpeg takes last is not due soon."""
SPARE: Final = 8
"""Clips that an engine has besides, so that few that it works on do not all wait while a chunk is cropped."""


@dataclass(frozen=True, slots=True)
class Batch:
    """frames: uint8 [b, T, S, S, 3], RGB, on the loader's device; on a GPU complete for what is queued, after
    it was asked for, on the stream that was current then. samples: int64 [b], on the CPU.

    requests: the clip in each row; where a sample could not be decoded, its substitute, with its number.
    substitutes: rows that hold a substitute. decoded_frames: frames decoded for this batch; those of a decode
    that later batches share count here, once. wait_seconds: time that the caller waited for it.
    video_repetition, decode_repetition: share of the rows whose video, or whose decode, occurs more than once
    in this batch.
    """

    frames: Tensor
    samples: Tensor
    requests: list[ClipRequest]
    substitutes: int
    decoded_frames: int
    wait_seconds: float
    video_repetition: float = 0.0
    decode_repetition: float = 0.0


class ClipLoader:
    """Endless iterator over the batches of one rank.

    A thread decodes ahead; it starts with the first batch asked for. Close the loader, or use it in a `with`
    statement; a forgotten one is closed when it is collected or the interpreter exits.
    """

    def __init__(
        self,
        index: PacketIndex,
        data: DataConfig,
        seed: int,
        global_batch: int,
        micro_batch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        ledger: Ledger | None = None,
        engine: Engine | None = None,
        content_area: ArrayLike | None = None,
    ) -> None:
        """Plan the corpus and start the engine.

        Args:
            index, data, seed: what is drawn.
            global_batch: clips of one optimizer step over all ranks.
            micro_batch: rows of a batch of this loader; by default all that a rank has in a step.
            rank, world_size: this process among those that share the global batch.
            device: where the frames are wanted.
            ledger: takes clips that fail and, on rank 0, videos left out; without it they are logged.
            engine: decodes in place of the one that data.engine names; the loader closes it.
            content_area: int32 [V, 4], where in each video's picture crops are drawn, as in ClipSource.

        Raises:
            ValueError: batch sizes that do not divide, a rank outside the world, a field of `data` that makes
                no sense, or no usable video.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not among {world_size} ranks")
        if micro_batch is None:
            micro_batch = global_batch // world_size
        if micro_batch < 1 or global_batch < 1 or global_batch % (micro_batch * world_size):
            raise ValueError(
                f"a global batch of {global_batch} is no whole number of micro-batches of {micro_batch} "
                f"on {world_size} ranks"
            )
        if data.prefetch < 1:
            raise ValueError(f"prefetch is {data.prefetch}; at least 1 batch is made ahead")
        if data.picture_mib < 1:
            raise ValueError(f"picture_mib is {data.picture_mib}; decoded pictures need at least 1 MiB")
        self.device = checked_device(device)
        self.global_batch = global_batch
        self.micro_batch = micro_batch
        self._rows = micro_batch * world_size  # of all ranks, in one micro-batch
        self._offset = rank * micro_batch
        self._source = ClipSource(index, data, seed, global_batch, content_area)
        self._watch = FailureWatch(data.max_failures, ledger)
        threads = data.threads or threads_of_this_rank()
        crop = make_crop(data.size, min(CHUNK, micro_batch), self.device, threads, data.crop)
        if engine is None:
            engine = make_engine(index, data, threads, self.device)
        limits = Limits(
            batch=micro_batch,
            stride=self._rows,
            ahead=data.prefetch,
            in_flight=SPARE + AHEAD * parallel_clips(engine, threads),
            picture_bytes=data.picture_mib << 20,
        )
        self._producer = ClipProducer(self._source, engine, crop, self._watch, limits)
        self._finalizer = weakref.finalize(self, _shut_down, self._producer, engine)
        self._next = 0  # first sample, of all ranks, of the next micro-batch
        self._counted = 0
        self._counts = self._source.count_datasets(0, 0)
        if ledger is not None and rank == 0:
            for video in self.unusable:
                ledger.record_refused(video.video, video.path, video.reason)

    @property
    def unusable(self) -> list[Unusable]:
        """Videos of the index that no clip is drawn from, and why."""
        return self._source.unusable

    @property
    def plan(self) -> CorpusPlan | None:
        """What data.plan names."""
        return self._source.plan

    @property
    def failures(self) -> int:
        """Clips that could not be decoded so far, on this rank, failed substitutes included."""
        return self._watch.failures

    @property
    def expected_mix(self) -> Mix:
        """Probability of each domain and data set."""
        return self._source.sampler.expected()

    @property
    def mix(self) -> Mix:
        """How many samples of each domain and data set all ranks have drawn so far, since the run began."""
        self._counts += self._source.count_datasets(self._counted, self._next - self._counted)
        self._counted = self._next
        return self._source.sampler.by_name(self._counts)

    def __iter__(self) -> ClipLoader:
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises ClipLoaderError where too many clips cannot be decoded."""
        if not self._finalizer.alive:
            raise RuntimeError("this loader is closed")
        if not self._producer.running:
            self._producer.start(self._next + self._offset)
        made, waited = self._producer.get()
        first = self._next + self._offset
        if made.done is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(made.done)
            # Made on another stream; freed only when the work queued on this one is done.
            made.frames.record_stream(stream)
        self._next += self._rows
        samples = range(first, first + self.micro_batch)
        return Batch(
            frames=made.frames,
            samples=torch.tensor(samples),
            requests=made.requests,
            substitutes=made.substitutes,
            decoded_frames=made.decoded_frames,
            wait_seconds=waited,
            video_repetition=_repetition(request.video for request in made.requests),
            decode_repetition=_repetition(self._source.sharing.unit(sample)[0] for sample in samples),
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values that say where the loader is: the same on every rank after as many batches."""
        return {
            "next_sample": self._next,
            "global_batch": self.global_batch,
            "source": self._source.digest(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, on any number of ranks.

        Raises ValueError where the batches to come would not be those of the run that saved the state.
        """
        first = int(state["next_sample"])
        if state["source"] != self._source.digest():
            raise ValueError(
                "the loader's state comes from another corpus, data configuration or seed, so that its "
                "stream of clips cannot be resumed. Resume with the index and configuration of that run, or "
                "begin a new run from its weights."
            )
        if state["global_batch"] != self.global_batch:
            raise ValueError(
                f"the loader's state was saved with a global batch of {state['global_batch']}, this run has "
                f"{self.global_batch}. Resume with the same global batch; ranks and micro-batch may change."
            )
        if first < 0 or first % self._rows:
            raise ValueError(
                f"the loader's state was saved at sample {first}, within a step; {self._rows} rows in a "
                f"micro-batch do not divide it. Resume with the ranks and micro-batch of that run."
            )
        self._producer.stop()
        self._next = first
        if self._counted > first:
            self._counted = 0
            self._counts[:] = 0

    def close(self) -> None:
        """Stop decoding and free the threads. May be called again."""
        self._finalizer()

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _shut_down(producer: ClipProducer, engine: Engine) -> None:
    producer.stop()
    engine.close()


def checked_device(device: str | torch.device) -> torch.device:
    """The device with its number. Raises ValueError for a GPU that is not there."""
    found = torch.device(device)
    if found.type == "cpu":
        return found
    if found.type != "cuda":
        raise ValueError(f"device is {found}; the loader knows cpu and cuda")
    if not torch.cuda.is_available():
        raise ValueError(f"device is {found}, but torch finds no GPU; use device cpu")
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def threads_of_this_rank() -> int:
    """The cores that this process may use, shared with the machine's other ranks as torchrun counts them."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def parallel_clips(engine: Engine, threads: int) -> int:
    """Clips that an engine works on at a time."""
    return int(getattr(engine, "parallel", 0) or getattr(engine, "threads", threads))


def _repetition(rows: Iterable[Hashable]) -> float:
    """Share of the rows that are not the only one of their kind."""
    counts = Counter(rows)
    return sum(count for count in counts.values() if count > 1) / counts.total()
