"""Stacked proxies: each frame of a picture is known, at its time, and a tag that does not fit is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.configs.data import DataConfig
from surgrec.kernels.planes import Planes
from surgrec.loaders.clip_plan import ClipRequest, ClipTooLong, clip_frames, plan_clip
from surgrec.loaders.clip_source import ClipSource
from surgrec.loaders.engines.base import BadClip, DecodedClip
from surgrec.loaders.engines.cpu import CpuEngine
from surgrec.loaders.engines.cpu_processes import CpuProcesses
from surgrec.loaders.engines.pixels import PlaneArrays, PlaneWriter, RgbWriter
from surgrec.loaders.engines.sequential import SequentialReader
from surgrec.loaders.packet_index import ERROR, KEY, OK, PacketIndex
from surgrec.loaders.packet_scan import scan_file
from surgrec.loaders.picture_bytes import picture_bytes
from surgrec.loaders.proxy_tag import read_tag
from surgrec.loaders.segments import cut_segments
from surgrec.loaders.stacking import Stacking, stacking_of, tag_values
from surgrec.loaders.video_stream import UnusableVideoError, VideoStream

EXAMPLES = settings(max_examples=30, deadline=None, database=None)
CPU = torch.device("cpu")
KINDS = {
    "four": {"stack": 4, "gop": 16},
    "all-keys": {"stack": 8, "gop": 8, "frames": 41},
    "hevc": {"stack": 2, "gop": 16, "frames": 44, "codec": "hevc"},
}


@pytest.fixture(scope="module", params=KINDS)
def stacked(request, make_stacked, tmp_path_factory) -> Any:
    return make_stacked(tmp_path_factory.mktemp("stacked"), **KINDS[request.param])


@pytest.fixture(scope="module")
def four(make_stacked, tmp_path_factory) -> Any:
    return make_stacked(tmp_path_factory.mktemp("four"), **KINDS["four"])


@pytest.fixture(scope="module", params=[True, False], ids=["dropping", "keeping"])
def engine(request, stacked) -> Iterator[CpuEngine]:
    with CpuEngine(stacked.index, threads=1, drop_disposable=request.param) as made:
        yield made


@st.composite
def positions(draw: st.DrawFn, count: int) -> tuple[int, ...]:
    """Display positions: a stride, or any non-decreasing ones with repeats."""
    if draw(st.booleans()):
        stride = draw(st.integers(1, 6))
        first = draw(st.integers(0, count - 1))
        length = draw(st.integers(1, min(16, 1 + (count - 1 - first) // stride)))
        return tuple(range(first, first + length * stride, stride))
    return tuple(sorted(draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=10))))


def test_the_index_counts_frames(stacked, streams):
    index, stack = stacked.index, stacked.stack
    ours, plain = index.video(0), index.video(1)
    assert (ours.status, ours.note) == (OK, "")
    assert (ours.stack, plain.stack, plain.frame_ticks) == (stack, 1, 0)
    for name in ("frame_count", "width", "height", "time_base", "rate", "duration", "start_pts"):
        assert getattr(ours, name) == getattr(plain, name), name
    assert ours.picture_height == stack * plain.height == ours.coded_height
    assert ours.packet_count == -(-ours.frame_count // stack)
    np.testing.assert_array_equal(index.frame_pts(0), index.frame_pts(1))
    shown = index.packets(0).start + index.frames(0).astype(int)
    np.testing.assert_array_equal(index.rank[shown], np.arange(ours.frame_count) // stack)
    assert [streams.read_number(image) for image in stacked.images] == list(range(ours.frame_count))


@EXAMPLES
@given(data=st.data())
def test_any_request_is_exact(stacked, engine, data):
    frames = data.draw(positions(len(stacked.images)))
    (clip,) = engine.decode([ClipRequest(0, 0, frames)])
    assert isinstance(clip, DecodedClip), clip
    np.testing.assert_array_equal(clip.frames, stacked.images[list(frames)])
    assert clip.decoded_frames == clip.fed_packets * stacked.stack


def test_planes_of_processes(stacked):
    """Only the frames that are wanted leave the process, each once."""
    asked = [
        ClipRequest(n, 0, frames) for n, frames in enumerate(((0, 3, 3, 5, 40), (7,), tuple(range(9, 25))))
    ]
    with CpuProcesses(stacked.index, CPU, threads=1) as engine:
        clips = engine.decode(asked)
    for clip, request in zip(clips, asked, strict=True):
        assert isinstance(clip, DecodedClip), clip
        assert isinstance(clip.frames, Planes)
        assert len(clip.frames.planes[0]) == len(set(request.frames))
        for found, wanted in zip(clip.frames.planes, stacked.planes, strict=True):
            np.testing.assert_array_equal(found[list(clip.frames.rows)].numpy(), wanted[list(request.frames)])


@EXAMPLES
@given(data=st.data())
def test_planes_of_any_rows(four, data):
    """The writer alone: pictures come in any order, as decoders may give them."""
    frames = data.draw(positions(len(four.images)))
    with av.open(str(four.path)) as container:
        pictures = list(container.decode(video=0))
    writer = PlaneWriter(lambda layouts: [np.empty(shape, kind) for shape, kind in layouts])
    clip = writer.start(ClipRequest(0, 0, frames).places(four.stack), four.stack, 0)
    wanted: dict[int, list[int]] = {}
    for row, frame in enumerate(frames):
        wanted.setdefault(frame // four.stack, []).append(row)
    for picture in data.draw(st.permutations(sorted(wanted))):
        clip.add(pictures[picture], wanted[picture])
    arrays = clip.finish()
    assert isinstance(arrays, PlaneArrays)
    assert (arrays.height, arrays.width) == four.images.shape[1:3]
    for found, plane in zip(arrays.arrays, four.planes, strict=True):
        np.testing.assert_array_equal(found[list(arrays.rows)], plane[list(frames)])


@pytest.mark.parametrize("writer", [RgbWriter(), PlaneWriter(lambda layouts: [])])
def test_a_picture_of_another_height_is_refused(four, writer):
    with av.open(str(four.path)) as container:
        picture = next(container.decode(video=0))
    with pytest.raises(BadClip, match="does not hold 7 frames"):
        writer.start((0,), 7, 0).add(picture, [0])


@EXAMPLES
@given(data=st.data())
def test_clips_in_time_are_those_of_the_unstacked_proxy(stacked, data):
    index, count = stacked.index, len(stacked.images)
    start = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(start + 1, count))
    position = data.draw(st.floats(0, 1, exclude_max=True))
    if data.draw(st.booleans()):
        shape = {"fps": data.draw(st.sampled_from([2.0, 3.3, 7.5, 12.5, 25.0, 29.97, 60.0]))}
    else:
        shape = {"stride": data.draw(st.integers(1, 3))}
    frames = data.draw(st.integers(1, 6))
    at_key = data.draw(st.booleans())
    found: list[Any] = []
    for video in (0, 1):
        try:
            found.append(clip_frames(index, video, start, end, position, frames, at_key=at_key, **shape))
        except ClipTooLong:
            found.append(None)
    assert found[0] == found[1]


def test_segments_and_shared_decodes_are_those_of_the_unstacked_proxy(stacked, build_index_of, tmp_path):
    index = stacked.index
    for seconds in (0.2, 0.37, 1.0):
        cuts = [cut_segments(index, seconds, 2, stride=1, videos=[video])[0] for video in (0, 1)]
        np.testing.assert_array_equal(cuts[0].start, cuts[1].start)
        np.testing.assert_array_equal(cuts[0].end, cuts[1].end)
    alone = [build_index_of([Path(path)], tmp_path / f"{n}.h5") for n, path in enumerate(index.videos.path)]
    for options in ({}, {"clips_per_decode": 3}, {"start": "key", "fps": 12.5}):
        data = DataConfig(frames=4, stride=1, segment_seconds=0.7, size=32, **options)
        sources = [ClipSource(one, data, seed=3, global_batch=4) for one in alone]
        asked = [source.requests(0, 40) for source in sources]
        assert asked[0] == asked[1]


def test_clips_that_start_at_keys_begin_with_the_first_frame_of_a_picture(four):
    starts = {
        clip_frames(four.index, 0, 0, 45, position, 4, stride=1, at_key=True)[0]
        for position in np.arange(0, 1, 0.02)
    }
    assert starts == {0, 16, 32}
    keys = four.index.flags[four.index.packets(0)][four.index.frames(0)] & KEY
    assert keys[list(starts)].all()


def test_fewer_pictures_are_fed(four):
    """16 frames are in 4 or 5 pictures; the unstacked proxy has them in 16 packets and more."""
    fed = [
        [len(plan_clip(four.index, ClipRequest(0, v, tuple(range(n, n + 16)))).packets) for v in (0, 1)]
        for n in range(28)
    ]
    ours, plain = np.mean(fed, axis=0)
    assert ours < plain / 2.5
    assert fed[0][0] == 4


def test_memory_counts_whole_pictures_on_a_gpu(four):
    frame = 96 * 64
    request = ClipRequest(0, 0, (3, 4, 4, 9))  # pictures 0, 1 and 2
    assert picture_bytes(four.index, request, torch.device("cuda", 0)) == 3 * 4 * frame * 3 // 2
    assert picture_bytes(four.index, request, CPU) == 4 * frame * 3
    plain = ClipRequest(0, 1, (3, 4, 4, 9))
    assert picture_bytes(four.index, plain, torch.device("cuda", 0)) == 4 * frame * 3 // 2


def test_no_decoding_from_the_start(four):
    with pytest.raises(BadClip, match="stacked frames cannot be decoded from the start"):
        SequentialReader(RgbWriter()).decode(ClipRequest(0, 0, (0,)), four.index.video(0), None)


def retagged(four: Any, folder: Path, old: bytes, new: bytes) -> Path:
    """A copy with other words in its tag, of the same length."""
    assert len(old) == len(new)
    content = four.path.read_bytes()
    assert content.count(old) == 1
    copy = folder / "copy.mp4"
    copy.write_bytes(content.replace(old, new))
    return copy


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"frames": 45', b'"frames": 46', ""),
        (b'"frames": 45', b'"frames": 48', ""),
        (b'"frames": 45', b'"frames": 49', "12 pictures, which cannot hold its 49 frames"),
        (b'"frames": 45', b'"frames": 40', "12 pictures, which cannot hold its 40 frames"),
        (b'"stack": 4', b'"stack": 2', "pictures are 96x256, not 2 frames of 96x64"),
        (b'"stack": 4', b'"stack": 0', "tag is damaged"),
        (b'"frame_height": 64', b'"frame_height": 48', "not 4 frames of 96x48"),
        (b'"frame_width": 96', b'"frame_width": 64', "not 4 frames of 64x64"),
        (b'"frame_seconds": "1/25"', b'"frame_seconds": "1/50"', "not 4 x 1/50 s apart"),
        (b'"frame_seconds": "1/25"', b'"frame_seconds": "1/xx"', "tag is damaged"),
        (b'"frame_seconds": "1/25"', b'"frame_secondz": "1/25"', "tag is damaged"),
    ],
)
def test_tags_that_do_not_fit(four, tmp_path, old, new, reason):
    values = scan_file(retagged(four, tmp_path, old, new)).row.values
    if reason:
        assert values["status"] == ERROR
        assert reason in values["reason"]
        assert values["reason"].endswith("transcode its source again")
    else:
        assert (values["status"], values["frame_count"]) == (OK, int(new[-2:]))


def test_a_turned_copy_is_refused(four, streams, tmp_path):
    copy = Path(shutil.copy(four.path, tmp_path / "turned.mp4"))
    streams.rotate_mp4(copy, 90)
    values = scan_file(copy).row.values
    assert values["status"] == ERROR
    assert "asked to turn it by 90 degrees" in values["reason"]


def remuxed(four: Any, path: Path, first: int = 0) -> Path:
    """The packets from number `first` on in another file, with the same comment, as FFmpeg copies it."""
    with av.open(str(four.path)) as source, av.open(str(path), "w") as target:
        target.metadata["comment"] = source.metadata["comment"]
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None and number >= first:
                packet.stream = stream
                target.mux(packet)
    return path


def test_copies_by_other_tools(four, tmp_path):
    """A copy is as good as the file; what is cut off its start would move all frames."""
    again = remuxed(four, tmp_path / "copy.mp4")
    assert read_tag(again) == read_tag(four.path)
    values = scan_file(again).row.values
    assert (values["status"], values["stack"], values["frame_count"]) == (OK, 4, 45)
    values = scan_file(remuxed(four, tmp_path / "cut.mp4", first=4)).row.values
    assert values["status"] == ERROR
    assert "8 pictures, which cannot hold its 45 frames" in values["reason"]
    # Matroska counts milliseconds: 160 of them from picture to picture, and 40 from frame to frame.
    values = scan_file(remuxed(four, tmp_path / "copy.mkv")).row.values
    assert (values["status"], values["stack"], values["rate"]) == (OK, 4, 25.0)


def stream_of(**changed: Any) -> VideoStream:
    values = {"height": 256, "width": 96, "rotation": 0, "sar_num": 1, "sar_den": 1, "pix_fmt": "yuv420p"}
    tag = changed.pop("tag", tag_values(4, 10, 64, 96, Fraction(1, 25)))
    time_base = changed.pop("time_base", (1, 100))
    return VideoStream(0, "h264", False, "mp4", b"", time_base, 3, 6.25, 0.48, tag, values | changed)


def test_what_stacking_is_made_of():
    pts = np.array([7, 23, 39])
    found = stacking_of(stream_of(), pts)
    assert found == Stacking(4, 10, 64, 4)
    assert found.times(pts).tolist() == [7, 11, 15, 19, 23, 27, 31, 35, 39, 43]
    assert found.display(np.array([0, 2, 1], np.uint32)).tolist() == [0, 0, 0, 0, 2, 2, 2, 2, 1, 1]
    assert stacking_of(stream_of(tag=None), pts) is None
    assert stacking_of(stream_of(tag={"source": "a proxy that is not stacked"}), pts) is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"sar_num": 4, "sar_den": 3}, "pixels are not square"),
        ({"pix_fmt": "yuv420p10le"}, "pixel format is yuv420p10le"),
        ({"rotation": 180}, "turn it by 180 degrees"),
        ({"height": 252}, "pictures are 96x252"),
        ({"time_base": (1, 30)}, "time base cannot count 1/25 s"),
        ({"tag": {"stack": 4}}, "tag is damaged"),
        ({"tag": tag_values(17, 10, 64, 96, Fraction(1, 25))}, "tag is damaged"),
        ({"tag": tag_values(4, 10, 63, 96, Fraction(1, 25))}, "tag is damaged"),
        ({"tag": tag_values(4, 10, 64, 96, Fraction(0))}, "tag is damaged"),
        ({"tag": tag_values(4, 10, 64, 96, Fraction(1, 25)) | {"stack": None}}, "tag is damaged"),
        ({"tag": tag_values(4, 10, 64, 96, Fraction(1, 25)) | {"stack": [4]}}, "tag is damaged"),
    ],
)
def test_streams_that_are_refused(changed, reason):
    with pytest.raises(UnusableVideoError, match=reason):
        stacking_of(stream_of(**changed), np.array([0, 16, 32]))


def test_an_uneven_picture_is_refused():
    with pytest.raises(UnusableVideoError, match="not 4 x 1/25 s apart"):
        stacking_of(stream_of(), np.array([0, 16, 33]))


def test_a_stacked_video_without_random_access_is_refused(four, monkeypatch):
    from surgrec.loaders import packet_scan

    kept = packet_scan._classify
    monkeypatch.setattr(packet_scan, "_classify", lambda *given: replace(kept(*given), reason="no order"))
    values = scan_file(four.path).row.values
    assert values["status"] == ERROR
    assert values["reason"] == "a stacked proxy without random access: no order"


def test_indexes_without_stacks_are_of_another_version(make_index: Callable[..., PacketIndex]):
    """A reader that knew no stacks would give whole pictures as frames."""
    import h5py
    from surgrec.loaders.packet_index import OtherVersionError

    old = make_index([{"frames": 3}]).path
    with h5py.File(old, "r+") as file:
        file.attrs["format_version"] = 1
    with pytest.raises(OtherVersionError, match="Write it again"):
        PacketIndex.open(old)
