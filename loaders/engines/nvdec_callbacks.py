"""The inner loop of an NVDEC session: compiled, without the interpreter and its lock.

    feed --packet--> driver's parser --+--> on_sequence: makes the decoder that the stream's format needs
                                       +--> on_decode:   hands the picture to the hardware
                                       +--> on_display:  copies it out, if its frame is wanted

A session's state is one array of int64 whose address the driver hands to the callbacks. A picture is known by
the surface it was decoded to, and the surface by its packet: pictures come in the order of the packets, one
for each, while their own packet is fed or the next; a clip in which one is missing or too many is refused.
Frames that nobody wants are never mapped. Every picture's decode status is asked for before its surface is
used anew.

The driver waits for the hardware by looking again every few microseconds. With dozens of sessions that takes
whole cores from those that decode with FFmpeg. So nothing is asked of it that it would have to wait for: a
session sleeps until a picture is done, and hands no more than a few to the hardware ahead of it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import cfunc, njit, types
from surgrec.loaders.engines.native_call import call_int, carray, halves_at, words_at

# Addresses of the driver's functions and of structures, in the words of a session's state.
DECODER: Final = 0  # must be the first: the driver writes the handle there
PARSER: Final = 1
PARSE: Final = 2
CREATE_DECODER: Final = 3
DESTROY_DECODER: Final = 4
DECODE_PICTURE: Final = 5
MAP_FRAME: Final = 6
UNMAP_FRAME: Final = 7
DECODE_STATUS: Final = 8
COPY: Final = 9
RECORD_EVENT: Final = 10
WAIT_EVENT: Final = 11
STREAM: Final = 12
CREATE_INFO: Final = 13
MAP_INFO: Final = 14
COPY_INFO: Final = 15
STATUS_INFO: Final = 16
MAPPED: Final = 17
PACKET_INFO: Final = 18
# The format of the decoder that is there.
CODED_WIDTH: Final = 20
CODED_HEIGHT: Final = 21
DEPTH_ABOVE_8: Final = 22
SURFACES: Final = 23
# What the clip expects, and where its frames go.
WIDTH: Final = 24
HEIGHT: Final = 25
EXPECTED_DEPTH_ABOVE_8: Final = 26
LUMA: Final = 27
CHROMA: Final = 28
SLOTS: Final = 29
SLOT_COUNT: Final = 30
IN_ORDER: Final = 31  # 1 for codecs whose frames come out in the order of the packets
# Where it is.
LEFT: Final = 32
TOP: Final = 33
PACKET: Final = 34
ERROR: Final = 35
STAGE: Final = 36
DECODED: Final = 37
TAKEN: Final = 38
DAMAGED: Final = 39
RING_NEXT: Final = 40
SLEEP: Final = 41
NAP: Final = 42  # timespec of one sleep; 0: never sleep
OLDEST: Final = 43  # the first packet whose picture has not come to on_decode yet
SETS: Final = 45  # bytes of parameter sets that lie in front of the first packet
SEEN_WIDTH: Final = 19  # what the stream says itself
SEEN_HEIGHT: Final = 46
SEEN_FORMAT: Final = 47  # bits above 8, times 256, and the chroma format
AT_ONCE: Final = 44  # 1 where a picture comes while its own packet is fed, 0 where the next one brings it
# Arrays within the state.
RING: Final = 8
RING_FRAMES: Final = 48  # [RING] mapped frames, 0 where the place is free
RING_EVENTS: Final = 56  # [RING] events behind their copies
MAX_SURFACES: Final = 64
SURFACE_PACKETS: Final = 64  # [MAX_SURFACES] packet whose picture is still to be checked, or -1
RECENT: Final = 128  # [MAX_SURFACES] surface of each picture handed to the hardware, by its number
AHEAD: Final = 192  # pictures that the hardware may be given before it is done with the first of them
WORDS: Final = 200

# Slots of a packet whose frame is not wanted.
UNWANTED: Final = -1
IGNORED: Final = -2  # its picture may be damaged: a leading picture whose references are missing

# Stages at which a clip can fail.
STAGE_CREATE: Final = 1
STAGE_DECODE: Final = 2
STAGE_MAP: Final = 3
STAGE_COPY: Final = 4
STAGE_FORMAT: Final = 5
STAGE_PARSE: Final = 6
STAGE_NO_PICTURE: Final = 7
STAGE_TOO_MANY: Final = 8

EXTRA_SURFACES: Final = 4  # beyond what the stream needs, so that decoding runs ahead of display
PREFER_HARDWARE: Final = 4  # cudaVideoCreate_PreferCUVID
P016: Final = 1
DEVICE_MEMORY: Final = 2
END_OF_STREAM: Final = 1
END_OF_PICTURE: Final = 8
STATUS_IN_PROGRESS: Final = 1
STATUS_ERROR: Final = 8  # and 9: error concealed
MOST_NAPS: Final = 4000
"""Naps before a session takes it that its driver never reports a picture as done, and sleeps no more."""


@njit(cache=True)
def _fail(s, stage, error):
    if s[STAGE] == 0:
        s[STAGE] = stage
        s[ERROR] = error
    return np.int32(0)


@njit(cache=True)
def _release(s, place):
    """Waits for the copy out of a mapped frame and gives the frame back."""
    if s[RING_FRAMES + place] != 0:
        call_int(s[WAIT_EVENT], (s[RING_EVENTS + place],))
        call_int(s[UNMAP_FRAME], (s[DECODER], s[RING_FRAMES + place]))
        s[RING_FRAMES + place] = 0


@njit(cache=True)
def _status(s, surface):
    """What the hardware says of the picture in a surface, once it is done with it; 0 where it cannot tell."""
    for _ in range(MOST_NAPS):
        error = call_int(s[DECODE_STATUS], (s[DECODER], np.int64(surface), s[STATUS_INFO]))
        # Looked at anew each time: the compiler does not see that the call wrote there.
        status = np.int64(carray(halves_at(s[STATUS_INFO]), 1)[0]) if error == 0 else np.int64(0)
        if status != STATUS_IN_PROGRESS or s[NAP] == 0:
            return status
        call_int(s[SLEEP], (s[NAP], np.int64(0)))
    s[NAP] = 0
    return np.int64(0)


@njit(cache=True)
def _check_surface(s, surface):
    """Counts the picture in a surface as damaged if the hardware says so; each picture once."""
    packet = s[SURFACE_PACKETS + surface]
    if packet < 0:
        return
    s[SURFACE_PACKETS + surface] = -1
    if _status(s, surface) >= STATUS_ERROR:
        s[DAMAGED] += 1


@njit(cache=True)
def _drop_decoder(s):
    for place in range(RING):
        _release(s, place)
    if s[DECODER] != 0:
        call_int(s[DESTROY_DECODER], (s[DECODER],))
        s[DECODER] = 0
    for surface in range(MAX_SURFACES):
        s[SURFACE_PACKETS + surface] = -1


@njit(cache=True)
def _copy(s, source, pitch, left, top, target, width, rows):
    """CUDA_MEMCPY2D of device memory, queued on the session's stream."""
    info = carray(words_at(s[COPY_INFO]), 16)
    halves = carray(halves_at(s[COPY_INFO]), 32)
    for k in range(16):
        info[k] = 0
    info[0], info[1] = left, top
    halves[4] = DEVICE_MEMORY
    info[4], info[6] = source, pitch
    halves[18] = DEVICE_MEMORY
    info[11], info[13] = target, width
    info[14], info[15] = width, rows
    return call_int(s[COPY], (s[COPY_INFO], s[STREAM]))


