"""One long-lived NVDEC session: a parser of the driver, and the decoder behind it."""

from __future__ import annotations

import ctypes
from typing import Final

import numpy as np
from surgrec.loaders.engines import nvdec_callbacks as c
from surgrec.loaders.engines.nvcuvid import OUT_OF_MEMORY, Driver, NvdecUnavailable, ParserParameters, call
from surgrec.loaders.engines.nvdec_feed import Feed, RefusedClip

DISPLAY_DELAY: Final = 4
"""Frames that the parser may hold back, so that decoding runs ahead of copying."""

SLEEPING: Final = 1
"""CU_EVENT_BLOCKING_SYNC: who waits for an event sleeps, and leaves its core to FFmpeg."""
UNTIMED: Final = 2
"""CU_EVENT_DISABLE_TIMING"""

LIKELY_SURFACES: Final = 12
"""Surfaces of a decoder, as long as its stream has not said how many it needs."""
FIXED_BYTES: Final = 3 << 20
"""Of a session, whatever its pictures' size: the driver's own."""
OVERHEAD: Final = 1.2
"""Bytes of a surface as a multiple of its values: measured on an H100 from 448x256 to 1920x1080."""

NAP_NS: Final = 250_000
"""Length of a sleep that waits for the hardware: a tenth of what a small picture takes in a busy session."""
AHEAD: Final = 4
"""Pictures that the hardware is given ahead of what it has done. With eight, the driver waits by itself: on
an H100, 28 sessions take 3.9 cores at 854x480, with four 1.5."""

_AREA_WORDS: Final = 1024
_CREATE_AT, _MAP_AT, _COPY_AT, _STATUS_AT, _MAPPED_AT, _PACKET_AT = 200, 232, 328, 360, 392, 472
_NAP_AT: Final = 480
_STAGES: Final = {
    c.STAGE_CREATE: "the decoder cannot be made",
    c.STAGE_DECODE: "a picture cannot be decoded",
    c.STAGE_MAP: "a frame cannot be mapped",
    c.STAGE_COPY: "a frame cannot be copied",
    c.STAGE_FORMAT: "the stream has another size, depth or chroma format than the index says",
    c.STAGE_PARSE: "the data cannot be parsed",
    c.STAGE_NO_PICTURE: "a packet gives no picture",
    c.STAGE_TOO_MANY: "a packet gives more than one picture",
}


