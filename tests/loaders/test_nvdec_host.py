"""What NVDEC is fed, without a GPU: FFmpeg decodes the same bytes, and gives the frames that are wanted."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Callable
from typing import Any, cast

import av
import numpy as np
import pytest
import torch
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from surgrec.kernels.nv12_crop import to_rgb
from surgrec.kernels.planes import Colour, Nv12Pictures, Planes, check_planes
from surgrec.loaders.clip_plan import LEADING, START, WANTED, ClipPlan, ClipRequest, plan_clip
from surgrec.loaders.engines import nvdec_feed
from surgrec.loaders.engines.annexb import parameter_sets
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.engines.clip_reader import ClipReader
from surgrec.loaders.engines.nvcuvid import DecodeCaps
from surgrec.loaders.engines.nvdec import FORMATS, _Capabilities, colour_of, planes_of
from surgrec.loaders.engines.nvdec_callbacks import IGNORED, UNWANTED
from surgrec.loaders.engines.nvdec_feed import (
    Feed,
    FeedReader,
    RefusedClip,
    describer,
    elementary,
    slots_of,
    without_leading,
)
from surgrec.loaders.file_cache import FileCache
from surgrec.loaders.packet_index import VideoInfo

KINDS = (
    "h264_10bit",
    "h264_baseline",
    "h264_default",
    "h264_edit_list",
    "h264_fragmented",
    "h264_full_range",
    "h264_interlaced",
    "h264_intra",
    "h264_intra_refresh",
    "h264_late_start",
    "h264_many_b",
    "h264_mkv",
    "h264_open_gop",
    "h264_rotated",
    "hevc_10bit",
    "hevc_closed",
    "hevc_open_gop",
)
CLIPS = ((0, 1, 2), (0, 3, 3, 7, -1), (30, 31, 31, 45), (2, 40, 79), (-1,))
"""Display positions; those below zero count from the end."""


@dataclasses.dataclass
class Clip:
    """A clip as NVDEC gets it."""

    info: VideoInfo
    plan: ClipPlan
    feed: Feed

    def packets(self) -> list[bytes]:
        feed = self.feed
        ends = (feed.places + feed.sizes).tolist()
        return [feed.data[a:b].tobytes() for a, b in zip(feed.places.tolist(), ends, strict=True)]


def clip_of(reader: ClipReader, request: ClipRequest) -> Clip:
    """The feed of a request, and the plan that ClipReader makes for it."""
    info = reader.info(request)
    plan = plan_clip(reader.index, request, reader.drop_disposable)
    return Clip(info, plan, read_feed(FeedReader(reader, describer(reader.index)), reader, request))


def read_feed(feeds: FeedReader, reader: ClipReader, request: ClipRequest) -> Feed:
    with reader.open_unseen(request, reader.info(request)) as descriptor:
        return feeds.read(request, descriptor)


@pytest.fixture(scope="module")
def feed_of(stream_corpus) -> Callable[..., Clip]:
    """feed_of(kind, frames, drop_disposable=True), as the engine's threads read it."""
    files = FileCache(64)
    readers = {drop: ClipReader(stream_corpus.index, files, drop) for drop in (False, True)}

    def feed(kind: str, frames: tuple[int, ...], drop_disposable: bool = True) -> Clip:
        return clip_of(readers[drop_disposable], ClipRequest(0, stream_corpus.video[kind], frames))

    return feed


def raw_decoder(codec: str) -> VideoCodecContext:
    """FFmpeg's decoder with nothing from a container: start codes and parameter sets come with the data."""
    decoder = cast(VideoCodecContext, av.CodecContext.create(cast(Any, codec), "r"))
    decoder.thread_count = 1
    if codec == "h264":
        decoder.options = {"strict": "1"}  # full reordering depth: else it would guess, and drop frames
    return decoder


