"""FFmpeg's decoders, fed with packets from the index instead of a demuxer."""

from __future__ import annotations

from collections import OrderedDict
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


class DecoderCache:
    """The decoders of one thread.

    A clip gets a new one: a flush leaves parameter sets and marks of recovery behind, so that what FFmpeg
    says of damaged data would depend on the clips before. Where the decoder is set up by opening the file,
    those used last are kept.
    """

    def __init__(self, capacity: int = 6) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[str, VideoCodecContext] = OrderedDict()

    def take(self, info: VideoInfo) -> VideoCodecContext:
        """A decoder for the video, with nothing in it. Raises BadClip where FFmpeg has none."""
        return self._kept.pop(info.path, None) or open_decoder(info)

    def give_back(self, info: VideoInfo, decoder: VideoCodecContext) -> None:
        """Keeps a decoder for another clip of its video, if that is worth it; not one that met an error."""
        if info.codec in DECODERS:
            return
        decoder.flush_buffers()
        self._kept[info.path] = decoder
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)


def open_decoder(info: VideoInfo) -> VideoCodecContext:
    """A new decoder that works in the calling thread alone. Raises BadClip where FFmpeg has none."""
    try:
        if info.codec not in DECODERS:
            return _decoder_of_file(info)
        decoder = cast(VideoCodecContext, av.CodecContext.create(cast(Any, DECODERS[info.codec]), "r"))
        if info.extradata:
            decoder.extradata = info.extradata
        decoder.colorspace = COLOR_SPACES.get(info.color_space, 2)
        decoder.color_range = COLOR_RANGES.get(info.color_range, 0)
        _open(decoder)
    except av.FFmpegError as error:
        raise BadClip(f"FFmpeg cannot set up its {info.codec} decoder: {error}") from error
    return decoder


def _decoder_of_file(info: VideoInfo) -> VideoCodecContext:
    """The decoder as FFmpeg's demuxer sets it up: codec tag, picture size and the like matter here."""
    with open_video(Path(info.path)) as container:
        decoder = cast(VideoCodecContext, container.streams[info.stream].codec_context)
        _open(decoder)
    return decoder


def _open(decoder: VideoCodecContext) -> None:
    decoder.thread_count = 1
    if decoder.name == "h264":
        # Full reordering depth where the stream does not state its own: FFmpeg would guess, and drop frames.
        decoder.options = {"strict": "1"}
    elif decoder.name == "mjpeg":
        # It would leave the rest of a damaged picture as it finds it in memory, and say nothing.
        decoder.options = {"err_detect": "explode"}
    decoder.open(strict=False)
