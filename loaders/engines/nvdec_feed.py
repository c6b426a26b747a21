"""From a clip request to what an NVDEC session is fed with: compiled, in one trip without the interpreter.

    plan --> file still the indexed one? --> read its byte ranges --> packets still the indexed ones?
         --> bytes that an encoder may write? --> start codes --> slot of each packet

Many threads do this for thousands of clips a second: each time that one gives the interpreter's lock away, it
waits for all others. What goes wrong is found out by ClipReader, which has the words for it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray
from surgrec.loaders.checksum import first_changed
from surgrec.loaders.clip_plan import (
    COALESCE_BYTES,
    EMPTY_FIRST,
    LEADING,
    WANTED,
    ClipRequest,
    byte_ranges,
    select_packets,
)
from surgrec.loaders.engines.annexb import parameter_sets, to_start_codes
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.engines.clip_reader import REINDEX, ClipReader
from surgrec.loaders.engines.nal_rules import first_unlawful
from surgrec.loaders.engines.native_call import call_int, call_long, carray, words_at
from surgrec.loaders.engines.nvdec_callbacks import IGNORED, UNWANTED, feed
from surgrec.loaders.packet_index import PacketIndex, VideoInfo

# What `_gather` returns first.
READY: Final = 0
SMALL: Final = 1  # the buffer is
UNPLANNED: Final = 2
OTHER_VERSION: Final = 3
UNREADABLE: Final = 4
BAD_LENGTHS: Final = 5
CHANGED: Final = 6  # packets
UNLAWFUL: Final = 7  # a packet

# Words that describe a video to `_gather`.
_PACKET_START: Final = 0
_PACKET_COUNT: Final = 1
_FRAME_START: Final = 2
_FRAME_COUNT: Final = 3
_FILE_SIZE: Final = 4
_MTIME_NS: Final = 5
_LENGTH_SIZE: Final = 6  # 0 where packets are fed as they are
_SKIPS_LEADING: Final = 7
_HAS_UNITS: Final = 8  # NAL units
_WORDS: Final = 9

# statx of Linux: the same on all machines, unlike stat.
_EMPTY_PATH: Final = 0x1000
_SIZE_AND_MTIME: Final = 0x240
_SIZE_WORD, _SECONDS_WORD, _NANOSECONDS_WORD, _STATX_WORDS = 5, 14, 15, 32


@dataclass(frozen=True, slots=True)
class Feed:
    """What a session is fed with for one clip of P packets and T rows, as NvdecSession.decode takes it.

    data: uint8, in the reader's memory until its next clip. places, sizes: int64 [P]. restarts: int64 [P], 1
    where a packet needs what comes before put out first. slots: int64 [P], the picture that a packet gives,
    UNWANTED or IGNORED. rows: int64 [T], the picture of each row. sets: bytes of parameter sets in front of
    the first packet. read_bytes: from the file.
    """

    data: NDArray[np.uint8]
    places: NDArray[np.int64]
    sizes: NDArray[np.int64]
    restarts: NDArray[np.int64]
    slots: NDArray[np.int64]
    rows: NDArray[np.int64]
    sets: int
    read_bytes: int


@dataclass(frozen=True, slots=True)
class Fed:
    """What came of feeding a clip. stage: 0, or what failed (nvdec_callbacks.STAGE_...). wanted: pictures of
    the clip. rows: the picture of each row. packets: that were fed. read_bytes: from the file.
    """

    stage: int
    wanted: int
    rows: tuple[int, ...]
    packets: int
    read_bytes: int


class RefusedClip(BadClip):
    """NVDEC does not decode it. It cannot say what is wrong, and takes less than FFmpeg does."""


Describer = Callable[[int], tuple[NDArray[np.int64], NDArray[np.uint8]]]
"""From the number of a video to its words for `_gather`, and its parameter sets."""


def describer(index: PacketIndex) -> Describer:
    """Describes the videos of an index; keeps those asked for last."""
    return lru_cache(maxsize=4096)(lambda video: _describe(index.video(video)))


class FeedReader:
    """Reads what sessions are fed with. Each thread has its own: clips lie in its memory, one at a time.

    describe: what readers of one index share (`describer`).
    """

    def __init__(self, reader: ClipReader, describe: Describer) -> None:
        self._reader = reader
        self._described = describe
        self._space = np.empty(1 << 20, np.uint8)  # kept: new pages would cost more than what is read
        # Compiled now, where nobody's patience runs out.
        nothing: Any = (*self._columns(), np.zeros(_WORDS, np.int64), np.empty(0, np.int64), -1)
        end = self._end(np.empty(0, np.uint8))
        for function, state in ((_gather, ()), (_gather_and_feed, (0,))):
            compiled: Any = function
            compiled(*nothing, *end, *state)

    def read(self, request: ClipRequest, descriptor: int) -> Feed:
        """The feed of a clip, from its open file.

        Raises as ClipReader.read does, and RefusedClip for NAL units that leave their packet, or that no
        encoder writes.
        """
        _, count, *arrays = self._read(_gather, request, descriptor)
        data, places, sizes, restarts, slots, rows = arrays
        sets = len(self._described(request.video)[1])
        return Feed(data, places, sizes, restarts, slots, rows, sets, count)

    def feed(self, request: ClipRequest, descriptor: int, state: int) -> Fed:
        """Reads a clip and feeds it to the session whose state has this address.

        Raises as `read` does, and then has fed nothing.
        """
        _, count, stage, wanted, packets, rows = self._read(_gather_and_feed, request, descriptor, state)
        return Fed(stage, wanted, tuple(rows.tolist()), packets, count)

    def _read(self, function: Any, request: ClipRequest, descriptor: int, *arguments: int) -> tuple[Any, ...]:
        """What a function gives, with memory that is large enough, once all is in order."""
        words, sets = self._described(request.video)
        positions = np.array(request.frames, np.int64)
        while True:
            end = self._end(sets)
            found = function(*self._columns(), words, positions, descriptor, *end, *arguments)
            if found[0] != SMALL:
                break
            self._space = np.empty(2 * found[1], np.uint8)
        if found[0] == BAD_LENGTHS:
            raise RefusedClip(f"the lengths of NAL units are damaged, packet {found[1]} of the clip")
        if found[0] == UNLAWFUL:
            raise RefusedClip(f"NAL units hold bytes that no encoder writes, packet {found[1]} of the clip")
        if found[0] != READY:
            self._reader.read(request, self._reader.info(request))
            raise BadClip(f"the file changed while it was read; {REINDEX}")
        return tuple(found)

    def _columns(self) -> tuple[Any, ...]:
        index = self._reader.index
        return index.pts, index.rank, index.flags, index.display, index.offset, index.size, index.checksum

    def _end(self, sets: NDArray[np.uint8]) -> tuple[Any, ...]:
        return self._reader.drop_disposable, self._reader.check, _libc(), sets, self._space


@lru_cache(maxsize=1)
def _libc() -> NDArray[np.int64]:
    """Addresses of pread and statx."""
    library = ctypes.CDLL(None)
    functions = (library.pread, library.statx)
    return np.array([ctypes.cast(function, ctypes.c_void_p).value for function in functions], np.int64)


def _describe(info: VideoInfo) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The words of a video, and its parameter sets."""
    words = np.zeros(_WORDS, np.int64)
    words[_PACKET_START], words[_PACKET_COUNT] = info.packet_start, info.packet_count
    words[_FRAME_START], words[_FRAME_COUNT] = info.frame_start, info.frame_count
    words[_FILE_SIZE], words[_MTIME_NS] = info.file_size, info.mtime_ns
    words[_HAS_UNITS] = info.codec in ("h264", "hevc")
    words[_LENGTH_SIZE] = info.nal_length_size if words[_HAS_UNITS] else 0
    # In HEVC no trailing picture refers to a leading one (H.265, 8.3.2), and NVDEC's parser skips them at a
    # start. H.264 counts frames, and would conceal a gap.
    words[_SKIPS_LEADING] = info.codec == "hevc"
    return words, np.frombuffer(bytearray(parameter_sets(info)), np.uint8)