@cfunc(types.int32(types.int64, types.int64), cache=True)
def on_sequence(user, what):
    """CUVIDEOFORMAT: makes the decoder, or keeps the one that fits. Number of surfaces, 0 for failure."""
    s = carray(words_at(user), WORDS)
    f = carray(halves_at(what), 11)
    depth, least = (f[3] >> 8) & 255, (f[3] >> 24) & 255
    coded_width, coded_height = np.int64(f[4]), np.int64(f[5])
    s[LEFT], s[TOP] = f[6], f[7]
    s[SEEN_WIDTH], s[SEEN_HEIGHT], s[SEEN_FORMAT] = f[8] - f[6], f[9] - f[7], depth << 8 | f[10]
    if (
        s[SEEN_WIDTH] != s[WIDTH]
        or s[SEEN_HEIGHT] != s[HEIGHT]
        or depth != s[EXPECTED_DEPTH_ABOVE_8]
        or f[10] != 1
    ):
        return _fail(s, STAGE_FORMAT, 0)
    surfaces = min(np.int64(least) + EXTRA_SURFACES, np.int64(MAX_SURFACES))
    if s[DECODER] != 0:
        if (
            s[CODED_WIDTH] == coded_width
            and s[CODED_HEIGHT] == coded_height
            and s[DEPTH_ABOVE_8] == depth
            and s[SURFACES] >= surfaces
        ):
            return np.int32(s[SURFACES])
        if s[DECODED] > 0:  # pictures that were not looked at yet would be lost
            return _fail(s, STAGE_FORMAT, 0)
        _drop_decoder(s)
    info = carray(words_at(s[CREATE_INFO]), 22)
    info_halves = carray(halves_at(s[CREATE_INFO]), 44)
    for k in range(22):
        info[k] = 0
    info[0] = info[7] = info[12] = coded_width
    info[1] = info[8] = info[13] = coded_height
    info[2] = surfaces
    info_halves[6] = f[0]
    info_halves[7] = f[10]
    info[4] = PREFER_HARDWARE
    info[5] = depth
    # The whole coded picture comes out; the clip's part is cut when it is copied.
    info_halves[21] = np.int32(coded_height << 16 | coded_width)
    info_halves[22] = P016 if depth > 0 else 0
    info[14] = RING
    error = call_int(s[CREATE_DECODER], (user, s[CREATE_INFO]))
    if error != 0:
        s[DECODER] = 0
        return _fail(s, STAGE_CREATE, error)
    s[CODED_WIDTH], s[CODED_HEIGHT], s[DEPTH_ABOVE_8], s[SURFACES] = (
        coded_width,
        coded_height,
        depth,
        surfaces,
    )
    return np.int32(surfaces)


