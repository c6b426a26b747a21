"""Loaders that loader_throughput.py compares: each gets clip requests, and returns RGB frames.

A contestant's `open` is called in a process of its own, with the index and the number of threads it may
use; it returns a function from a list of requests to a list of uint8 [T, H, W, 3]. Imports happen inside, so
that a contestant that is not installed is reported as absent and disturbs no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from surgrec.loaders.clip_plan import ClipRequest
    from surgrec.loaders.packet_index import PacketIndex

Decode = Callable[[list["ClipRequest"]], list[NDArray[np.uint8]]]


@dataclass(frozen=True)
class Contestant:
    """One way to load clips."""

    package: str
    """The distribution that it needs."""
    open: Callable[[PacketIndex, int], Decode]
    threaded: bool = False
    """True: one process with as many threads as cores. False: as many processes as cores, one thread each."""
    about: str = ""


def _surgrec(index: PacketIndex, threads: int, drop_disposable: bool) -> Decode:
    from surgrec.loaders.engines.base import DecodedClip
    from surgrec.loaders.engines.cpu import CpuEngine

    engine = CpuEngine(index, threads, drop_disposable)

    def decode(requests: list[ClipRequest]) -> list[NDArray[np.uint8]]:
        found = []
        for clip in engine.decode(requests):
            if not isinstance(clip, DecodedClip):
                raise RuntimeError(f"{clip.path}: {clip.reason}")
            found.append(clip.frames)
        return found

    return decode


def _cpu(index: PacketIndex, threads: int) -> Decode:
    return _surgrec(index, threads, drop_disposable=True)


def _cpu_keep(index: PacketIndex, threads: int) -> Decode:
    return _surgrec(index, threads, drop_disposable=False)


def _by_reader(
    index: PacketIndex, open_reader: Callable[[str], Any], read: Callable[[Any, list[int]], Any], keep: bool
) -> Decode:
    """Opens a reader per clip, or keeps one per video open."""
    readers: dict[str, Any] = {}

    def decode(requests: list[ClipRequest]) -> list[NDArray[np.uint8]]:
        found = []
        for request in requests:
            path = index.videos.path[request.video]
            if not keep:
                readers.clear()
            if path not in readers:
                readers[path] = open_reader(path)
            found.append(np.asarray(read(readers[path], list(request.frames))))
        return found

    return decode


def _decord(index: PacketIndex, keep: bool) -> Decode:
    import decord

    return _by_reader(
        index,
        lambda path: decord.VideoReader(path, num_threads=1),
        lambda reader, frames: reader.get_batch(frames).asnumpy(),
        keep,
    )


def _torchcodec(index: PacketIndex, keep: bool, seek_mode: Literal["exact", "approximate"]) -> Decode:
    from torchcodec import decoders

    reader: Any = decoders  # its type hints do not export VideoDecoder

    def open_reader(path: str) -> Any:
        return reader.VideoDecoder(path, seek_mode=seek_mode, num_ffmpeg_threads=1, dimension_order="NHWC")

    return _by_reader(
        index, open_reader, lambda reader, frames: reader.get_frames_at(frames).data.numpy(), keep
    )


def _pyav(index: PacketIndex, threads: int) -> Decode:
    """Seek to the key frame before the clip, decode to its end, convert the wanted frames."""
    import av

    def read(path: str, request: ClipRequest) -> NDArray[np.uint8]:
        times = index.frame_pts(request.video)
        wanted = {int(times[frame]): row for row, frame in enumerate(request.frames)}
        found: list[Any] = [None] * len(request.frames)
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            container.seek(min(wanted), stream=stream)
            for frame in container.decode(stream):
                row = None if frame.pts is None else wanted.pop(frame.pts, None)
                if row is not None:
                    found[row] = frame.to_ndarray(format="rgb24", threads=1)
                if not wanted:
                    break
        return np.stack(found)

    return lambda requests: [read(index.videos.path[request.video], request) for request in requests]


CONTESTANTS: dict[str, Contestant] = {
    "cpu": Contestant("av", _cpu, threaded=True, about="this project's cpu engine"),
    "cpu-keep": Contestant("av", _cpu_keep, threaded=True, about="the same, no packet dropped"),
    "decord": Contestant(
        "decord", lambda index, _: _decord(index, False), about="VideoReader per clip, get_batch"
    ),
    "decord-open": Contestant(
        "decord", lambda index, _: _decord(index, True), about="one VideoReader per video, kept open"
    ),
    "torchcodec": Contestant(
        "torchcodec",
        lambda index, _: _torchcodec(index, False, "approximate"),
        about="VideoDecoder per clip, seek_mode approximate",
    ),
    "torchcodec-exact": Contestant(
        "torchcodec",
        lambda index, _: _torchcodec(index, False, "exact"),
        about="VideoDecoder per clip, exact",
    ),
    "torchcodec-open": Contestant(
        "torchcodec",
        lambda index, _: _torchcodec(index, True, "approximate"),
        about="one VideoDecoder per video, kept open, seek_mode approximate",
    ),
    "pyav": Contestant("av", _pyav, about="open, seek, decode to the last wanted frame"),
}