@njit(nogil=True, cache=True)
def _gather_and_feed(
    pts, rank, flags, display, offset, size, checksums, words, positions, descriptor, drop, check, libc, sets,
    space, state
):  # fmt: skip
    """(status, bytes, and the rest of Fed); bytes as `_gather` has them."""
    status, count, data, places, sizes, restarts, slots, rows = _gather(
        pts,
        rank,
        flags,
        display,
        offset,
        size,
        checksums,
        words,
        positions,
        descriptor,
        drop,
        check,
        libc,
        sets,
        space,
    )
    if status != READY:
        return status, count, 0, 0, 0, rows
    stage = feed(state, data, places, sizes, restarts, slots, sets.size)
    return status, count, stage, np.count_nonzero(slots >= 0), places.size, rows


@njit(nogil=True, cache=True)
def _gather(
    pts, rank, flags, display, offset, size, checksums, words, positions, descriptor, drop, check, libc, sets,
    space
):  # fmt: skip
    """(status, bytes read or needed or the bad packet, and the arrays of Feed)."""
    start = words[_PACKET_START]
    total, packets, roles, rows = select_packets(
        pts,
        rank,
        flags,
        display,
        start,
        words[_PACKET_COUNT],
        words[_FRAME_START],
        words[_FRAME_COUNT],
        positions,
        drop,
    )
    none = np.empty(0, np.int64)
    if total <= 0:
        return UNPLANNED, 0, space[:0], none, none, none, none, none
    if words[_SKIPS_LEADING]:
        packets, roles = without_leading(packets, roles)
    places, sizes, ranges = byte_ranges(offset, size, start, packets, COALESCE_BYTES)
    wanted = ranges[:, 1].sum()
    if sets.size + wanted > space.size:
        return SMALL, sets.size + wanted, space[:0], none, none, none, none, none
    if not _is_version(libc[1], descriptor, words[_FILE_SIZE], words[_MTIME_NS]):
        return OTHER_VERSION, 0, space[:0], none, none, none, none, none
    at = space.ctypes.data + sets.size
    for k in range(ranges.shape[0]):
        begin, left = ranges[k, 0], ranges[k, 1]
        while left > 0:
            count = call_long(libc[0], (np.int64(descriptor), np.int64(at), np.int64(left), np.int64(begin)))
            if count <= 0:
                return UNREADABLE, 0, space[:0], none, none, none, none, none
            at += count
            begin += count
            left -= count
    places = places + sets.size
    if check and first_changed(space, places, sizes, packets, checksums, start) >= 0:
        return CHANGED, 0, space[:0], none, none, none, none, none
    if words[_HAS_UNITS]:
        bad = first_unlawful(space, places, sizes, words[_LENGTH_SIZE])
        if bad >= 0:
            return UNLAWFUL, bad, space[:0], none, none, none, none, none
    space[: sets.size] = sets
    bad, data, places, sizes = elementary(space, places, sizes, words[_LENGTH_SIZE], sets.size)
    if bad >= 0:
        return BAD_LENGTHS, bad, space[:0], none, none, none, none, none
    slots, numbers = slots_of(packets, roles, rows)
    restarts = np.empty(packets.size, np.int64)
    for k in range(packets.size):
        restarts[k] = 1 if roles[k] & EMPTY_FIRST else 0
    return READY, wanted, data, places, sizes, restarts, slots, numbers


