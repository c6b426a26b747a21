"""Decodes all of a video once, when it is indexed, to learn which packets FFmpeg reports damaged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import av
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.engines.decoders import Decoders
from surgrec.loaders.index_writer import Packets, Row
from surgrec.loaders.packet_index import (
    BROKEN,
    FAULTY,
    HIDDEN,
    KEY,
    NO_RANK,
    OK,
    SEQUENTIAL,
    VideoInfo,
)
from surgrec.loaders.packet_scan import Scanned, explained, info_of, unchanged_since

LEAD: Final = frozenset(("hevc", "mpeg1video", "mpeg2video", "mpeg4"))
"""Codecs whose HIDDEN packets are leading pictures at the start: their references are missing by design."""


def verified(scanned: Scanned) -> Scanned:
    """The scan, with FAULTY on each packet that FFmpeg reports damaged, or for which it gives no frame.

    A video without random access comes back as it is: its clips are decoded by FFmpeg from the start, and
    refused where it reports an error. What cannot be read any more, or has changed since it was scanned,
    comes back as a row of status ERROR with the reason.
    """
    if scanned.row.values["status"] not in (OK, SEQUENTIAL):
        return scanned
    return explained(
        Path(scanned.row.path),
        dict(scanned.row.values),
        partial(_verified, scanned.packets, scanned.row.extradata),
    )


def _verified(packets: Packets, extradata: bytes, path: Path, values: dict[str, Any]) -> Scanned:
    row = Row(values | {"verified": 1}, extradata)
    if values["status"] == SEQUENTIAL:
        return Scanned(row, packets)
    faulty = _faulty_packets(info_of(row), packets)
    unchanged_since(path, values)
    if faulty.any():
        remark = f"FFmpeg reports {faulty.sum()} of {len(faulty)} packets damaged"
        row.values["note"] = "; ".join(filter(None, (values["note"], remark)))
    flags = (packets.flags | faulty * np.uint8(FAULTY)).astype(np.uint8)
    return Scanned(row, replace(packets, flags=flags))


def _faulty_packets(info: VideoInfo, packets: Packets) -> NDArray[np.bool_]:
    """bool [P]. Each stretch from a key frame on has a decoder that knows nothing of those before, as a
    clip's has."""
    flags, count = packets.flags, len(packets.flags)
    faulty = np.zeros(count, bool)
    starts = np.unique(np.append(np.flatnonzero(flags & KEY), 0))
    decoders = Decoders()
    descriptor = os.open(info.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for first, stop in zip(starts, np.append(starts[1:], count), strict=True):
            stretch = np.arange(first, stop)[flags[first:stop] & BROKEN == 0]
            try:
                decoder = decoders.make(info)
            except BadClip:  # the file's parameter sets are damaged
                faulty[stretch] = True
                continue
            faulty[list(set(_complaints(decoder, _read(descriptor, packets, stretch))))] = True
    finally:
        os.close(descriptor)
    if info.codec in LEAD:
        faulty[flags & HIDDEN > 0] = False
    return faulty


def _read(descriptor: int, packets: Packets, numbers: NDArray[np.int64]) -> Iterator[tuple[Packet, bool]]:
    """The packets, their numbers as time stamps, and whether a frame is due for each."""
    for number in numbers.tolist():
        data = os.pread(descriptor, int(packets.size[number]), int(packets.offset[number]))
        packet = Packet(len(data))  # made from bytes, it would lack the padding that decoders read into
        if data:
            packet.update(data)
        packet.pts = number
        yield packet, bool(packets.rank[number] != NO_RANK)


def _complaints(decoder: VideoCodecContext, packets: Iterable[tuple[Packet, bool]]) -> Iterator[int]:
    """Numbers of the packets at which FFmpeg raises an error, whose frames it marks as damaged, and whose
    frames it does not give."""
    due: set[int] = set()
    for packet, gives_frame in packets:
        number = cast(int, packet.pts)
        if gives_frame:
            due.add(number)
        try:
            frames = decoder.decode(packet) if packet.size else []
        except av.FFmpegError:
            yield number
            continue
        yield from _damaged(frames, due)
    with suppress(av.FFmpegError):  # the frames that are still due say whose error it is
        yield from _damaged(decoder.decode(None), due)
    yield from due


def _damaged(frames: Iterable[VideoFrame], due: set[int]) -> Iterator[int]:
    for frame in frames:
        number = cast(int, frame.pts)
        due.discard(number)
        if frame.is_corrupt:
            yield number
