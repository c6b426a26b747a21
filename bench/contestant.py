"""What a contestant of loader_throughput.py is, and what several of them share.

A contestant's `open` is called in a process of its own; it returns a function that takes a list of clip
requests and yields the decoded clips, a few at a time and in any order, each with its request. With `forever`
it goes round in the list until the generator is closed. What a clip is made of is the contestant's affair, as
long as it is complete: `rgb` turns each kind into an array for the check.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from surgrec.loaders.clip_plan import ClipRequest
    from surgrec.loaders.packet_index import PacketIndex

Clips = Iterator[list[tuple["ClipRequest", Any]]]
Stream = Callable[[Sequence["ClipRequest"], bool], Clips]
T = TypeVar("T")
CLOSE: Final = "close"


@dataclass(frozen=True)
class Contestant:
    """One way to load clips."""

    package: str
    """The distribution that it needs."""
    open: Callable[[PacketIndex, int], Stream]
    """Index and number of threads it may use -> stream of clips."""
    threaded: bool = False
    """True: one process with as many threads as cores. False: as many processes as cores, one thread each."""
    gpu: bool = False
    """Whether it needs an NVIDIA GPU."""
    modules: tuple[str, ...] = ()
    """What its processes import while they wait for their turn."""
    about: str = ""


def rounds(requests: Sequence[ClipRequest], forever: bool) -> Iterator[ClipRequest]:
    """The requests once, or again and again."""
    return itertools.cycle(requests) if forever else iter(requests)


def one_by_one(read: Callable[[ClipRequest], Any]) -> Stream:
    """A stream that calls `read` for each request, in the process's only thread."""

    def stream(requests: Sequence[ClipRequest], forever: bool) -> Clips:
        for request in rounds(requests, forever):
            yield [(request, read(request))]

    return stream


def in_threads(read: Callable[[ClipRequest], Any], threads: int) -> Stream:
    """A stream that calls `read` in threads and keeps them busy; clips come as they are done."""

    pool = ThreadPoolExecutor(threads)

    def stream(requests: Sequence[ClipRequest], forever: bool) -> Clips:
        return as_they_come(
            lambda request: pool.submit(read, request), rounds(requests, forever), 2 * threads
        )

    return closing(stream, pool.shutdown)


def closing(stream: Stream, close: Callable[[], Any]) -> Stream:
    """The stream, with what is to be called when the contestant lets go of its corpus."""
    setattr(stream, CLOSE, close)
    return stream


def as_they_come(submit: Callable[[Any], Future[Any]], requests: Iterator[Any], in_flight: int) -> Clips:
    """Keeps `in_flight` requests submitted and yields what is done."""
    # Not futures.wait, which looks at all of them each time: that costs more than many a clip.
    done: SimpleQueue[Future[Any]] = SimpleQueue()
    waiting: dict[Future[Any], Any] = {}

    def submit_next(count: int) -> None:
        for request in itertools.islice(requests, count):
            future = submit(request)
            waiting[future] = request
            future.add_done_callback(done.put)

    submit_next(in_flight)
    try:
        while waiting:
            ended = [done.get()]
            with suppress(Empty):
                while True:
                    ended.append(done.get_nowait())
            clips = [(waiting.pop(future), future.result()) for future in ended]
            submit_next(len(ended))
            yield clips
    finally:
        wait(waiting)


class KeptPerThread(Generic[T]):
    """Values by key that each thread makes for itself and keeps, the least recently used dropped."""

    def __init__(self, make: Callable[[Any], T], most: int) -> None:
        self._make, self._most = make, most
        self._local = threading.local()

    def get(self, key: Any) -> T:
        """The calling thread's value for `key`."""
        kept: OrderedDict[Any, T] = self._local.__dict__.setdefault("kept", OrderedDict())
        if key not in kept:
            while len(kept) >= self._most:
                kept.popitem(last=False)
            kept[key] = self._make(key)
        kept.move_to_end(key)
        return kept[key]


def stride_of(request: ClipRequest) -> int:
    """Distance between a request's frames. Raises ValueError where they are not evenly spaced."""
    steps = set(np.diff(request.frames).tolist()) or {1}
    if len(steps) > 1:
        raise ValueError(f"sample {request.sample}: its frames are not evenly spaced")
    return int(steps.pop())


def times_of(index: PacketIndex, request: ClipRequest) -> NDArray[np.float64]:
    """float64 [T]: presentation times of a request's frames, in seconds."""
    numerator, denominator = index.video(request.video).time_base
    times = index.frame_pts(request.video)[list(request.frames)]
    return np.asarray(times * (numerator / denominator), np.float64)


def nv12_planes(surfaces: Any, index: PacketIndex, video: int) -> Any:
    """Planes of NV12 or P016 pictures: a tensor [T, 3/2 H, W], with the matrix that FFmpeg takes the video's
    for.
    """
    from surgrec.kernels.planes import Colour, Planes

    info = index.video(video)
    height = surfaces.shape[1] * 2 // 3
    chroma = surfaces[:, height:].unflatten(2, (-1, 2))
    deep = surfaces.element_size() == 2
    # Unspecified is taken for BT.601, as FFmpeg's converter takes it.
    matrix = info.color_space if info.color_space in ("bt709", "bt2020", "smpte240m", "fcc") else "bt601"
    colour = Colour(
        matrix,
        info.color_range in ("pc", "jpeg", "full"),
        depth=info.bit_depth if deep else 8,
        shift=16 - info.bit_depth if deep else 0,
    )
    parts = surfaces[:, :height], chroma[..., 0], chroma[..., 1]
    return Planes(parts, tuple(range(len(surfaces))), colour, info.rotation)


def rgb(clip: Any) -> NDArray[np.uint8]:
    """uint8 [T, H, W, 3] of a contestant's clip: an array, a tensor, Planes, or something with `.frames`."""
    from surgrec.kernels.planes import Planes

    clip = getattr(clip, "frames", clip)
    if callable(clip):
        clip = clip()
    if isinstance(clip, Planes):
        from surgrec.kernels.nv12_crop import to_rgb

        clip = to_rgb(clip)
    return np.asarray(clip.cpu() if hasattr(clip, "cpu") else clip)
