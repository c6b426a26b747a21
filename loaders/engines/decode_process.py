"""A process that decodes clips with FFmpeg, and what it and its parent say to each other.

Threads of one process would wait for each other: FFmpeg's bindings hold the interpreter's lock between the
packets of a clip. It reads requests from the socket and writes pictures to the arena; it ends when its parent
does. It imports no torch, so that it starts in a second and costs little memory.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from numpy.typing import NDArray
from surgrec.kernels.colour import Colour
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.arena import Arena
from surgrec.loaders.engines.base import ClipFailure, DecodedClip
from surgrec.loaders.engines.clip_reader import ClipReader
from surgrec.loaders.engines.cpu import CpuWorker
from surgrec.loaders.engines.pixels import Layout, PlaneArrays, PlaneWriter
from surgrec.loaders.file_cache import FileCache
from surgrec.loaders.packet_index import PacketIndex


@dataclass(frozen=True)
class Setup:
    """The first message: what is decoded. open_files: descriptors kept between clips."""

    index: str
    engine: str
    drop_disposable: bool
    open_files: int


@dataclass(frozen=True)
class Pictures:
    """A decoded clip in the arena: `layouts` of the arrays, of which the first `count` pictures hold."""

    layouts: list[Layout]
    count: int
    rows: tuple[int, ...]
    colour: Colour
    rotation: int
    decoded_frames: int
    fed_packets: int
    read_bytes: int


@dataclass(frozen=True)
class WrongRequest:
    """A request that is wrong in itself."""

    text: str


Answer = Pictures | ClipFailure | WrongRequest


def serve(connection: Connection, arena: Arena) -> None:
    """Answers requests until the connection ends."""
    setup: Setup = connection.recv()
    index = PacketIndex.open(setup.index)
    layouts: list[Layout] = []

    def allocate(wanted: Sequence[Layout]) -> list[NDArray[Any]]:
        layouts[:] = wanted
        return arena.allocate(wanted)

    reader = ClipReader(index, FileCache(setup.open_files), setup.drop_disposable)
    worker = CpuWorker(reader, PlaneWriter(allocate), setup.engine)
    while True:
        try:
            request: ClipRequest = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            connection.send(_answer(worker, request, layouts))
        except ConnectionError:
            return


def _answer(worker: CpuWorker, request: ClipRequest, layouts: list[Layout]) -> Answer:
    try:
        found = worker.run(request)
    except ValueError as error:
        return WrongRequest(str(error))
    if not isinstance(found, DecodedClip):
        return found
    clip: Any = found.frames
    assert isinstance(clip, PlaneArrays)
    return Pictures(
        list(layouts),
        len(clip.arrays[0]),
        clip.rows,
        clip.colour,
        clip.rotation,
        found.decoded_frames,
        found.fed_packets,
        found.read_bytes,
    )


def main(arguments: list[str]) -> None:
    """The process: file descriptors of the socket and of the arena."""
    # Ctrl-C is the parent's to handle; this process ends with the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    socket, memory = map(int, arguments)
    serve(Connection(socket), Arena(memory))