@njit(nogil=True, cache=True)
def _is_version(statx, descriptor, size, mtime_ns):
    """Whether an open file has the size and time of change that the index was made for."""
    answer = np.zeros(_STATX_WORDS + 1, np.int64)
    base = np.int64(answer.ctypes.data)
    path = base + 8 * _STATX_WORDS  # an empty one
    arguments = (np.int64(descriptor), path, np.int64(_EMPTY_PATH), np.int64(_SIZE_AND_MTIME), base)
    if call_int(statx, arguments) != 0:
        return False
    # Looked at by address: the compiler does not see that the call wrote there.
    found = carray(words_at(base), _STATX_WORDS)
    changed = found[_SECONDS_WORD] * 1_000_000_000 + (found[_NANOSECONDS_WORD] & 0xFFFFFFFF)
    return found[_SIZE_WORD] == size and changed == mtime_ns and answer[_STATX_WORDS] == 0


@njit(nogil=True, cache=True)
def without_leading(packets, roles):
    """(packets, roles) without the leading pictures of an open start. What is wanted stays in any case."""
    keep = (roles & (LEADING | WANTED)) != LEADING
    return packets[keep], roles[keep]


@njit(nogil=True, cache=True)
def elementary(data, places, sizes, length_size, room):
    """(bad packet or -1, data, places, sizes) of packets as NVDEC takes them; may change `data` in place.

    data: uint8, `room` bytes of parameter sets in front. They go with the first packet.
    """
    bad = np.int64(-1)
    if length_size > 0:
        bad, found, places, sizes = to_start_codes(data, places, sizes, length_size)
        if length_size != 4:
            whole = np.empty(room + found.size, np.uint8)
            whole[:room] = data[:room]
            whole[room:] = found
            data, places = whole, places + room
    places[0] -= room
    sizes[0] += room
    return bad, data, places, sizes


@njit(nogil=True, cache=True)
def slots_of(packets, roles, rows):
    """(int64 [P]: the picture that each packet gives, UNWANTED or IGNORED; int64 [T]: that of each row)."""
    slots = np.empty(packets.size, np.int64)
    for k in range(packets.size):
        slots[k] = IGNORED if roles[k] & LEADING else UNWANTED
    places = np.searchsorted(packets, rows)
    slots[places] = 0
    count = 0
    for k in range(packets.size):
        if slots[k] >= 0:
            slots[k] = count
            count += 1
    return slots, slots[places]
