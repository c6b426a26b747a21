"""Small videos of every kind that the loaders must read, made with the encoders that PyAV brings along.

    path = make_stream("h264_open_gop", tmp_path / "video")

Frame n shows a texture that moves, and in its top rows the binary digits of n as blocks that survive
lossy coding: `read_number` gives n back from the decoded picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

RATE = 25
FRAMES = 90
SIZE = (160, 96)
BLOCK = 12
DIGITS = 8


@dataclass(frozen=True)
class StreamKind:
    """How a video is made, and what an index must say of it."""

    codec: str
    suffix: str
    options: dict[str, str] = field(default_factory=dict)
    pix_fmt: str = "yuv420p"
    container: str | None = None
    """Name of FFmpeg's muxer, where the suffix does not say it."""
    mux_options: dict[str, str] = field(default_factory=dict)
    random_access: bool = True
    """False where packets cannot be located or decoded one by one: the index says SEQUENTIAL."""
    b_frames: bool = False
    """Whether the stream has frames that no other frame refers to, and the index can tell."""
    times: Callable[[int], int] = lambda n: n
    """Frame number -> pts, in units of `time_base`."""
    time_base: Fraction = Fraction(1, RATE)
    aspect: Fraction | None = None
    rotation: int = 0
    """Degrees clockwise that make the picture upright; written into an MP4's track header."""
    shift: int = 0
    """Frames that an edit list cuts from the start: their pts are moved below zero when muxed."""


def _x264(*params: str, g: int = 24, **options: str) -> dict[str, str]:
    found = {"g": str(g), "preset": "fast", **options}
    return found | ({"x264-params": ":".join(params)} if params else {})


def _x265(*params: str) -> dict[str, str]:
    fixed = ("keyint=24", "min-keyint=24", "log-level=none", "pools=none", "frame-threads=1")
    return {"preset": "superfast", "x265-params": ":".join((*fixed, *params))}


