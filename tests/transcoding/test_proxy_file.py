"""One proxy of each kind of stream: the right frames, at their times, upright, in the right colours."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
from surgrec.loaders.clip_plan import ClipRequest, plan_clip
from surgrec.loaders.packet_index import DISPOSABLE, PacketIndex
from surgrec.loaders.packet_scan import scan_file
from surgrec.loaders.proxy_tag import read_tag

from surgrec.transcoding import proxy_file
from surgrec.transcoding.options import ProxyOptions
from surgrec.transcoding.proxy_file import ProxyError, StorageError, Task, make_proxy
from surgrec.transcoding.sources import FOREIGN, Wanted

OPTIONS = ProxyOptions(256, "25/4", 16, "h264", 16.0, "ultrafast", "cpu", "first", 8, 0.8)


def wanted(path: Path, number: int = FOREIGN) -> Wanted:
    return Wanted(str(path), number, "films", "", "", "")


def task_of(path: Path, out: Path, **options: Any) -> Task:
    return Task(wanted(path), str(out), replace(OPTIONS, **options), "cpu")


def still(share: float) -> None:
    assert 0 <= share <= 1


def test_every_kind(stream_kind: str, stream_corpus: Any, streams: ModuleType, tmp_path: Path) -> None:
    index: PacketIndex = stream_corpus.index
    video = stream_corpus.video[stream_kind]
    info = index.video(video)
    source = wanted(stream_corpus.paths[stream_kind], video)
    task = Task(source, str(tmp_path), OPTIONS, "cpu", index=str(index.path))
    record = make_proxy(task, still)
    assert record is not None
    record.check()

    # The rule of clip_plan, in exact arithmetic.
    pts = index.frame_pts(video).tolist()
    step, half = Fraction(4, 25) / Fraction(*info.time_base), Fraction(1, 2)
    grid = [step * k + half for k in range(1000) if step * k <= pts[-1] - pts[0] + half]
    expected = [max(n for n, time in enumerate(pts) if time - pts[0] <= limit) for limit in grid]
    assert record.position.tolist() == expected
    assert record.pts.tolist() == [pts[n] for n in expected]

    reference, _ = stream_corpus.reference(stream_kind)
    images, times = streams.decode_all(task.target)
    with av.open(str(task.target)) as file:
        assert len(file.streams) == 1
        stream = file.streams.video[0]
        assert stream.sample_aspect_ratio in (None, 1)
        seconds = [time * stream.time_base for time in times]
        context = stream.codec_context
        assert context.pix_fmt == "yuv420p"
        assert int(context.color_range) == 1
        assert int(context.colorspace) in (1, 5, 6)
    assert seconds == [Fraction(4, 25) * k for k in range(len(expected))]
    height, width = reference.shape[1:3]
    if stream_kind == "h264_wide_pixels":
        assert images.shape[1:3] == (96, 208)  # 160 * 4/3 is 213
        columns = (np.arange(width) + 0.5) * 208 / width
        images = images[:, :, columns.astype(int)]
    assert images.shape[1:3] == (height, width)
    numbers = [streams.read_number(image) for image in images]
    assert numbers == [streams.read_number(reference[n]) for n in expected]
    away = images.astype(int) - reference[expected]
    assert np.abs(away.mean((0, 1, 2))).max() < 1.5, "a colour matrix or range went wrong"
    if "interlaced" not in stream_kind and "wide" not in stream_kind:
        assert np.abs(away).mean() < 12

    tag = read_tag(task.target)
    assert tag is not None
    assert (tag["source"], tag["options"], tag["rate"]) == (info.xxh3, OPTIONS.digest, "25/4")
    assert os.listdir(task.target.parent) == [task.target.name]


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_proxies_are_cheap_to_read_at_random(
    codec: str, streams: ModuleType, build_index_of: Any, tmp_path: Path
) -> None:
    source = streams.make_stream("h264_default", tmp_path / "a", frames=90, size=(96, 64))
    task = task_of(source, tmp_path / "out", codec=codec, rate="0")
    assert make_proxy(task, still) is not None
    index = build_index_of([task.target], tmp_path / "proxy.h5")
    assert index.video(0).note == ""
    fed = [
        len(plan_clip(index, ClipRequest(0, 0, tuple(range(start, start + 16)))).packets)
        for start in range(48)
    ]
    # 16 wanted frames, the key frame and the Ps before them, and a P behind the last one.
    assert np.mean(fed) < 19
    assert max(fed) <= 21
    flags = index.flags[index.packets(0)]
    assert ((flags & DISPOSABLE) > 0).mean() > 0.6


def test_source_times_are_kept_at_rate_zero(streams: ModuleType, tmp_path: Path) -> None:
    source = streams.make_stream("h264_vfr", tmp_path / "a", frames=30, size=(96, 64))
    task = task_of(source, tmp_path / "out", rate="0")
    record = make_proxy(task, still)
    assert record is not None
    kind = streams.STREAM_KINDS["h264_vfr"]
    with av.open(str(task.target)) as file:
        stream = file.streams.video[0]
        times = [frame.pts * stream.time_base for frame in file.decode(stream)]
    assert times == [Fraction(kind.times(n) - kind.times(0), 1000) for n in range(30)]


def test_the_same_bytes_twice(streams: ModuleType, tmp_path: Path) -> None:
    source = streams.make_stream("h264_default", tmp_path / "a", frames=40, size=(96, 64))
    tasks = [task_of(source, tmp_path / name) for name in ("one", "two")]
    threaded = replace(tasks[1], threads=3)
    assert make_proxy(tasks[0], still) is not None
    assert make_proxy(threaded, still) is not None
    assert tasks[0].target.read_bytes() == threaded.target.read_bytes()


def test_content_area_is_cut_out(streams: ModuleType, tmp_path: Path) -> None:
    source = streams.make_stream("h264_default", tmp_path / "a", frames=8, size=(160, 96))
    task = task_of(source, tmp_path / "out", area=(32, 48, 64, 96), rate="0")
    record = make_proxy(task, still)
    assert record is not None
    assert [record.values[f"area_{edge}"] for edge in ("top", "left", "height", "width")] == [32, 48, 64, 96]
    whole, _ = streams.decode_all(source)
    part, _ = streams.decode_all(task.target)
    assert part.shape == (8, 64, 96, 3)
    assert np.abs(part.astype(int) - whole[:, 32:96, 48:144]).mean() < 12


def test_short_odd_and_turned(streams: ModuleType, tmp_path: Path) -> None:
    source = streams.make_stream("mpeg4_mp4", tmp_path / "a", frames=3, size=(98, 58))
    streams.rotate_mp4(source, 270)
    record = make_proxy(task_of(source, tmp_path / "out"), still)
    assert record is not None
    assert (record.values["width"], record.values["height"]) == (48, 80)
    assert record.values["rotation"] == 270
    assert record.position.tolist() == [0]


def test_both_fields_and_one(streams: ModuleType, tmp_path: Path) -> None:
    source = streams.make_stream("h264_interlaced", tmp_path / "a", frames=12)
    one = make_proxy(task_of(source, tmp_path / "one"), still)
    both = make_proxy(task_of(source, tmp_path / "both", fields="both"), still)
    assert one is not None
    assert both is not None
    assert (one.values["interlaced"], both.values["interlaced"]) == (3, 0)
    assert one.values["xxh3"] != both.values["xxh3"]


def refused(task: Task, message: str) -> None:
    """The video is refused with this reason, and nothing lies where its proxy would be."""
    with pytest.raises(ProxyError, match=message):
        make_proxy(task, still)
    folder = task.target.parent
    assert not folder.exists() or os.listdir(folder) == []


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    refused(task_of(tmp_path / "text.mp4", tmp_path / "out"), "no video file that FFmpeg can read")
    refused(task_of(tmp_path / "empty.mp4", tmp_path / "out"), "the file is empty")
    refused(task_of(tmp_path / "gone.mp4", tmp_path / "out"), "no such file")
    refused(task_of(tmp_path, tmp_path / "out"), "not a regular file")


def test_cut_recordings_give_what_is_whole(streams: ModuleType, tmp_path: Path) -> None:
    for kind in ("h264_mkv", "h264_ts"):
        source = streams.make_stream(kind, tmp_path / kind, frames=90)
        os.truncate(source, source.stat().st_size * 6 // 10)
        task = task_of(source, tmp_path / "out")
        record = make_proxy(task, still)
        assert record is not None
        assert 8 <= record.values["frame_count"] < 20
        images, _ = streams.decode_all(task.target)
        assert [streams.read_number(image) for image in images] == record.position.tolist()


def test_damage_in_the_middle_is_refused(streams: ModuleType, tmp_path: Path) -> None:
    source = streams.make_stream("h264_default", tmp_path / "a", frames=90)
    scanned = scan_file(source)
    packets = scanned.packets
    content = bytearray(source.read_bytes())
    for number in range(30, 40):
        at, size = int(packets.offset[number]), int(packets.size[number])
        content[at + 12 : at + size] = bytes((size - 12) * [0xA5])
    source.write_bytes(content)
    refused(task_of(source, tmp_path / "out"), "damaged data around frame")


def test_a_source_that_changed_since_it_was_indexed(
    streams: ModuleType, build_index_of: Any, tmp_path: Path
) -> None:
    source = streams.make_stream("h264_default", tmp_path / "a", frames=12, size=(96, 64))
    index = build_index_of([source], tmp_path / "corpus.h5")
    task = Task(wanted(source, 0), str(tmp_path / "out"), OPTIONS, "cpu", index=str(index.path))
    os.utime(source, (1, 1))  # the same content at another time
    assert make_proxy(task, still) is not None
    task.target.unlink()
    streams.make_stream("h264_default", tmp_path / "a", frames=13, size=(96, 64))
    refused(task, "another version than the index was made for")


def test_a_source_that_changes_meanwhile(
    streams: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = streams.make_stream("h264_default", tmp_path / "a", frames=12, size=(96, 64))
    real = proxy_file.verify_proxy

    def grow(*arguments: Any) -> Any:
        with source.open("ab") as file:
            file.write(b"more")
        return real(*arguments)

    monkeypatch.setattr(proxy_file, "verify_proxy", grow)
    refused(task_of(source, tmp_path / "out"), "changed while it was transcoded")


def test_a_bad_likeness_is_refused(streams: ModuleType, tmp_path: Path) -> None:
    source = streams.make_stream("h264_default", tmp_path / "a", frames=12, size=(96, 64))
    refused(task_of(source, tmp_path / "out", quality=51.0, min_ssim=0.95), "resembles its source too little")


def test_pictures_that_change_their_size(streams: ModuleType, tmp_path: Path) -> None:
    parts = [
        streams.make_stream("h264_ts", tmp_path / f"{width}", frames=12, size=(width, 64)).read_bytes()
        for width in (96, 128)
    ]
    source = tmp_path / "a.ts"
    source.write_bytes(b"".join(parts))
    refused(task_of(source, tmp_path / "out"), "changes its size from 96x64 to 128x64")


def test_proxies_of_proxies_are_refused(streams: ModuleType, tmp_path: Path) -> None:
    source = streams.make_stream("h264_default", tmp_path / "a", frames=8, size=(96, 64))
    first = task_of(source, tmp_path / "one")
    assert make_proxy(first, still) is not None
    refused(task_of(first.target, tmp_path / "two"), "is a proxy itself")


def test_a_foreign_file_in_the_way_stays(streams: ModuleType, tmp_path: Path) -> None:
    source = streams.make_stream("h264_default", tmp_path / "a", frames=8, size=(96, 64))
    task = task_of(source, tmp_path / "out")
    task.target.parent.mkdir(parents=True)
    task.target.write_text("precious")
    with pytest.raises(ProxyError, match="in the way, and no proxy"):
        make_proxy(task, still)
    assert task.target.read_text() == "precious"


def test_a_folder_that_cannot_be_made_stops_the_run(streams: ModuleType, tmp_path: Path) -> None:
    source = streams.make_stream("h264_default", tmp_path / "a", frames=8, size=(96, 64))
    (tmp_path / "out").write_text("a file")
    with pytest.raises((ProxyError, StorageError), match=r"directory|exists"):
        make_proxy(task_of(source, tmp_path / "out"), still)


def test_ten_bit_bt2020_becomes_bt709(tmp_path: Path, streams: ModuleType) -> None:
    kind = streams.STREAM_KINDS["h264_10bit"]
    tagged = replace(kind, options=kind.options | {"colorspace": "bt2020nc", "color_primaries": "bt2020"})
    source = tmp_path / "a.mp4"
    for container, packet in streams.encode(tagged, 12, (160, 96), source):
        container.mux(packet)
    task = task_of(source, tmp_path / "out", rate="0")
    assert make_proxy(task, still) is not None
    with av.open(str(source)) as file, av.open(str(task.target)) as made:
        assert int(file.streams.video[0].codec_context.colorspace) == 9
        context = made.streams.video[0].codec_context
        assert (int(context.colorspace), int(context.color_primaries)) == (1, 9)
    whole, _ = streams.decode_all(source)
    proxy, _ = streams.decode_all(task.target)
    assert np.abs((proxy.astype(int) - whole).mean((0, 1, 2))).max() < 1.5