@cfunc(types.int32(types.int64, types.int64), cache=True)
def on_decode(user, what):
    """CUVIDPICPARAMS: decodes a picture, or the second field of one. 1, or 0 for failure."""
    s = carray(words_at(user), WORDS)
    picture = carray(halves_at(what), 6)
    surface = picture[2]
    if s[DECODER] == 0 or surface < 0 or surface >= MAX_SURFACES:
        return _fail(s, STAGE_DECODE, 0)
    if picture[5] == 0:
        _check_surface(s, surface)
    if s[IN_ORDER] != 0:
        packet = s[PACKET]
    elif picture[5] != 0:
        packet = s[OLDEST] - 1
    else:
        packet = s[OLDEST]
        s[OLDEST] += 1
    if packet < 0 or packet > s[PACKET]:
        return _fail(s, STAGE_TOO_MANY, 0)
    ahead = s[AHEAD]
    if ahead > 0 and s[DECODED] >= ahead:
        _status(s, s[RECENT + (s[DECODED] - ahead) % MAX_SURFACES])
    s[RECENT + s[DECODED] % MAX_SURFACES] = surface
    s[DECODED] += 1
    ignored = carray(words_at(s[SLOTS]), s[SLOT_COUNT])[packet] == IGNORED
    error = call_int(s[DECODE_PICTURE], (s[DECODER], np.int64(what)))
    if error != 0:
        return _fail(s, STAGE_DECODE, error)
    s[SURFACE_PACKETS + surface] = -1 if ignored else packet
    carray(words_at(s[MAPPED]), 2 + MAX_SURFACES)[2 + surface] = packet
    return np.int32(1)