def pictures_of(decoder: VideoCodecContext, fed: Clip) -> dict[int, VideoFrame]:
    """Slot -> frame, as NvdecSession.decode fills them: a picture is known by its packet."""
    found: dict[int, VideoFrame] = {}
    slots = fed.feed.slots

    def take(frames: list[VideoFrame]) -> None:
        for frame in frames:
            assert frame.pts is not None
            if slots[frame.pts] >= 0:
                assert not frame.is_corrupt
                assert found.setdefault(int(slots[frame.pts]), frame) is frame

    for number, content in enumerate(fed.packets()):
        if fed.feed.restarts[number] and number:
            take(decoder.decode(None))
            decoder.flush_buffers()
        packet = Packet(content)
        packet.pts = number
        try:
            take(decoder.decode(packet))
        except av.error.InvalidDataError:
            assert slots[number] == IGNORED
    take(decoder.decode(None))
    decoder.flush_buffers()
    return found


def positions(frames: tuple[int, ...], count: int) -> tuple[int, ...]:
    return tuple(frame % count for frame in frames)


def upright(frame: VideoFrame, rotation: int) -> NDArray[np.uint8]:
    image = frame.to_ndarray(format="rgb24", threads=1)
    return np.rot90(image, -rotation // 90) if rotation else image


@pytest.mark.parametrize("drop_disposable", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_raw_decoder_gives_the_wanted_frames(stream_corpus, feed_of, kind, drop_disposable):
    """One decoder for all clips, as a session is: each clip brings its parameter sets along."""
    images = stream_corpus.reference(kind)[0]
    decoder = raw_decoder(stream_corpus.index.video(stream_corpus.video[kind]).codec)
    for clip in CLIPS:
        frames = positions(clip, len(images))
        fed = feed_of(kind, frames, drop_disposable)
        rows = fed.feed.rows.tolist()
        found = pictures_of(decoder, fed)
        assert sorted(found) == list(range(len(set(frames))))
        assert len(rows) == len(frames)
        for row, frame in zip(rows, frames, strict=True):
            np.testing.assert_array_equal(upright(found[row], fed.info.rotation), images[frame])


def test_one_decoder_takes_videos_in_turn(stream_corpus, feed_of):
    """Sessions are shared by videos whose parameter sets have the same numbers and say different things."""
    decoder = raw_decoder("h264")
    for kind in ("h264_many_b", "h264_intra", "h264_baseline", "h264_mkv", "h264_many_b"):
        images = stream_corpus.reference(kind)[0]
        fed = feed_of(kind, (20, 25))
        rows = fed.feed.rows.tolist()
        found = pictures_of(decoder, fed)
        for row, frame in zip(rows, (20, 25), strict=True):
            np.testing.assert_array_equal(upright(found[row], 0), images[frame])


@pytest.mark.parametrize("kind", ["h264_default", "hevc_open_gop"])
def test_only_the_first_packet_has_the_parameter_sets(feed_of, kind):
    fed = feed_of(kind, (0, 60))
    sets = parameter_sets(fed.info)
    first, *others = fed.packets()
    assert sets
    assert first.startswith(sets + b"\0\0\0\1")
    kept = fed.plan.sizes[(fed.plan.roles & LEADING) == 0]
    assert fed.feed.sizes.tolist() == [len(sets) + kept[0], *kept[1:]]
    assert fed.feed.sets == len(sets)
    assert all(packet.startswith(b"\0\0\0\1") and sets not in packet for packet in others)


@pytest.mark.parametrize("kind", ["vp8", "vp9", "av1"])
def test_codecs_without_units_are_fed_as_they_are(stream_corpus, feed_of, kind):
    fed = feed_of(kind, (0, 5, 30))
    with av.open(str(stream_corpus.paths[kind])) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    assert fed.packets() == [packets[number] for number in fed.plan.packets.tolist()]


@pytest.mark.parametrize("length_size", [1, 2, 3, 4])
def test_shorter_lengths_give_the_same_feed(length_size):
    """The same units behind lengths of any size, in two ranges with a gap between the packets."""
    sets = b"\0\0\0\1parameters"
    units = [[b"\x67abc", b"\x65" + bytes(100)], [b"\x41xyz"]]
    packets = [b"".join(len(unit).to_bytes(length_size, "big") + unit for unit in part) for part in units]
    places = np.array([0, len(packets[0]) + 3], np.int64) + len(sets)
    sizes = np.array([len(packet) for packet in packets])
    data = np.frombuffer(bytearray(sets + b"gap".join(packets)), np.uint8)
    bad, data, places, sizes = elementary(data, places, sizes, length_size, len(sets))
    with_codes = [b"".join(b"\0\0\0\1" + unit for unit in part) for part in units]
    found = [data[place : place + size].tobytes() for place, size in zip(places, sizes, strict=True)]
    assert found == [sets + with_codes[0], with_codes[1]]
    assert bad == -1


@settings(deadline=None)
@given(data=st.data())
def test_slots_name_the_packets(data):
    packets = sorted(data.draw(st.sets(st.integers(0, 60), min_size=1, max_size=20)))
    rows = data.draw(st.lists(st.sampled_from(packets), min_size=1, max_size=12))  # in display order
    leading = data.draw(st.sets(st.sampled_from(packets))) - set(rows)
    roles = [(WANTED if packet in rows else 0) | (LEADING if packet in leading else 0) for packet in packets]
    slots, found = slots_of(np.array(packets), np.array(roles, np.uint8), np.array(rows))
    assert slots.dtype == np.int64
    assert slots.flags.c_contiguous
    assert len(found) == len(rows)
    by_slot = {}
    for packet, slot in zip(packets, slots.tolist(), strict=True):
        if packet in rows:
            assert by_slot.setdefault(slot, packet) == packet
        else:
            assert slot == (IGNORED if packet in leading else UNWANTED)
    assert sorted(by_slot) == list(range(len(set(rows))))
    assert [by_slot[number] for number in found] == rows


@pytest.mark.parametrize("kind", ["h264_open_gop", "hevc_open_gop"])
def test_leading_pictures_of_an_open_group(feed_of, kind):
    """A clip that starts at an open key frame: H.264's are fed, and nobody looks at them; HEVC's are not."""
    fed = feed_of(kind, (40, 50), drop_disposable=False)
    leading = (fed.plan.roles & LEADING) != 0
    assert leading.any()
    slots = fed.feed.slots
    if kind == "h264_open_gop":
        assert len(slots) == len(fed.plan.packets)
        assert (slots[leading] == IGNORED).all()
        assert (slots[~leading] != IGNORED).all()
    else:
        assert len(slots) == (~leading).sum()
        assert (slots != IGNORED).all()
    assert fed.feed.rows.tolist() == [0, 1]


def test_a_wanted_picture_is_fed_even_if_it_leads():
    packets, roles = np.arange(4), np.array([START, LEADING, LEADING | WANTED, WANTED], np.uint8)
    kept, kept_roles = without_leading(packets, roles)
    assert kept.tolist() == [0, 2, 3]
    assert kept_roles.tolist() == roles[[0, 2, 3]].tolist()


@pytest.fixture
def copied(stream_corpus, build_index_of, tmp_path) -> Any:
    """A file of its own and its index, to be spoiled."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(stream_corpus.paths["h264_default"].read_bytes())
    index = build_index_of([path], tmp_path / "corpus.h5")
    return path, ClipReader(index, FileCache(4))


def test_a_clip_larger_than_all_before(copied):
    """The memory for a clip's bytes grows, and a small clip comes after a large one."""
    path, reader = copied
    feeds = FeedReader(reader, describer(reader.index))
    feeds._space = feeds._space[:1].copy()
    whole = read_feed(feeds, reader, ClipRequest(0, 0, tuple(range(70))))
    assert whole.data.size > whole.read_bytes > path.stat().st_size / 2
    after = read_feed(feeds, reader, ClipRequest(0, 0, (3, 5)))
    again = read_feed(FeedReader(reader, describer(reader.index)), reader, ClipRequest(0, 0, (3, 5)))
    for place, size in zip(again.places, again.sizes, strict=True):
        assert (after.data[place : place + size] == again.data[place : place + size]).all()


def test_what_cannot_be_fed_says_why(copied):
    """Each with the words of ClipReader; the descriptor stays open all the while."""
    path, reader = copied
    feeds, request = FeedReader(reader, describer(reader.index)), ClipRequest(0, 0, (30, 40))
    read_feed(feeds, reader, request)
    with pytest.raises(ValueError, match="1000 asked, the video has"):
        read_feed(feeds, reader, ClipRequest(0, 0, (3, 1000)))
    stamp = path.stat()
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    with pytest.raises(BadClip, match="another version than the index was made for"):
        read_feed(feeds, reader, request)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    read_feed(feeds, reader, request)
    content = path.read_bytes()
    plan = plan_clip(reader.index, request)
    first = int(plan.ranges[0, 0])
    path.write_bytes(content[:first] + b"\xff\xff" + content[first + 2 :])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    number = plan.packets[0]
    with pytest.raises(BadClip, match=f"packet {number} has other bytes than when it was indexed"):
        read_feed(feeds, reader, request)
    unchecked = ClipReader(reader.index, FileCache(4), check=False)
    feeds = FeedReader(unchecked, describer(reader.index))
    with pytest.raises(RefusedClip, match="lengths of NAL units are damaged, packet 0 of the clip"):
        read_feed(feeds, unchecked, request)
    second = plan.ranges[0, 0] + plan.places[1] + 20
    path.write_bytes(content[:second] + bytes(8) + content[second + 8 :])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(RefusedClip, match="bytes that no encoder writes, packet 1 of the clip"):
        read_feed(feeds, unchecked, request)
    path.write_bytes(content[: first + 2])
    with pytest.raises(BadClip, match=r"another version|the file ends"):
        read_feed(feeds, reader, request)


def test_a_read_that_fails(copied, monkeypatch):
    """A file that is cut after its version was looked at, and a disk that fails: found by pread itself."""
    _, reader = copied
    feeds, request = FeedReader(reader, describer(reader.index)), ClipRequest(0, 0, (30, 40))
    addresses = nvdec_feed._libc().copy()
    monkeypatch.setattr(nvdec_feed, "_libc", lambda: addresses)
    never = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)(lambda *_: -1)
    addresses[0] = ctypes.cast(never, ctypes.c_void_p).value
    with pytest.raises(BadClip, match="changed while it was read"):
        read_feed(feeds, reader, request)


COLOURS = {
    "h264_default": Colour("bt601", False, 8, 0),
    "h264_full_range": Colour("bt601", True, 8, 0),
    "h264_rotated": Colour("bt601", False, 8, 0),
    "h264_10bit": Colour("bt601", False, 10, 6),
    "hevc_10bit": Colour("bt601", False, 10, 6),
}


@pytest.mark.parametrize("kind", COLOURS)
def test_colours_of_nvdecs_pictures(stream_corpus, feed_of, kind):
    """With the colours said, the planes that NVDEC gives are the reference's RGB: FFmpeg packs them here."""
    images = stream_corpus.reference(kind)[0]
    fed = feed_of(kind, (33,))
    colour = colour_of(fed.info)
    assert colour == COLOURS[kind]
    decoder = raw_decoder(fed.info.codec)
    frame = pictures_of(decoder, fed)[0]
    planes = nvdec_planes(frame, colour.depth)
    image = to_rgb(Planes(planes, (0,), colour, fed.info.rotation)).numpy()[0]
    difference = image.astype(int) - images[33]
    if colour.depth == 8:
        assert np.abs(difference).max() <= 3
    else:  # FFmpeg interpolates the chroma of 10 bit: only averages agree
        h, w, _ = difference.shape
        assert np.abs(difference.reshape(h // 8, 8, w // 8, 8, 3).mean((1, 3))).mean() < 4


def nvdec_planes(frame: VideoFrame, depth: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Y, Cb, Cr [1, h, w] as NVDEC writes them: chroma interleaved, 10 bit in the upper bits of 16."""
    kind: Any = np.uint8 if depth == 8 else np.uint16
    y, cb, cr = (
        np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)[:, : plane.width]
        << (0 if depth == 8 else 16 - depth)
        for plane in frame.planes
    )
    chroma = torch.from_numpy(np.stack([cb, cr], -1)[None])
    return torch.from_numpy(y[None].copy()), chroma[..., 0], chroma[..., 1]


@pytest.mark.parametrize("pix_fmt", sorted(FORMATS))
@pytest.mark.parametrize("color_range", ["", "tv", "pc"])
def test_full_and_limited_range(stream_corpus, pix_fmt, color_range):
    info = stream_corpus.index.video(stream_corpus.video["h264_default"])
    info = dataclasses.replace(info, pix_fmt=pix_fmt, color_range=color_range, color_space="bt709")
    full = pix_fmt == "yuvj420p" or color_range == "pc"
    depth, shift = (10, 6) if pix_fmt == "yuv420p10le" else (8, 0)
    assert colour_of(info) == Colour("bt709", full, depth, shift)


@pytest.fixture(scope="module")
def stacked(make_stacked, tmp_path_factory) -> Any:
    return make_stacked(tmp_path_factory.mktemp("stacked"), stack=4, gop=16)


@settings(max_examples=30, deadline=None, database=None)
@given(frames=st.lists(st.integers(0, 44), min_size=1, max_size=12).map(sorted), drop=st.booleans())
def test_stacked_frames_are_views_of_the_pictures(stacked, frames, drop):
    """Pictures in memory as NVDEC leaves them; each row shows its own frame, and nothing is copied."""
    reader = ClipReader(stacked.index, FileCache(4), drop)
    request = ClipRequest(0, 0, tuple(frames))
    fed = clip_of(reader, request)
    info, pictures = fed.info, tuple(fed.feed.rows.tolist())
    found = pictures_of(raw_decoder("h264"), fed)
    assert sorted(found) == list(range(len({frame // 4 for frame in frames})))
    parts = [nvdec_planes(found[slot], 8) for slot in sorted(found)]
    luma = torch.cat([y for y, _, _ in parts])
    chroma = torch.cat([torch.stack([cb, cr], -1) for _, cb, cr in parts])
    assert luma.shape[1:] == (info.picture_height, info.width)
    memory = torch.zeros(Nv12Pictures.values(*luma.shape, luma.dtype), dtype=luma.dtype)
    memory[: luma.numel()] = luma.flatten()
    memory[-chroma.numel() :] = chroma.flatten()
    clip = planes_of(request, info, Nv12Pictures(memory, *luma.shape), pictures)
    assert (clip.height, clip.width) == stacked.images.shape[1:3]
    assert clip.planes[0].data_ptr() == memory.data_ptr()
    check_planes(0, clip, len(frames), torch.device("cpu"))
    for plane, wanted in zip(clip.planes, stacked.planes, strict=True):
        np.testing.assert_array_equal(plane[list(clip.rows)].numpy(), wanted[frames])
    difference = to_rgb(clip).numpy().astype(int) - stacked.images[frames]
    assert np.abs(difference).max() <= 3


def test_the_height_of_the_whole_picture_counts_for_the_gpus_limits(stacked):
    """Made without a GPU: what a GPU that decodes up to 255 lines says of 4 frames of 64."""
    info = stacked.index.video(0)
    limits = {"supported": 1, "min_width": 48, "min_height": 16, "max_width": 4096, "max_blocks": 65536}
    for most, refused in ((256, ""), (255, "h264 of 96x256")):
        caps = _Capabilities.__new__(_Capabilities)
        caps._caps = {("h264", 8): DecodeCaps(**limits, max_height=most)}
        assert caps.refusal(info) == refused
        assert caps.refusal(stacked.index.video(1)) == ""