class DeviceMemoryError(RuntimeError):
    """The GPU has no memory left for a decoder, or for pictures."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the GPU has no memory left for {what}; lower data.session_mib, data.picture_mib or the batch"
        )


def session_bytes(width: int, height: int, depth: int, surfaces: int) -> int:
    """Bytes of the GPU's memory that a session takes, about: surfaces, and the frames that can be mapped.

    width, height: of the coded picture. depth: bits of a value.
    """
    picture = 1.5 * width * height * (2 if depth > 8 else 1)
    return FIXED_BYTES + int(OVERHEAD * picture * (surfaces + c.RING))


class NvdecSession:
    """Decodes clip after clip of one codec. Not thread-safe; any thread may use it, one after the other.

    The calling thread must have made the GPU's primary context current. After an exception close the session:
    what the hardware's state is then, nobody knows.
    """

    def __init__(self, driver: Driver, codec: int, in_order: bool, stream: int, sleeps: bool = True) -> None:
        """codec: a value of nvcuvid.CODECS. in_order: frames come out in the order of the packets. stream:
        CUDA's handle of the stream that frames are copied on. sleeps: while the hardware works; otherwise the
        driver waits, which takes a good part of a core."""
        self._driver = driver
        self._area = np.zeros(_AREA_WORDS, np.int64)
        self._state = self._area[: c.WORDS]
        self._address = base = self._area.ctypes.data
        s = self._state
        for word, name in (
            (c.PARSE, "parse"),
            (c.CREATE_DECODER, "create_decoder"),
            (c.DESTROY_DECODER, "destroy_decoder"),
            (c.DECODE_PICTURE, "decode_picture"),
            (c.MAP_FRAME, "map_frame"),
            (c.UNMAP_FRAME, "unmap_frame"),
            (c.DECODE_STATUS, "decode_status"),
            (c.COPY, "copy"),
            (c.RECORD_EVENT, "record_event"),
            (c.WAIT_EVENT, "wait_event"),
            (c.SLEEP, "sleep"),
        ):
            s[word] = getattr(driver, name)
        for word, at in (
            (c.CREATE_INFO, _CREATE_AT),
            (c.MAP_INFO, _MAP_AT),
            (c.COPY_INFO, _COPY_AT),
            (c.STATUS_INFO, _STATUS_AT),
            (c.MAPPED, _MAPPED_AT),
            (c.PACKET_INFO, _PACKET_AT),
        ):
            s[word] = base + 8 * at
        self._area[_NAP_AT : _NAP_AT + 2] = divmod(NAP_NS, 1_000_000_000)
        s[c.NAP], s[c.AHEAD] = (base + 8 * _NAP_AT, AHEAD) if sleeps else (0, 0)
        s[c.STREAM] = stream
        s[c.IN_ORDER] = in_order
        s[c.SURFACE_PACKETS : c.SURFACE_PACKETS + c.MAX_SURFACES] = -1
        parameters = ParserParameters(
            codec=codec,
            max_surfaces=1,  # on_sequence says how many
            max_display_delay=0 if in_order else DISPLAY_DELAY,
            user=base,
            on_sequence=c.on_sequence.address,
            on_decode=c.on_decode.address,
            on_display=c.on_display.address,
        )
        error = call(driver.create_parser, base + 8 * c.PARSER, ctypes.addressof(parameters))
        if error:
            raise NvdecUnavailable(f"cuvidCreateVideoParser returned CUDA error {error}")
        for place in range(c.RING):
            error = call(driver.create_event, base + 8 * (c.RING_EVENTS + place), SLEEPING | UNTIMED)
            if error:
                self.close()
                raise NvdecUnavailable(f"cuEventCreate returned CUDA error {error}")

    @property
    def surfaces(self) -> int:
        """Pictures that the decoder holds memory for, 0 before the first clip."""
        return int(self._state[c.SURFACES]) if self._state[c.DECODER] else 0

    @property
    def nbytes(self) -> int:
        """Of the GPU's memory, about, once there is a decoder."""
        s = self._state
        size = int(s[c.CODED_WIDTH]), int(s[c.CODED_HEIGHT])
        return session_bytes(*size, 8 + int(s[c.DEPTH_ABOVE_8]), self.surfaces)

    def begin(self, size: tuple[int, int], depth: int, luma: int, chroma: int) -> int:
        """Says what the next clip is and where its pictures go; the address of the session's state.

        size: width and height of the picture. depth: bits of a value. luma, chroma: addresses on the GPU of
        uint8 or uint16 [K, H, W] and [K, H/2, W/2, 2], halves rounded up.
        """
        s = self._state
        s[c.WIDTH], s[c.HEIGHT] = size
        s[c.EXPECTED_DEPTH_ABOVE_8] = depth - 8
        s[c.LUMA], s[c.CHROMA] = luma, chroma
        return self._address

    def end(self, stage: int, wanted: int) -> int:
        """How many pictures were decoded, once a clip is fed. stage: what `feed` gave. wanted: pictures.

        Raises:
            RefusedClip: the data are damaged, or of another format than the index says.
            DeviceMemoryError: there is no memory for the decoder.
        """
        s = self._state
        if stage:
            error = int(s[c.ERROR])
            if stage == c.STAGE_CREATE and error == OUT_OF_MEMORY:
                raise DeviceMemoryError("an NVDEC decoder")
            cause = f" (CUDA error {error})" if error else ""
            if stage == c.STAGE_FORMAT:
                form = int(s[c.SEEN_FORMAT])
                cause = (
                    f" ({int(s[c.SEEN_WIDTH])}x{int(s[c.SEEN_HEIGHT])} at {int(s[c.LEFT])} {int(s[c.TOP])}"
                    f" {8 + (form >> 8)} bit chroma {form & 255})"
                )
            raise RefusedClip(f"NVDEC: {_STAGES[stage]}{cause}, packet {int(s[c.PACKET])} of the clip")
        if s[c.DAMAGED]:
            raise RefusedClip(f"NVDEC reports {int(s[c.DAMAGED])} damaged pictures")
        if s[c.TAKEN] != wanted:
            raise RefusedClip(f"NVDEC gave {int(s[c.TAKEN])} of the {wanted} frames wanted")
        return int(s[c.DECODED])

    def decode(self, feed: Feed, size: tuple[int, int], depth: int, luma: int, chroma: int) -> int:
        """Decodes a clip that is read already: `begin`, feeding, `end`."""
        state = self.begin(size, depth, luma, chroma)
        columns = feed.places, feed.sizes, feed.restarts, feed.slots
        stage = c.feed(state, feed.data, *columns, feed.sets)
        return self.end(stage, int(np.count_nonzero(feed.slots >= 0)))

    def close(self) -> None:
        """Destroys decoder, parser and events. May be called again."""
        s = self._state
        if s[c.PARSER]:
            # First the decoder: destroying the parser makes no more callbacks that could want it.
            c.drop_decoder(self._address)
            call(self._driver.destroy_parser, int(s[c.PARSER]))
            s[c.PARSER] = 0
        for place in range(c.RING_EVENTS, c.RING_EVENTS + c.RING):
            if s[place]:
                call(self._driver.destroy_event, int(s[place]))
                s[place] = 0
