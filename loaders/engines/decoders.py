"""FFmpeg's decoders, fed with packets from the index instead of a demuxer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, cast

import av
from av.video.codeccontext import VideoCodecContext
from surgrec.loaders.demux import open_video
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.packet_index import VideoInfo

DECODERS: Final = {
    "h264": "h264",
    "hevc": "hevc",
    "vp8": "vp8",
    "vp9": "vp9",
    "av1": "libdav1d",
    "mpeg1video": "mpeg1video",
    "mpeg2video": "mpeg2video",
    "mjpeg": "mjpeg",
}
"""Codecs whose decoder needs the index only. For others it is set up by opening the file once."""

# FFmpeg's numbers for what the container says of colour (libavutil/pixfmt.h).
COLOR_SPACES: Final = {
    "gbr": 0,
    "bt709": 1,
    "fcc": 4,
    "bt470bg": 5,
    "smpte170m": 6,
    "smpte240m": 7,
    "ycgco": 8,
    "bt2020nc": 9,
    "bt2020c": 10,
}
COLOR_RANGES: Final = {"tv": 1, "pc": 2}


@dataclass(frozen=True, slots=True)
class _SetUp:
    """What FFmpeg's demuxer tells the decoder of a stream; 0 or None where it does not know."""

    decoder: str
    codec_tag: str
    width: int
    height: int
    pix_fmt: str | None
    bits_per_coded_sample: int
    extradata: bytes | None


class Decoders:
    """Makes the decoders of one thread: a new one for each clip.

    A flush leaves parameter sets, marks of recovery and, in some codecs, pictures behind, so that what FFmpeg
    gives for damaged data would depend on the clips before. Where a decoder is set up by opening the file,
    how that is done is kept for the videos used last.
    """

    def __init__(self, capacity: int = 64) -> None:
        self._set_up = lru_cache(capacity)(_set_up_by_file)

    def make(self, info: VideoInfo) -> VideoCodecContext:
        """A new decoder that works in the calling thread alone. Raises BadClip where FFmpeg has none."""
        try:
            if info.codec not in DECODERS:
                return _open(
                    _from_set_up(self._set_up(info.path, info.stream, info.mtime_ns, info.file_size))
                )
            decoder = cast(VideoCodecContext, av.CodecContext.create(cast(Any, DECODERS[info.codec]), "r"))
            if info.extradata:
                decoder.extradata = info.extradata
            decoder.colorspace = COLOR_SPACES.get(info.color_space, 2)
            decoder.color_range = COLOR_RANGES.get(info.color_range, 0)
            return _open(decoder)
        except av.FFmpegError as error:
            raise BadClip(f"FFmpeg cannot set up its {info.codec} decoder: {error}") from error


def _set_up_by_file(path: str, stream: int, *version: int) -> _SetUp:
    """`version` keeps those of a file's earlier contents apart."""
    with open_video(Path(path)) as container:
        found = container.streams[stream].codec_context
        return _SetUp(
            found.codec.name,
            found.codec_tag,
            found.width,
            found.height,
            found.pix_fmt,
            found.bits_per_coded_sample,
            found.extradata,
        )


def _from_set_up(set_up: _SetUp) -> VideoCodecContext:
    decoder = cast(Any, av.CodecContext.create(cast(Any, set_up.decoder), "r"))
    for field in fields(set_up)[1:]:
        value = getattr(set_up, field.name)
        if value:
            setattr(decoder, field.name, value)
    return cast(VideoCodecContext, decoder)


def _open(decoder: VideoCodecContext) -> VideoCodecContext:
    decoder.thread_count = 1
    if decoder.name == "h264":
        # Full reordering depth where the stream does not state its own: FFmpeg would guess, and drop frames.
        decoder.options = {"strict": "1"}
    elif decoder.name == "mjpeg":
        # It would leave the rest of a damaged picture as it finds it in memory, and say nothing.
        decoder.options = {"err_detect": "explode"}
    decoder.open(strict=False)
    return decoder