@cfunc(types.int32(types.int64, types.int64), cache=True)
def on_display(user, what):
    """CUVIDPARSERDISPINFO: copies the frame out, if it is wanted. 1, or 0 for failure."""
    if what == 0:
        return np.int32(1)
    s = carray(words_at(user), WORDS)
    shown = carray(halves_at(what), 4)
    surface = shown[0]
    if s[STAGE] != 0 or s[DECODER] == 0 or surface < 0 or surface >= MAX_SURFACES:
        return np.int32(1)
    mapped = carray(words_at(s[MAPPED]), 2 + MAX_SURFACES)
    packet = s[PACKET] if s[IN_ORDER] != 0 else mapped[2 + surface]
    if packet < 0 or packet >= s[SLOT_COUNT]:
        return np.int32(1)
    slot = carray(words_at(s[SLOTS]), s[SLOT_COUNT])[packet]
    if slot < 0:
        return np.int32(1)
    place = s[RING_NEXT]
    s[RING_NEXT] = (place + 1) % RING
    _release(s, place)
    info = carray(halves_at(s[MAP_INFO]), 16)
    info[0] = shown[1]
    info[1] = 0
    info[2] = shown[2]
    info[3] = 1 if shown[3] < 0 else 0
    carray(words_at(s[MAP_INFO]), 8)[7] = s[STREAM]
    mapped[0] = 0
    mapped[1] = 0
    _status(s, surface)
    error = call_int(s[MAP_FRAME], (s[DECODER], np.int64(surface), s[MAPPED], s[MAPPED] + 8, s[MAP_INFO]))
    if error != 0:
        return _fail(s, STAGE_MAP, error)
    frame, pitch = mapped[0], mapped[1] & 0xFFFFFFFF
    s[RING_FRAMES + place] = frame
    _check_surface(s, surface)
    value = 2 if s[DEPTH_ABOVE_8] > 0 else 1
    chroma_rows, chroma_width = (s[HEIGHT] + 1) // 2, (s[WIDTH] + 1) // 2 * 2
    luma = s[LUMA] + slot * s[HEIGHT] * s[WIDTH] * value
    chroma = s[CHROMA] + slot * chroma_rows * chroma_width * value
    below = frame + pitch * ((s[CODED_HEIGHT] + 1) // 2 * 2)
    error = _copy(s, frame, pitch, s[LEFT] * value, s[TOP], luma, s[WIDTH] * value, s[HEIGHT])
    if error == 0:
        left, top = s[LEFT] // 2 * 2 * value, s[TOP] // 2
        error = _copy(s, below, pitch, left, top, chroma, chroma_width * value, chroma_rows)
    if error == 0:
        error = call_int(s[RECORD_EVENT], (s[RING_EVENTS + place], s[STREAM]))
    if error != 0:
        return _fail(s, STAGE_COPY, error)
    s[TAKEN] += 1
    return np.int32(1)


@njit(cache=True)
def _parse(s, flags, data, size):
    packet = carray(words_at(s[PACKET_INFO]), 4)
    packet[0], packet[1], packet[2], packet[3] = flags, size, data, 0
    error = call_int(s[PARSE], (s[PARSER], s[PACKET_INFO]))
    if error != 0:
        _fail(s, STAGE_PARSE, error)


_COLUMN = types.int64[::1]


@njit(
    types.int64(types.int64, types.uint8[::1], _COLUMN, _COLUMN, _COLUMN, _COLUMN, types.int64),
    nogil=True,
    cache=True,
)
def feed(state, content, places, sizes, restarts, slots, sets):
    """Feeds packets until their frames are copied. The stage that failed, or 0.

    state: the session's address. content: the bytes. places, sizes, restarts, slots, sets: as Feed has them
    (nvdec_feed.py).
    """
    s = carray(words_at(state), WORDS)
    s[SLOTS], s[SLOT_COUNT], s[SETS] = slots.ctypes.data, slots.size, sets
    s[OLDEST] = s[AT_ONCE] = 0
    s[PACKET] = s[ERROR] = s[STAGE] = s[DECODED] = s[TAKEN] = s[DAMAGED] = 0
    data = np.int64(content.ctypes.data)
    mapped = carray(words_at(s[MAPPED]), 2 + MAX_SURFACES)
    for surface in range(MAX_SURFACES):
        mapped[2 + surface] = -1
    for k in range(places.size):
        if restarts[k] != 0 and k > 0:
            _parse(s, END_OF_STREAM, 0, 0)
            if s[IN_ORDER] == 0 and s[OLDEST] != k:
                _fail(s, STAGE_NO_PICTURE, 0)
            if s[SETS] > 0:  # the end of a stream is the end of what they said
                _parse(s, 0, data + places[0], s[SETS])
        s[PACKET] = k
        if sizes[k] > 0:
            _parse(s, END_OF_PICTURE, data + places[k], sizes[k])
        if k == 0:
            s[AT_ONCE] = 1 if s[OLDEST] == 1 else 0
        if s[IN_ORDER] == 0 and s[OLDEST] <= k and (s[AT_ONCE] != 0 or sizes[k] == 0 or slots[k] == IGNORED):
            # The parser may leave leading pictures out. Where pictures come late, nobody knows if it did.
            if s[AT_ONCE] != 0 and (sizes[k] == 0 or slots[k] == IGNORED):
                s[OLDEST] = k + 1
            else:
                _fail(s, STAGE_NO_PICTURE, 0)
        if s[STAGE] != 0:
            break
    _parse(s, END_OF_STREAM, 0, 0)
    if s[IN_ORDER] == 0 and s[OLDEST] != places.size:
        _fail(s, STAGE_NO_PICTURE, 0)
    for place in range(RING):
        _release(s, place)
    if s[STAGE] == 0:
        for surface in range(MAX_SURFACES):
            _check_surface(s, surface)
    return s[STAGE]


@njit(types.void(types.int64), nogil=True, cache=True)
def drop_decoder(state):
    """Gives mapped frames back and destroys the decoder."""
    _drop_decoder(carray(words_at(state), WORDS))
