"""One pass over the packets of one video stream, through FFmpeg's demuxers, without decoding.

Besides place, size, times and flags it keeps the first and last bytes of each packet, so that the places
can be checked against the file: demuxers of some containers glue packets together from pieces.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from numba import njit
from numpy.typing import NDArray
from surgrec.loaders.checksum import checksum_of

NO_PTS: Final = -(2**63)
CONTAINER_KEY: Final = 1
CONTAINER_DISCARD: Final = 2
CONTAINER_CORRUPT: Final = 4

EDGE: Final = 16
"""Bytes kept of each end of a packet."""
REACH: Final = 64
"""The content of a packet starts at most this many bytes behind the position that the demuxer gives."""
SAMPLE_EVERY: Final = 1024
MAX_ERRORS: Final = 16
"""Demuxing stops after this many errors in a row."""

# MP4 and Matroska carry every time stamp themselves: no parser and no probing are needed for them.
FAST_OPTIONS: Final = {"fflags": "+noparse+nofillin", "analyzeduration": "1"}
OPEN_OPTIONS: Final = {"protocol_whitelist": "file"}
# PyAV 19 took the argument away: from there on text that is not UTF-8 never fails.
TEXT_OPTIONS: Final[dict[str, Any]] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)


@dataclass(frozen=True, slots=True)
class Demuxed:
    """Packets of one stream in file order.

    pos (-1 unknown), size, pts, dts (NO_PTS unknown): int64 [P]; flags: uint8 [P], CONTAINER_*; start: int64
    [P], where the bytes of the packet lie, -1 where they are not in one piece; checksum: uint32 [P] of the
    bytes. `side_data` names the kinds that packets carry. `error` is why demuxing
    failed on the way, or empty.
    """

    pos: NDArray[np.int64]
    size: NDArray[np.int64]
    pts: NDArray[np.int64]
    dts: NDArray[np.int64]
    flags: NDArray[np.uint8]
    start: NDArray[np.int64]
    checksum: NDArray[np.uint32]
    side_data: frozenset[str]
    error: str


def url_of(path: Path) -> str:
    """The path as FFmpeg takes it: never a protocol or an image pattern, whatever the name looks like."""
    return f"file:{path}"


def open_video(path: Path, **options: str) -> Any:
    """The file in FFmpeg's hands. Text in it that is not UTF-8, as some recorders write, is no error."""
    return av.open(url_of(path), options=OPEN_OPTIONS | options, **TEXT_OPTIONS)


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of one stream. Raises av.error.FFmpegError; it can be called again to go on behind that.

    Streams that come up in the middle of a file (late sound in FLV and MPEG) make PyAV's own iterator fail at
    each of their packets; here those are passed over.
    """
    while True:
        try:
            yield from container.demux(stream)
            return
        except IndexError:
            continue


def has_own_times(path: Path) -> bool:
    """Whether the first bytes are those of MP4/QuickTime or Matroska/WebM."""
    with path.open("rb") as file:
        head = file.read(12)
    return (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") or head[:4] == b"\x1a\x45\xdf\xa3"
    )


def demux(path: Path, stream_index: int, from_container: bool = False) -> Demuxed:
    """All packets of stream `stream_index` of the file at `path`; empty packets are left out.

    from_container: take time stamps and flags of MP4 and Matroska as they stand there, without a parser.
    That is faster, for codecs whose frame types are read elsewhere.

    Raises av.error.FFmpegError or OSError where the file cannot be opened.
    """
    options = FAST_OPTIONS if from_container and has_own_times(path) else {}
    collector = _Collector()
    error = ""
    with open_video(path, **options) as container, path.open("rb") as file:
        stream = container.streams[stream_index]
        for other in container.streams:
            if other.index != stream_index:
                other.discard = av.stream.Discard.all
        failures = 0
        while True:
            before = len(collector.pos)
            try:
                for packet in packets_of(container, stream):
                    collector.add(packet, file.fileno())
                break
            except (av.error.FFmpegError, OSError) as problem:
                failures = 1 if len(collector.pos) > before else failures + 1
                error = f"demuxing failed behind packet {len(collector.pos)}: {problem.strerror or problem}"
                if failures >= MAX_ERRORS:
                    break
    return collector.finish(path, error)


class _Collector:
    """Columns of packets as they arrive: machine values, not objects, so that long files stay small."""

    def __init__(self) -> None:
        self.pos, self.size = array("q"), array("q")
        self.pts, self.dts = array("q"), array("q")
        self.flags = bytearray()
        self.edges = bytearray()
        self.checksum = array("I")
        self.hints: set[int] = set()
        self.in_one_piece = True
        self.side_data: set[str] = set()

    def add(self, packet: Any, descriptor: int) -> None:
        size = packet.size
        if size == 0:
            return
        pos, pts, dts = packet.pos, packet.pts, packet.dts
        number = len(self.pos)
        self.pos.append(-1 if pos is None else pos)
        self.size.append(size)
        self.pts.append(NO_PTS if pts is None else pts)
        self.dts.append(NO_PTS if dts is None else dts)
        self.flags.append(packet.is_keyframe | packet.is_discard << 1 | packet.is_corrupt << 2)
        for side_data in packet.iter_sidedata():
            self.side_data.add(side_data.data_type)
        content = memoryview(packet)
        self.checksum.append(checksum_of(content))
        if not self.in_one_piece:
            return
        if size >= EDGE:
            self.edges += content[:EDGE]
            self.edges += content[-EDGE:]
        else:
            padded = bytes(content).ljust(EDGE, b"\0")
            self.edges += padded + padded
        if number < 8 or number % SAMPLE_EVERY == 0:
            self._check(content, pos, descriptor)

    def _check(self, content: memoryview, pos: int | None, descriptor: int) -> None:
        """Compare a whole packet with the file, and learn where contents start behind their position."""
        found = -1
        if pos is not None and pos >= 0:
            found = os.pread(descriptor, len(content) + REACH, pos).find(content)
        if found < 0:
            self.in_one_piece = False
            self.edges = bytearray()
        else:
            self.hints.add(found)

    def finish(self, path: Path, error: str) -> Demuxed:
        columns = {name: np.array(getattr(self, name), np.int64) for name in ("pos", "size", "pts", "dts")}
        count = len(self.pos)
        start = np.full(count, -1, np.int64)
        if self.in_one_piece and count:
            edges = np.frombuffer(bytes(self.edges), np.uint8).reshape(count, 2, EDGE)
            hints = np.array(sorted(self.hints), np.int64)
            start = locate(map_file(path), columns["pos"], columns["size"], edges, hints)
        flags = np.frombuffer(bytes(self.flags), np.uint8)
        return Demuxed(
            **columns,
            flags=flags,
            start=start,
            checksum=np.array(self.checksum, np.uint32),
            side_data=frozenset(self.side_data),
            error=error,
        )


def map_file(path: Path) -> NDArray[np.uint8]:
    """uint8 [bytes of the file], mapped, read-only. A file that shrinks later kills the process that reads
    behind its new end, which is why indexing runs in worker processes."""
    return np.asarray(np.memmap(path, np.uint8, "r"))


@njit(cache=True, nogil=True)
def _matches(data: NDArray[np.uint8], at: int, size: int, edges: NDArray[np.uint8]) -> bool:
    if at < 0 or at + size > data.shape[0]:
        return False
    count = min(size, EDGE)
    for i in range(count):
        if data[at + i] != edges[0, i]:
            return False
    if size >= EDGE:
        for i in range(EDGE):
            if data[at + size - EDGE + i] != edges[1, i]:
                return False
    return True


@njit(cache=True, nogil=True)
def locate(
    data: NDArray[np.uint8],
    pos: NDArray[np.int64],
    size: NDArray[np.int64],
    edges: NDArray[np.uint8],
    hints: NDArray[np.int64],
) -> NDArray[np.int64]:
    """int64 [P]: where each packet's bytes lie in the file, -1 where they are not found in one piece.

    data: uint8, the file. edges: uint8 [P, 2, EDGE], first and last bytes. hints: distances between position
    and content to try first; then every distance below REACH.
    """
    count = pos.shape[0]
    start = np.full(count, -1, np.int64)
    for packet in range(count):
        if pos[packet] < 0:
            continue
        for hint in hints:
            if _matches(data, pos[packet] + hint, size[packet], edges[packet]):
                start[packet] = pos[packet] + hint
                break
        if start[packet] < 0:
            for distance in range(REACH):
                if _matches(data, pos[packet] + distance, size[packet], edges[packet]):
                    start[packet] = pos[packet] + distance
                    break
    return start
