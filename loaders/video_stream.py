"""Facts of a video file that its container and its first frame tell: codec, picture, colour, times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from surgrec.loaders.demux import open_video, packets_of
from surgrec.loaders.proxy_tag import parse_tag

FIRST_FRAME_PACKETS: Final = 512
"""The first frame must come out of this many packets."""

# FFmpeg's numbers (libavutil/pixfmt.h, libavcodec/defs.h) and names; 2 is "unspecified".
COLOR_RANGES: Final = {0: "", 1: "tv", 2: "pc"}
COLOR_SPACES: Final = {
    0: "gbr",
    1: "bt709",
    2: "",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "ycgco",
    9: "bt2020nc",
    10: "bt2020c",
    14: "ictcp",
}
COLOR_PRIMARIES: Final = {
    1: "bt709",
    2: "",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    9: "bt2020",
    11: "smpte431",
    12: "smpte432",
}
COLOR_TRANSFERS: Final = {
    1: "bt709",
    2: "",
    4: "gamma22",
    5: "gamma28",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084",
    18: "arib-std-b67",
}
FIELD_ORDERS: Final = {0: "", 1: "progressive", 2: "tt", 3: "bb", 4: "tb", 5: "bt"}


class UnusableVideoError(ValueError):
    """The file has no video that can be used; the message says why, without the path."""


@dataclass(frozen=True, slots=True)
class VideoStream:
    """The stream that is indexed, and its first frame. `values` are columns of the index.

    `declared_frames` is what the container says, 0 for nothing; `declared_rate` frames per second, 0 for
    nothing or nonsense; `declared_seconds` how long the stream lasts, or all of the file where only that is
    said, 0 for nothing. `tag` holds the values of a proxy's own tag, None where it is no proxy.
    """

    index: int
    codec: str
    intra_only: bool
    container: str
    extradata: bytes
    time_base: tuple[int, int]
    declared_frames: int
    declared_rate: float
    declared_seconds: float
    tag: dict[str, Any] | None
    values: dict[str, Any]


def describe(path: Path) -> VideoStream:
    """Open `path`, choose its video stream and decode one frame of it.

    The largest stream that is no attached picture is taken; of equal ones the container's default, then
    the first. Raises UnusableVideoError, OSError or av.error.FFmpegError.
    """
    with open_video(path) as container:
        if container.format.name == "tty":
            raise UnusableVideoError("this is a text file")
        stream = _choose(container)
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        frame = _first_frame(container, stream)
        context = stream.codec_context
        # The decoder may be named libdav1d or libvpx; the format is what the index says.
        codec = context.codec.canonical_name
        aspect = stream.sample_aspect_ratio
        if not aspect or aspect <= 0:
            aspect = None
        order = FIELD_ORDERS.get(int(context.field_order), "")
        rate = stream.average_rate
        time_base = Fraction(stream.time_base or 1 / (rate or Fraction(25)))
        return VideoStream(
            index=stream.index,
            codec=codec,
            intra_only=bool(context.codec.intra_only),
            container=container.format.name,
            extradata=bytes(context.extradata or b""),
            time_base=(time_base.numerator, time_base.denominator),
            declared_frames=stream.frames,
            declared_rate=float(rate) if rate and 0 < rate <= 1000 else 0.0,
            declared_seconds=_declared_seconds(container, stream),
            tag=_tag(container),
            values={
                "width": frame.width,
                "height": frame.height,
                "coded_width": context.coded_width or frame.width,
                "coded_height": context.coded_height or frame.height,
                "sar_num": aspect.numerator if aspect else 1,
                "sar_den": aspect.denominator if aspect else 1,
                "rotation": _rotation(frame),
                "pix_fmt": frame.format.name,
                "bit_depth": max(component.bits for component in frame.format.components),
                "color_range": COLOR_RANGES.get(int(frame.color_range), ""),
                "color_space": COLOR_SPACES.get(int(frame.colorspace), str(int(frame.colorspace))),
                "color_primaries": COLOR_PRIMARIES.get(
                    int(frame.color_primaries), str(int(frame.color_primaries))
                ),
                "color_transfer": COLOR_TRANSFERS.get(int(frame.color_trc), str(int(frame.color_trc))),
                "field_order": order or ("interlaced" if frame.interlaced_frame else ""),
                "reorder_depth": int(context.reorder_depth),
            },
        )


def _tag(container: Any) -> dict[str, Any] | None:
    """Of a proxy, or of a copy of one in another container."""
    tags = (parse_tag(text) for text in container.metadata.values())
    return next((tag for tag in tags if tag is not None), None)


def _declared_seconds(container: Any, stream: Any) -> float:
    """From the stream, Matroska's statistics of it, or the container, whichever says something."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    hours, minutes, seconds = (*stream.metadata.get("DURATION", "").split(":"), "", "", "")[:3]
    try:
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return max(0.0, (container.duration or 0) / 1e6)


def _choose(container: Any) -> Any:
    pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & pictures]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        what = "only an attached picture" if container.streams.video else "no video stream"
        raise UnusableVideoError(f"{what} in the file (it holds {kinds})")
    # A stream of a codec that FFmpeg does not know has no context, and no size either.
    streams = [s for s in streams if s.codec_context is not None and s.codec_context.codec is not None]
    if not streams:
        raise UnusableVideoError("FFmpeg has no decoder for the video stream")
    default = av.stream.Disposition.default
    return max(streams, key=lambda s: (s.width * s.height, bool(s.disposition & default), -s.index))


def _first_frame(container: Any, stream: Any) -> Any:
    last = ""
    for number, packet in enumerate(packets_of(container, stream)):
        try:
            for frame in packet.decode():
                return frame
        except av.error.FFmpegError as problem:
            last = f": {problem.strerror or problem}"
        if number >= FIRST_FRAME_PACKETS:
            break
    raise UnusableVideoError(f"FFmpeg decodes no frame from the first packets{last}")


def _rotation(frame: Any) -> int:
    """Degrees clockwise that make the picture upright, from the display matrix (libavutil/display.h)."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 0
    a, b, _, c, d = (float(v) for v in np.frombuffer(bytes(data), np.int32)[:5])
    if a * d - b * c == 0:
        raise UnusableVideoError("its display matrix says nothing of how the picture is shown; remux it")
    if a * d - b * c < 0:
        raise UnusableVideoError("the file asks players to mirror the picture; apply that by transcoding it")
    degrees = math.degrees(math.atan2(b, a)) % 360
    quarter = round(degrees / 90)
    if abs(degrees - 90 * quarter) > 1:
        raise UnusableVideoError(
            f"the file asks players to turn the picture by {degrees:.1f} degrees; transcode it"
        )
    return 90 * quarter % 360
