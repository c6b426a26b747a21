"""Encoders of proxies: x264 and x265 on the CPU, NVENC on a GPU that has it.

The structure of a group of 16 pictures, in display order:

    K b b b P b b b P b b b P b b P | K b b b P ...

K is a key frame that needs nothing before it (closed groups, no key frames at scene cuts). No other frame
refers to a b (there is no b-pyramid), so the loader leaves out those that a clip does not show: a clip that
starts inside a group costs the K and the Ps before it, not all frames before it. Groups of stacked pictures
are shorter, and have as many b between two P as at most half of the group leaves room for.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np

from surgrec.loaders.demux import url_of
from surgrec.transcoding.options import ProxyOptions

CPU_ENCODERS: Final = {"h264": "libx264", "hevc": "libx265"}
NVENC_ENCODERS: Final = {"h264": "h264_nvenc", "hevc": "hevc_nvenc"}
B_FRAMES: Final = 3
PROBE_SIZE: Final = 256
PROBE_FRAMES: Final = 20
LIMITED_RANGE: Final = 1


class EncoderError(RuntimeError):
    """The encoder could not be opened; the message says why."""


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What the encoder must be told of the video. Colours are FFmpeg's numbers (libavutil/pixfmt.h).

    height: of a coded picture. rate: frames per second.
    """

    height: int
    width: int
    time_base: Fraction
    rate: Fraction
    matrix: int
    primaries: int
    transfer: int


def encoder_options(name: str, options: ProxyOptions, b_frames: int = B_FRAMES) -> dict[str, str]:
    """FFmpeg's options of encoder `name` for these proxies."""
    gop = options.gop_pictures
    # Of a group of 4 stacked pictures, K b P P takes fewer bytes than K b b P, and clips need as many of it.
    b_frames = min(b_frames, gop - 1 if options.stack == 1 else (gop - 1) // 2)
    fixed = {"g": str(gop), "bf": str(b_frames)}
    if name in NVENC_ENCODERS.values():
        return fixed | {
            "preset": options.preset or "p5",
            "tune": "hq",
            "rc": "vbr",
            "cq": f"{options.quality:g}",
            "b": "0",  # without it, FFmpeg's default rate of 2 Mbit/s would bound the quality
            "b_ref_mode": "disabled",
            "no-scenecut": "1",
            "strict_gop": "1",
            "forced-idr": "1",
        }
    shape = f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0:bframes={b_frames}:b-adapt=0"
    fixed |= {"crf": f"{options.quality:g}", "preset": options.preset or "medium"}
    if name == "libx264":
        return fixed | {"x264-params": f"{shape}:b-pyramid=none"}
    # One thread, so that the same source gives the same bytes on every machine.
    return fixed | {"x265-params": f"{shape}:b-pyramid=0:pools=none:frame-threads=1:log-level=none"}


def probe_encoder(name: str, options: ProxyOptions) -> str:
    """Why encoder `name` cannot be used here with these options, empty where it encodes some frames."""
    facts = StreamFacts(PROBE_SIZE, PROBE_SIZE, Fraction(1, 25), Fraction(25), 1, 1, 1)
    packets: list[Any] = []
    try:
        b_frames = _b_frames(name, options, facts)
        context: Any = av.CodecContext.create(name, "w")
        _set_up(context, name, options, facts, b_frames)
        for number in range(PROBE_FRAMES):
            packets += context.encode(_grey(facts, number))
        packets += context.encode(None)
    except EncoderError as error:
        return str(error)
    except (ValueError, OSError, av.error.FFmpegError) as error:
        return f"{name} does not open: {getattr(error, 'strerror', None) or error}"
    return "" if len(packets) == PROBE_FRAMES else f"{name} loses frames"


class ProxyWriter:
    """Writes the pictures of one proxy to an MP4 file, whose index stands at its start.

    Raises EncoderError where the encoder does not open, OSError or av.error.FFmpegError where it cannot be
    written.
    """

    def __init__(self, path: Path, name: str, options: ProxyOptions, facts: StreamFacts, tag: str) -> None:
        b_frames = _b_frames(name, options, facts)
        # No edit list: composition offsets may be negative instead, and every reader sees pts 0 first.
        flags = {"movflags": "+faststart+negative_cts_offsets", "brand": "mp42"}
        # The muxer's ticks are the time base's, so that no time is rounded.
        flags["video_track_timescale"] = str(facts.time_base.denominator)
        self._stack = options.stack
        self._container = av.open(url_of(path), "w", format="mp4", options=flags)
        try:
            self._container.metadata["comment"] = tag
            self._stream: Any = self._container.add_stream(name, rate=facts.rate)
            self._stream.time_base = facts.time_base
            _set_up(self._stream.codec_context, name, options, facts, b_frames)
        except BaseException:
            self.abandon()
            raise

    def write(self, frame: Any) -> None:
        """Encode one av.VideoFrame that has its time.

        The time of a stacked picture is that of its first frame divided by the stack: an encoder that saw
        pictures last `stack` times as long would give each of their frames more bits. The file has the
        right times.
        """
        self._mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left, and the file's index."""
        self._mux(self._stream.encode(None))
        self._container.close()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            if self._stack > 1:
                packet.pts *= self._stack
                packet.dts *= self._stack
                packet.duration *= self._stack
            self._container.mux(packet)

    def abandon(self) -> None:
        """Close the file as it is; it is going to be removed."""
        try:
            self._container.close()
        except (OSError, ValueError, av.error.FFmpegError):
            return


def _b_frames(name: str, options: ProxyOptions, facts: StreamFacts) -> int:
    """How many B-frames encoder `name` takes. Some GPUs encode HEVC without any."""
    if name not in NVENC_ENCODERS.values():
        return B_FRAMES
    for count in (B_FRAMES, 0):
        context = av.CodecContext.create(name, "w")
        _set_up(context, name, options, facts, count)
        try:
            context.open()
        except (OSError, ValueError, av.error.FFmpegError) as error:
            problem = f"{name} does not open: {getattr(error, 'strerror', None) or error}"
            continue
        return count
    raise EncoderError(problem)


def _set_up(context: Any, name: str, options: ProxyOptions, facts: StreamFacts, b_frames: int) -> None:
    context.width, context.height = facts.width, facts.height
    context.pix_fmt = "yuv420p"
    context.time_base = facts.time_base
    context.framerate = facts.rate
    context.sample_aspect_ratio = Fraction(1)
    context.color_range = LIMITED_RANGE
    context.colorspace = facts.matrix
    context.color_primaries = facts.primaries
    context.color_trc = facts.transfer
    context.thread_count = 1
    if options.codec == "hevc":
        context.codec_tag = "hvc1"  # parameter sets in the header only, which players expect in MP4
    context.options = encoder_options(name, options, b_frames)


def _grey(facts: StreamFacts, number: int) -> Any:
    image = np.full((facts.height * 3 // 2, facts.width), 128, np.uint8)
    frame = av.VideoFrame.from_ndarray(image, format="yuv420p")
    frame.pts, frame.time_base = number, facts.time_base
    return frame
