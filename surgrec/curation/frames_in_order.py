"""All frames of a video in the order of display, small: for what must look at every one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from surgrec.loaders.demux import open_video
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.engines.clip_reader import check_version, os_reason
from surgrec.loaders.engines.decoders import Decoders
from surgrec.loaders.packet_index import BROKEN, SEQUENTIAL, PacketIndex, VideoInfo

BLOCK_BYTES: Final = 1 << 22
"""Packets that lie together are read at once, up to this many bytes."""


@dataclass(frozen=True, slots=True)
class SmallFrame:
    """position: on display. pixels: uint8 [h, w, 3], RGB as stored, not turned upright."""

    position: int
    pixels: NDArray[np.uint8]


def frames_in_order(index: PacketIndex, video: int, height: int, width: int) -> Iterator[SmallFrame]:
    """The frames of a video, scaled to height x width whatever its shape; damaged ones are left out.

    Raises:
        BadClip: the file is another version than the index was made for, cannot be read, or FFmpeg has no
            decoder for it.
    """
    info = index.video(video)
    place = {int(packet): at * info.stack for at, packet in enumerate(index.frames(video)[:: info.stack])}
    try:
        frames: Iterator[tuple[int, VideoFrame]] = (
            enumerate(_from_the_start(info))
            if info.status == SEQUENTIAL
            else _by_packets(index, video, info, place)
        )
        for position, frame in frames:
            small = frame.reformat(width, height * info.stack, format="rgb24", interpolation="BILINEAR")
            pixels = small.to_ndarray().reshape(info.stack, height, width, 3)
            # The last picture of stacked frames may hold fewer of them.
            for at in range(min(info.stack, info.frame_count - position)):
                yield SmallFrame(position + at, pixels[at])
    except OSError as error:
        if isinstance(error, av.FFmpegError):
            raise BadClip(f"FFmpeg cannot read it: {error}") from error
        raise BadClip(os_reason(error)) from error


def _by_packets(
    index: PacketIndex, video: int, info: VideoInfo, place: dict[int, int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Display position and frame; one decoder for all packets, each with its number for a time stamp."""
    decoder = Decoders().make(info)
    for packet in chain(_packets(index, video, info), (None,)):
        frames: list[VideoFrame] = []
        # FFmpeg goes on after damaged data, and so do we.
        with suppress(av.error.InvalidDataError):
            frames = decoder.decode(packet)
        for frame in frames:
            position = place.get(cast(int, frame.pts))
            if position is not None and not frame.is_corrupt:
                yield position, frame


def _packets(index: PacketIndex, video: int, info: VideoInfo) -> Iterator[Packet]:
    """All packets but broken ones, their numbers as time stamps."""
    part = index.packets(video)
    offset, size = index.offset[part].astype(np.int64), index.size[part].astype(np.int64)
    numbers = np.flatnonzero((index.flags[part] & BROKEN == 0) & (size > 0))
    descriptor = os.open(info.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        check_version(descriptor, info)
        block, begin, end = b"", 0, 0
        for number in numbers.tolist():
            at, length = int(offset[number]), int(size[number])
            if not begin <= at <= at + length <= end:
                block = os.pread(descriptor, max(length, BLOCK_BYTES), at)
                begin, end = at, at + len(block)
                if end < at + length:
                    return  # the file was cut meanwhile
            packet = Packet(length)  # made from bytes, it would lack the padding that decoders read into
            packet.update(block[at - begin : at - begin + length])
            packet.pts = number
            yield packet
    finally:
        os.close(descriptor)


def _from_the_start(info: VideoInfo) -> Iterator[VideoFrame]:
    """The frames that FFmpeg gives for the file, in their order."""
    with open_video(Path(info.path)) as container:
        stream: Any = container.streams[info.stream]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            with suppress(av.error.InvalidDataError):
                yield from packet.decode()
