"""NVDEC sessions against a driver of our own: what is decoded, mapped, copied, checked and given back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.loaders.engines import nvdec_callbacks as c
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.engines.nvcuvid import OUT_OF_MEMORY, Driver, ParserParameters
from surgrec.loaders.engines.nvdec_feed import Feed
from surgrec.loaders.engines.nvdec_session import AHEAD, NAP_NS, DeviceMemoryError, NvdecSession

CODED = (32, 16)
"""Width and height that the fake stream is coded in."""
AREA = (4, 2, 28, 12)
"""What is shown of it: left, top, right, bottom."""
WIDTH, HEIGHT = AREA[2] - AREA[0], AREA[3] - AREA[1]
PITCH = 64


@dataclass
class Packet:
    """What the fake parser does with one packet: decode to a surface (or nothing), then show surfaces."""

    surface: int | None
    shown: Sequence[int] = ()
    damaged: bool = False
    parse_error: int = 0
    pictures: int = 1


@dataclass
class FakeDriver:
    """nvcuvid and CUDA on plain memory. Surface contents are the number of the packet, everywhere."""

    packets: Sequence[Packet]
    at_end: Sequence[int] = ()
    depth: int = 8
    late: bool = False
    """Pictures come out while the next packet is fed, as from parsers that wait for the next start code."""
    sets: int = 0
    """Bytes of parameter sets: lost at the end of a stream, and fed by themselves for what follows."""
    create_error: int = 0
    map_error: int = 0
    naps: int = 0
    """Sleeps that a picture takes; -1: it is never reported as done."""
    area: tuple[int, int, int, int] = AREA
    log: list[str] = field(default_factory=list)
    fed: int = 0
    ran: int = 0
    knows_sets: bool = True
    decoders: int = 0
    mapped: dict[int, np.ndarray] = field(default_factory=dict)
    pending: int = 0
    most_mapped: int = 0
    content: dict[int, int] = field(default_factory=dict)
    bad: set[int] = field(default_factory=set)
    slept: int = 0
    undone: dict[int, int] = field(default_factory=dict)
    """Sleeps until the picture in a surface is done."""
    most_undone: int = 0
    events: int = 0
    kept: list[Any] = field(default_factory=list)

    def driver(self) -> Driver:
        names = Driver.__dataclass_fields__
        return Driver(**{name: self._address(getattr(self, f"_{name}")) for name in names})

    def _address(self, function: Callable[..., int]) -> int:
        count = function.__code__.co_argcount - 1
        made = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint64] * count)(function)
        self.kept.append(made)
        address = ctypes.cast(made, ctypes.c_void_p).value
        assert address is not None
        return address

    def _create_parser(self, out: int, parameters: int) -> int:
        found = ParserParameters.from_address(parameters)
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64)
        self.user = found.user
        self.on_sequence, self.on_decode, self.on_display = (
            kind(address) for address in (found.on_sequence, found.on_decode, found.on_display)
        )
        ctypes.c_uint64.from_address(out).value = 77
        return 0

    def _destroy_parser(self, parser: int) -> int:
        self.log.append("destroy parser")
        return 0

    def _parse(self, parser: int, packet: int) -> int:
        flags, size, _, _ = (ctypes.c_uint64 * 4).from_address(packet)
        if flags == c.END_OF_STREAM:
            error = self._run_to(self.fed)
            for surface in self.at_end:
                self._show(surface)
            self.knows_sets = self.sets == 0
            return error
        if flags == 0:
            assert size == self.sets
            self.knows_sets = True
            return 0
        assert (flags, size) == (c.END_OF_PICTURE, 10)
        if self.fed == 0:
            form = np.zeros(32, np.int32)
            form[3] = (self.depth - 8) << 8 | 5 << 24
            form[4:6] = CODED
            form[6:10] = self.area
            form[10] = 1
            if self.on_sequence(self.user, form.ctypes.data) == 0:
                return 1
            self.knows_sets = True
        self.fed += 1
        if not self.knows_sets:
            self.ran = self.fed  # it cannot be parsed
        return self._run_to(self.fed - 1 if self.late else self.fed)

    def _run_to(self, end: int) -> int:
        while self.ran < end:
            self.ran += 1
            if self._run(self.ran - 1):
                return 1
        return 0

    def _run(self, number: int) -> int:
        """What comes of a packet."""
        step = self.packets[number]
        self.number = number
        for _ in range(step.pictures if step.surface is not None else 0):
            picture = np.zeros(16, np.int32)
            picture[2] = step.surface
            if self.on_decode(self.user, picture.ctypes.data) == 0:
                return 1
        for surface in step.shown:
            self._show(surface)
        return step.parse_error

    def _show(self, surface: int) -> None:
        shown = np.zeros(8, np.int32)
        shown[0] = surface
        self.on_display(self.user, shown.ctypes.data)

    def _create_decoder(self, out: int, info: int) -> int:
        if self.create_error:
            return self.create_error
        words = (ctypes.c_uint64 * 22).from_address(info)
        assert (words[0], words[1], words[12], words[13]) == (*CODED, *CODED)
        assert words[2] == 5 + c.EXTRA_SURFACES
        self.decoders += 1
        ctypes.c_uint64.from_address(out).value = 55
        return 0

    def _destroy_decoder(self, decoder: int) -> int:
        assert not self.mapped
        self.decoders -= 1
        return 0

    def _decode_picture(self, decoder: int, picture: int) -> int:
        surface, number = (ctypes.c_int * 3).from_address(picture)[2], self.number
        self.content[surface] = number
        (self.bad.add if self.packets[number].damaged else self.bad.discard)(surface)
        if self.naps:
            self.undone[surface] = self.naps
            self.most_undone = max(self.most_undone, len(self.undone))
        return 0

    def _map_frame(self, decoder: int, surface: int, out: int, pitch: int, info: int) -> int:
        if self.map_error:
            return self.map_error
        assert surface not in self.undone or self.naps < 0, "the driver would have to wait"
        kind: Any = np.uint8 if self.depth == 8 else np.uint16
        frame = np.zeros((CODED[1] * 3 // 2, PITCH // np.dtype(kind).itemsize), kind)
        frame[:] = 255
        # Luma is the packet's number, chroma the same and 100 more; 255 lies outside of what is shown.
        left, top, right, bottom = AREA
        frame[top:bottom, left:right] = self.content[surface]
        frame[CODED[1] + top // 2 : CODED[1] + bottom // 2, left:right:2] = self.content[surface]
        frame[CODED[1] + top // 2 : CODED[1] + bottom // 2, left + 1 : right : 2] = (
            self.content[surface] + 100
        )
        self.mapped[frame.ctypes.data] = frame
        self.most_mapped = max(self.most_mapped, len(self.mapped))
        ctypes.c_uint64.from_address(out).value = frame.ctypes.data
        ctypes.c_uint32.from_address(pitch).value = PITCH
        return 0

    def _unmap_frame(self, decoder: int, frame: int) -> int:
        assert self.pending == 0, "a frame was given back before its copy was waited for"
        del self.mapped[frame]
        return 0

    def _decode_status(self, decoder: int, surface: int, out: int) -> int:
        undone = surface in self.undone
        ctypes.c_int.from_address(out).value = 1 if undone else 9 if surface in self.bad else 2
        return 0

    def _sleep(self, span: int, rest: int) -> int:
        assert tuple((ctypes.c_uint64 * 2).from_address(span)) == (0, NAP_NS)
        assert rest == 0
        self.slept += 1
        # The hardware does one picture after another.
        for surface in list(self.undone)[:1]:
            self.undone[surface] -= 1
            if self.undone[surface] == 0:
                del self.undone[surface]
        return 0

    def _decoder_caps(self, caps: int) -> int:
        return 0

    def _copy(self, info: int, stream: int) -> int:
        words = (ctypes.c_uint64 * 16).from_address(info)
        for row in range(words[15]):
            source = words[4] + (words[1] + row) * words[6] + words[0]
            ctypes.memmove(words[11] + row * words[13], source, words[14])
        self.pending += 1
        return 0

    def _create_event(self, out: int, flags: int) -> int:
        self.events += 1
        ctypes.c_uint64.from_address(out).value = self.events
        return 0

    def _destroy_event(self, event: int) -> int:
        self.events -= 1
        return 0

    def _record_event(self, event: int, stream: int) -> int:
        return 0

    def _wait_event(self, event: int) -> int:
        self.pending = 0
        return 0


def decode(
    fake: FakeDriver,
    slots: Sequence[int],
    in_order: bool = False,
    session: NvdecSession | None = None,
    restarts: Sequence[int] = (),
) -> tuple[int, np.ndarray, np.ndarray]:
    """(pictures decoded, luma [K, H, W], chroma [K, H/2, W/2, 2]) of a clip of the fake's packets."""
    own = session is None
    session = NvdecSession(fake.driver(), 4, in_order, 0) if session is None else session
    count = len(fake.packets)
    kind: Any = np.uint8 if fake.depth == 8 else np.uint16
    pictures = max(1, max(slots) + 1)
    luma = np.zeros((pictures, HEIGHT, WIDTH), kind)
    chroma = np.zeros((pictures, HEIGHT // 2, WIDTH // 2, 2), kind)
    data = np.zeros(10 * count, np.uint8)
    try:
        feed = Feed(
            data,
            np.arange(count) * 10,
            np.full(count, 10),
            np.isin(np.arange(count), restarts).astype(np.int64),
            np.array(slots, np.int64),
            np.array([slot for slot in slots if slot >= 0], np.int64),
            fake.sets,
            len(data),
        )
        decoded = session.decode(feed, (WIDTH, HEIGHT), fake.depth, luma.ctypes.data, chroma.ctypes.data)
    finally:
        if own:
            session.close()
            session.close()
            assert (fake.decoders, fake.events, fake.mapped) == (0, 0, {})
            assert fake.log == ["destroy parser"]
    return decoded, luma, chroma


# I P b b as it is coded; shown I b b P.
REORDERED = [Packet(0), Packet(1), Packet(2, [0, 2]), Packet(3, [3, 1])]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("depth", [8, 10])
def test_wanted_frames_come_from_their_packets(depth: int, late: bool) -> None:
    fake = FakeDriver(REORDERED, depth=depth, late=late)
    decoded, luma, chroma = decode(fake, [c.UNWANTED, 2, 0, 1])
    assert decoded == 4
    assert [np.unique(picture).tolist() for picture in luma] == [[2], [3], [1]]
    assert [np.unique(picture[..., 0]).tolist() for picture in chroma] == [[2], [3], [1]]
    assert [np.unique(picture[..., 1]).tolist() for picture in chroma] == [[102], [103], [101]]


@pytest.mark.parametrize("late", [False, True])
def test_frames_that_are_held_back_come_at_the_end(late: bool) -> None:
    fake = FakeDriver([Packet(0), Packet(1), Packet(2)], at_end=[0, 2, 1], late=late)
    _, luma, _ = decode(fake, [0, 1, 2])
    assert luma[:, 0, 0].tolist() == [0, 1, 2]


def test_unwanted_frames_are_not_mapped() -> None:
    fake = FakeDriver(REORDERED)
    decode(fake, [c.UNWANTED, c.UNWANTED, 0, c.UNWANTED])
    assert fake.most_mapped == 1


def test_a_surface_is_used_again() -> None:
    fake = FakeDriver([Packet(n % 3, [n % 3]) for n in range(20)])
    _, luma, _ = decode(fake, list(range(20)))
    assert luma[:, 0, 0].tolist() == list(range(20))
    assert fake.most_mapped <= c.RING


def test_a_frame_shown_again_belongs_to_the_packet_that_shows_it() -> None:
    """VP9: a hidden picture, and a packet that only says: show it."""
    fake = FakeDriver([Packet(0, [0]), Packet(1), Packet(2, [2]), Packet(None, [1])])
    _, luma, _ = decode(fake, [0, c.UNWANTED, 1, 2], in_order=True)
    assert luma[:, 0, 0].tolist() == [0, 2, 1]


@pytest.mark.parametrize("bad", range(4))
def test_damage_is_told_even_in_frames_that_nobody_wants(bad: int) -> None:
    packets = [Packet(p.surface, p.shown, damaged=n == bad) for n, p in enumerate(REORDERED)]
    with pytest.raises(BadClip, match="1 damaged pictures"):
        decode(FakeDriver(packets), [c.UNWANTED, 0, c.UNWANTED, c.UNWANTED])


def test_damage_is_told_when_the_surface_is_used_again() -> None:
    packets = [Packet(0, [0]), Packet(1, [1], damaged=True), Packet(1, [1])]
    with pytest.raises(BadClip, match="1 damaged"):
        decode(FakeDriver(packets), [0, c.UNWANTED, 1])


@pytest.mark.parametrize("late", [False, True])
def test_the_hardware_is_waited_for_asleep(late: bool) -> None:
    """No frame is asked for before its picture is done, and few pictures are under way."""
    fake = FakeDriver([Packet(n % 7, [n % 7]) for n in range(20)], late=late, naps=3)
    _, luma, _ = decode(fake, [-1 if n % 10 else n // 10 for n in range(20)])
    assert luma[:, 0, 0].tolist() == [0, 10]
    assert 40 < fake.slept <= 60
    assert fake.most_undone == AHEAD


def test_damage_is_told_of_pictures_that_are_still_under_way() -> None:
    packets = [Packet(0, [0]), Packet(1, [1], damaged=True), Packet(1, [1])]
    with pytest.raises(BadClip, match="1 damaged"):
        decode(FakeDriver(packets, naps=2), [0, c.UNWANTED, 1])


def test_a_driver_that_reports_no_picture_as_done_is_not_waited_for_again() -> None:
    fake = FakeDriver([Packet(n % 7, [n % 7]) for n in range(20)], naps=-1)
    _, luma, _ = decode(fake, list(range(20)))
    assert luma[:, 0, 0].tolist() == list(range(20))
    assert fake.slept == c.MOST_NAPS


@pytest.mark.parametrize("missing", range(4))
@pytest.mark.parametrize("late", [False, True])
def test_no_frame_is_taken_for_another_where_one_is_missing(missing: int, late: bool) -> None:
    packets = [Packet(None if n == missing else n, [n]) for n in range(4)]
    with pytest.raises(BadClip, match="gives no picture"):
        decode(FakeDriver(packets, late=late), [0, 1, 2, 3])


def test_leading_pictures_may_be_left_out() -> None:
    packets = [Packet(0, [0]), Packet(None), Packet(2, [2])]
    _, luma, _ = decode(FakeDriver(packets), [0, c.IGNORED, 1])
    assert luma[:, 0, 0].tolist() == [0, 2]
    with pytest.raises(BadClip, match="gives no picture"):
        decode(FakeDriver(packets, late=True), [0, c.IGNORED, 1])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("sets", [0, 7])
def test_restarts_bring_the_parameter_sets_again(sets: int, late: bool) -> None:
    packets = [Packet(n, [n]) for n in range(5)]
    fake = FakeDriver(packets, late=late, sets=sets)
    _, luma, _ = decode(fake, [0, 1, 2, 3, 4], restarts=[2, 4])
    assert luma[:, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_leading_pictures_may_be_damaged() -> None:
    packets = [Packet(0, [0]), Packet(1, [1], damaged=True), Packet(2, [2])]
    _, luma, _ = decode(FakeDriver(packets), [0, c.IGNORED, 1])
    assert luma[:, 0, 0].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("fake", "error", "text"),
    [
        (FakeDriver([Packet(0, [0])], create_error=OUT_OF_MEMORY), DeviceMemoryError, "no memory"),
        (FakeDriver([Packet(0, [0])], create_error=801), BadClip, "cannot be made .CUDA error 801"),
        (FakeDriver([Packet(0, [0])], map_error=1), BadClip, "cannot be mapped"),
        (FakeDriver([Packet(0, [0], parse_error=1)]), BadClip, "cannot be parsed"),
        (FakeDriver([Packet(None)]), BadClip, "gives no picture"),
        (FakeDriver([Packet(None)], late=True), BadClip, "gives no picture"),
        (FakeDriver([Packet(0, [0], pictures=2)]), BadClip, "more than one picture"),
        (FakeDriver([Packet(0, [0], pictures=2)], late=True), BadClip, "more than one picture"),
        (FakeDriver([Packet(0)]), BadClip, "gave 0 of the 1 frames"),
        (FakeDriver([Packet(0, [0])], area=(0, 0, 32, 16)), BadClip, "another size"),
    ],
)
def test_failures_are_named(fake: FakeDriver, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        decode(fake, [0])


def test_sessions_keep_their_decoder() -> None:
    fake = FakeDriver(REORDERED)
    session = NvdecSession(fake.driver(), 4, False, 0)
    for _ in range(3):
        fake.fed = fake.ran = 0
        _, luma, _ = decode(fake, [0, 1, 2, 3], session=session)
        assert luma[:, 0, 0].tolist() == [0, 1, 2, 3]
        assert (fake.decoders, session.surfaces) == (1, 5 + c.EXTRA_SURFACES)
    session.close()
    assert (fake.decoders, session.surfaces) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_of_display(data: st.DataObject) -> None:
    """Pictures shown at any time between their decoding and the use of their surface by another."""
    count = data.draw(st.integers(1, 30))
    packets: list[Packet] = []
    held: list[int] = []
    free = list(range(6))
    for number in range(count):
        surface = free.pop(data.draw(st.integers(0, len(free) - 1)))
        held.append(surface)
        shown = []
        while held and (not free or data.draw(st.booleans())):
            shown.append(held.pop(data.draw(st.integers(0, len(held) - 1))))
            free.append(shown[-1])
        packets.append(Packet(surface, shown))
        assert number == len(packets) - 1
    late = data.draw(st.booleans())
    wanted = [n for n in range(count) if data.draw(st.booleans())] or [0]
    slots = [wanted.index(n) if n in wanted else c.UNWANTED for n in range(count)]
    _, luma, chroma = decode(FakeDriver(packets, at_end=held, late=late), slots)
    assert luma[:, -1, -1].tolist() == wanted
    assert chroma[:, -1, -1, 1].tolist() == [n + 100 for n in wanted]