def _uneven(n: int) -> int:
    """Milliseconds; steps of 20 to 110 ms."""
    return 40 * n + (n * n * 7) % 31 + (40 * (n // 10))


STREAM_KINDS: dict[str, StreamKind] = {
    "h264_default": StreamKind("libx264", ".mp4", _x264(), b_frames=True),
    "h264_no_pyramid": StreamKind("libx264", ".mp4", _x264("b-pyramid=none"), b_frames=True),
    "h264_many_b": StreamKind(
        "libx264", ".mkv", _x264("bframes=8", "b-adapt=0", "ref=4", g=40), b_frames=True
    ),
    "h264_intra": StreamKind("libx264", ".mp4", _x264(g=1)),
    "h264_open_gop": StreamKind(
        "libx264", ".mp4", _x264("open-gop=1", "b-adapt=0", "min-keyint=24"), b_frames=True
    ),
    "h264_baseline": StreamKind("libx264", ".mp4", _x264(profile="baseline")),
    "h264_intra_refresh": StreamKind("libx264", ".mp4", _x264("intra-refresh=1"), b_frames=True),
    "h264_10bit": StreamKind("libx264", ".mp4", _x264(), "yuv420p10le", b_frames=True),
    "h264_444": StreamKind("libx264", ".mp4", _x264(), "yuv444p", b_frames=True),
    "h264_interlaced": StreamKind("libx264", ".mp4", _x264("tff=1"), b_frames=True),
    "h264_full_range": StreamKind("libx264", ".mp4", _x264(), "yuvj420p", b_frames=True),
    "h264_mkv": StreamKind("libx264", ".mkv", _x264(), b_frames=True),
    "h264_fragmented": StreamKind(
        "libx264",
        ".mp4",
        _x264(),
        mux_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
        b_frames=True,
    ),
    "h264_vfr": StreamKind(
        "libx264", ".mp4", _x264(), times=_uneven, time_base=Fraction(1, 1000), b_frames=True
    ),
    "h264_late_start": StreamKind("libx264", ".mkv", _x264(), times=lambda n: n + 137, b_frames=True),
    "h264_edit_list": StreamKind("libx264", ".mp4", _x264(), shift=10, b_frames=True),
    "h264_rotated": StreamKind("libx264", ".mp4", _x264(), rotation=90, b_frames=True),
    "h264_wide_pixels": StreamKind("libx264", ".mp4", _x264(), aspect=Fraction(4, 3), b_frames=True),
    "h264_ts": StreamKind("libx264", ".ts", _x264(), random_access=False),
    "hevc_closed": StreamKind("libx265", ".mp4", _x265("open-gop=0"), b_frames=True),
    "hevc_open_gop": StreamKind("libx265", ".mp4", _x265("open-gop=1"), b_frames=True),
    "hevc_10bit": StreamKind("libx265", ".mkv", _x265("open-gop=1"), "yuv420p10le", b_frames=True),
    "vp8": StreamKind(
        "libvpx",
        ".webm",
        {
            "g": "24",
            "auto-alt-ref": "1",
            "lag-in-frames": "16",
            "deadline": "good",
            "cpu-used": "2",
            "b": "200k",
        },
    ),
    "vp9": StreamKind(
        "libvpx-vp9",
        ".webm",
        {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5", "b": "400k"},
    ),
    "av1": StreamKind("libsvtav1", ".mp4", {"g": "24", "preset": "12", "svtav1-params": "lp=1"}),
    "mpeg4_avi": StreamKind("mpeg4", ".avi", {"g": "24", "bf": "2", "b": "800k"}, b_frames=True),
    "mpeg4_mp4": StreamKind("mpeg4", ".mp4", {"g": "24", "bf": "2", "b": "800k"}, b_frames=True),
    "mjpeg_avi": StreamKind("mjpeg", ".avi", {"qscale": "4"}, "yuvj420p"),
    "mpeg2_ps": StreamKind(
        "mpeg2video", ".mpg", {"g": "24", "bf": "2", "b": "1500k"}, container="vob", random_access=False
    ),
    "mpeg2_mkv": StreamKind("mpeg2video", ".mkv", {"g": "24", "bf": "2", "b": "1500k"}, b_frames=True),
}


def picture(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: frame `number`, a drifting noisy texture under the binary digits of the number."""
    width, height = size
    generator = np.random.default_rng(number)
    field = _texture(width, height)
    moved = np.roll(field, (number * 2, number * 3), (0, 1))[:height, :width]
    image = np.clip(moved + generator.normal(0, 6, moved.shape), 0, 255).astype(np.uint8)
    for digit in range(DIGITS):
        value = 235 if number >> digit & 1 else 16
        image[:BLOCK, digit * BLOCK : (digit + 1) * BLOCK] = value
    return image


def read_number(image: NDArray[np.uint8]) -> int:
    """The frame number that `picture` wrote, from a decoded picture uint8 [H, W, 3] (upright)."""
    inner = slice(BLOCK // 4, 3 * BLOCK // 4)
    found = 0
    for digit in range(DIGITS):
        block = image[inner, digit * BLOCK + BLOCK // 4 : digit * BLOCK + 3 * BLOCK // 4]
        found |= int(block.mean() > 125) << digit
    return found


def _texture(width: int, height: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(12345)
    coarse = generator.uniform(30, 220, (height // 8 + 8, width // 8 + 8, 3))
    return np.kron(coarse, np.ones((8, 8, 1)))


def encode(
    kind: StreamKind, frames: int, size: tuple[int, int], path: Path, first: int = 0
) -> Iterator[tuple[av.container.OutputContainer, av.Packet]]:
    """Packets of frames first..first+frames-1, with the output file they belong to, not yet written."""
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder prints its configuration otherwise
    mux_options = dict(kind.mux_options)
    if kind.shift:
        mux_options |= {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with (
        unchanged_priority(),
        av.open(str(path), "w", format=kind.container, options=mux_options) as container,
    ):
        stream = container.add_stream(kind.codec, rate=RATE, options=dict(kind.options))
        stream.width, stream.height = size
        stream.pix_fmt = kind.pix_fmt
        stream.time_base = kind.time_base
        stream.codec_context.time_base = kind.time_base
        stream.codec_context.thread_count = 1
        if kind.aspect is not None:
            stream.codec_context.sample_aspect_ratio = kind.aspect
        for number in range(first, first + frames):
            image = picture(number, size if kind.rotation % 180 == 0 else size[::-1])
            image = np.ascontiguousarray(np.rot90(image, kind.rotation // 90))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format=kind.pix_fmt, threads=1)
            frame.pts = kind.times(number - first)
            frame.time_base = kind.time_base
            for packet in stream.encode(frame):
                yield container, packet
        for packet in stream.encode(None):
            yield container, packet


@contextmanager
def unchanged_priority() -> Iterator[None]:
    """SVT-AV1 gives the thread of root that opens it, and all processes started by it later, the highest
    real-time priority: a page that a browser draws would then hold up everything else."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def make_stream(
    kind: str, path: Path, frames: int = FRAMES, size: tuple[int, int] = SIZE, first: int = 0
) -> Path:
    """Writes a video of STREAM_KINDS[kind], and returns its path, which has the kind's suffix.

    Frame numbers count from `first`. size is (width, height), even numbers.
    """
    made = STREAM_KINDS[kind]
    path = path.with_suffix(made.suffix)
    for container, packet in encode(made, frames, size, path, first):
        if made.shift:
            ticks = int(made.shift / RATE / packet.time_base)
            packet.pts -= ticks
            packet.dts -= ticks
        container.mux(packet)
    if made.rotation:
        rotate_mp4(path, made.rotation)
    return path


def rotate_mp4(path: Path, degrees: int) -> None:
    """Writes a display matrix, by which players turn the picture `degrees` clockwise, into an MP4's tkhd."""
    turn = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    content = bytearray(path.read_bytes())
    box = content.index(b"tkhd")
    matrix = box + 4 + (52 if content[box + 4] == 1 else 40)
    values = (turn[0] << 16, turn[1] << 16, 0, turn[2] << 16, turn[3] << 16, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    path.write_bytes(content)


def decode_all(path: Path, rotation: int = 0) -> tuple[NDArray[np.uint8], list[int | None]]:
    """Every frame of a plain FFmpeg decode from the start: uint8 [N, H, W, 3] upright RGB, and their pts."""
    images, times = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            image = frame.to_ndarray(format="rgb24", threads=1)
            images.append(np.rot90(image, -rotation // 90) if rotation else image)
            times.append(frame.pts)
    return np.stack(images), times
