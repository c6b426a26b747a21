"""The contestants of loader_throughput.py, by name: this project's engines, and what others offer.

Imports happen inside, so that a contestant that is not installed is reported as absent and disturbs no other.
Each is used as its documentation says it is fastest; `about` tells how.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from contestant import (
    Clips,
    Contestant,
    KeptPerThread,
    Stream,
    as_they_come,
    closing,
    in_threads,
    one_by_one,
    rounds,
    times_of,
)
from contestants_gpu import GPU_CONTESTANTS
from numpy.typing import NDArray

if TYPE_CHECKING:
    from surgrec.loaders.clip_plan import ClipRequest
    from surgrec.loaders.packet_index import PacketIndex

OURS = ("nvdec", "dali", "hybrid", "cpu", "cpu-keep")
"""This project's own: their clips know how many frames were fed."""
SESSIONS: Final = re.compile(r"(nvdec|hybrid)-([1-9]\d*)")


def is_ours(name: str) -> bool:
    """Whether a contestant is an engine of this project, with any number of sessions."""
    return name in OURS or SESSIONS.fullmatch(name) is not None


def contestant_of(name: str) -> Contestant | None:
    """A contestant by its name; `nvdec-14` and `hybrid-14` are these engines with 14 sessions."""
    found = SESSIONS.fullmatch(name)
    if found is None:
        return CONTESTANTS.get(name)
    engine, sessions = found[1], int(found[2])
    base = CONTESTANTS[engine]
    opened = _surgrec("nvdec" if engine == "nvdec" else "hybrid", sessions=sessions)
    return replace(base, open=opened, about=f"{base.about}, {sessions} sessions")


def named(name: str) -> Contestant:
    """As `contestant_of`, for a name that is known to be one."""
    found = contestant_of(name)
    assert found is not None, name
    return found


def _surgrec(
    name: Literal["nvdec", "dali", "hybrid", "cpu"], drop_disposable: bool = True, sessions: int = 0
) -> Callable[[PacketIndex, int], Stream]:
    """An engine of this project: Planes on the GPU where there is one, RGB arrays elsewhere."""

    def open_engine(index: PacketIndex, threads: int) -> Stream:
        import torch
        from surgrec.configs.data import DataConfig
        from surgrec.loaders.engines.base import DecodedClip
        from surgrec.loaders.engines.select import make_engine
        from surgrec.loaders.picture_bytes import picture_bytes

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        data = DataConfig(engine=name, threads=threads, drop_disposable=drop_disposable, sessions=sessions)
        engine = make_engine(index, data, threads, device)

        def stream(requests: Sequence[ClipRequest], forever: bool) -> Clips:
            # As many as ClipLoader keeps, in as much memory.
            mean = np.mean([picture_bytes(index, request, device) for request in requests])
            most = int((data.picture_mib << 20) / mean) if device.type == "cuda" else sys.maxsize
            in_flight = max(1, min(most, 4 * getattr(engine, "parallel", threads) + 8))
            clips = as_they_come(engine.submit, rounds(requests, forever), in_flight)
            with contextlib.closing(clips):  # type: ignore[type-var]
                for done in clips:
                    for _, clip in done:
                        if not isinstance(clip, DecodedClip):
                            raise RuntimeError(f"{clip.path}: {clip.reason}")
                    yield done

        return closing(stream, engine.close)

    return open_engine


def _by_reader(
    index: PacketIndex, open_reader: Callable[[str], Any], read: Callable[[Any, list[int]], Any], keep: bool
) -> Stream:
    """Opens a reader per clip, or keeps one per video open: two, for decord's take a GiB each at 1080p."""
    kept = KeptPerThread(open_reader, 2)

    def read_clip(request: ClipRequest) -> NDArray[np.uint8]:
        path = index.videos.path[request.video]
        reader = kept.get(path) if keep else open_reader(path)
        return np.asarray(read(reader, list(request.frames)))

    return one_by_one(read_clip)


def _decord(index: PacketIndex, keep: bool) -> Stream:
    import decord

    return _by_reader(
        index,
        lambda path: decord.VideoReader(path, num_threads=1),
        lambda reader, frames: reader.get_batch(frames).asnumpy(),
        keep,
    )


def _torchcodec(index: PacketIndex, keep: bool, seek_mode: Literal["exact", "approximate"]) -> Stream:
    from torchcodec import decoders

    reader: Any = decoders  # its type hints do not export VideoDecoder

    def open_reader(path: str) -> Any:
        return reader.VideoDecoder(path, seek_mode=seek_mode, num_ffmpeg_threads=1, dimension_order="NHWC")

    return _by_reader(
        index, open_reader, lambda reader, frames: reader.get_frames_at(frames).data.numpy(), keep
    )


def _pyav(index: PacketIndex, threads: int) -> Stream:
    """Seek to the key frame before the clip, decode to its end, convert the wanted frames."""
    import av

    def read(request: ClipRequest) -> NDArray[np.uint8]:
        times = index.frame_pts(request.video)
        wanted = {int(times[frame]): row for row, frame in enumerate(request.frames)}
        found: list[Any] = [None] * len(request.frames)
        with av.open(index.videos.path[request.video]) as container:
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

    return one_by_one(read)


def _spdl(index: PacketIndex, threads: int) -> Stream:
    """Demux a window of time, decode the packets that the wanted frames need; threads of one process."""
    import spdl.io

    def read(request: ClipRequest) -> NDArray[np.uint8]:
        times = times_of(index, request)
        half = 0.5 / float(index.videos.rate[request.video])
        window = (max(0.0, times[0] - half), times[-1] + half)
        packets = spdl.io.demux_video(index.videos.path[request.video], timestamp=window)
        places = [frame - request.frames[0] for frame in request.frames]
        frames = spdl.io.sample_decode_video(packets, places)
        return np.asarray(spdl.io.to_numpy(spdl.io.convert_frames(frames)))

    return in_threads(read, threads)


CONTESTANTS: dict[str, Contestant] = {
    "nvdec": Contestant("torch", _surgrec("nvdec"), True, True, ("torch",), "this project's nvdec engine"),
    "dali": Contestant(
        "nvidia-dali-cuda130",
        _surgrec("dali"),
        True,
        True,
        ("torch", "nvidia.dali"),
        "this project's dali engine",
    ),
    "hybrid": Contestant(
        "torch",
        _surgrec("hybrid"),
        True,
        True,
        ("torch",),
        "this project's nvdec and cpu, one queue",
    ),
    "cpu": Contestant("av", _surgrec("cpu"), threaded=True, about="this project's cpu engine"),
    "cpu-keep": Contestant("av", _surgrec("cpu", False), threaded=True, about="the same, no packet dropped"),
    **GPU_CONTESTANTS,
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
    "spdl": Contestant(
        "spdl-io", _spdl, threaded=True, about="demux_video of a window, sample_decode_video, threads"
    ),
    "pyav": Contestant("av", _pyav, about="open, seek, decode to the last wanted frame"),
}
