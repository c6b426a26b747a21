"""Proxies whose pictures hold several frames, one above the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import h5py
import numpy as np
import pytest
from surgrec.configs.transcode import TranscodeConfig
from surgrec.loaders.clip_plan import ClipRequest, clip_frames
from surgrec.loaders.engines.cpu import CpuEngine
from surgrec.loaders.packet_index import KEY, PacketIndex
from surgrec.loaders.proxy_tag import read_tag

from surgrec.transcoding import proxy_file
from surgrec.transcoding.encoder import encoder_options
from surgrec.transcoding.frame_grid import make_grid
from surgrec.transcoding.geometry import make_geometry
from surgrec.transcoding.manifest import MANIFEST_NAME, open_manifest
from surgrec.transcoding.options import OptionError, ProxyOptions
from surgrec.transcoding.proxy_file import ProxyError, Task, make_proxy
from surgrec.transcoding.run import transcode
from surgrec.transcoding.sources import FOREIGN, Wanted
from surgrec.transcoding.stack import Stacker, StackError, check_lines, frame_seconds

OPTIONS = ProxyOptions(256, "25/2", 16, "h264", 16.0, "ultrafast", "cpu", "first", 8, 0.8, stack=4)


def task_of(path: Path, out: Path, **options: Any) -> Task:
    return Task(Wanted(str(path), FOREIGN, "films", "", "", ""), str(out), replace(OPTIONS, **options), "cpu")


def still(share: float) -> None:
    assert 0 <= share <= 1


def cut(streams: ModuleType, path: Path, stack: int) -> np.ndarray:
    """uint8 [N * stack, H, W, 3]: the pictures of a full decode, cut by hand."""
    images, _ = streams.decode_all(path)
    return images.reshape(-1, images.shape[1] // stack, *images.shape[2:])


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize(("frames", "stack", "gop"), [(90, 4, 16), (90, 4, 4), (59, 2, 16), (3, 8, 16)])
def test_frames_stand_one_above_the_other(
    streams: ModuleType, build_index_of: Any, tmp_path: Path, codec: str, frames: int, stack: int, gop: int
) -> None:
    source = streams.make_stream("h264_default", tmp_path / "a", frames=frames, size=(112, 64))
    task = task_of(source, tmp_path / "out", stack=stack, gop=gop, codec=codec)
    record = make_proxy(task, still)
    assert record is not None
    record.check()
    count = (frames + 1) // 2
    assert record.position.tolist() == list(range(0, frames, 2))
    assert record.time.tolist() == list(range(count))
    assert (record.values["frame_count"], record.values["stack"]) == (count, stack)
    assert (record.values["height"], record.values["width"]) == (64, 112)
    assert record.values["ssim_frames"] == min(8, count)
    assert record.values["ssim_min"] > 0.9
    images = cut(streams, task.target, stack)
    assert len(images) == -(-count // stack) * stack
    numbers = [streams.read_number(image) for image in images]
    assert numbers[:count] == list(range(0, frames, 2))
    assert set(numbers[count:]) <= {numbers[count - 1]}  # the last frame fills the last picture
    tag = read_tag(task.target)
    assert tag is not None
    assert [tag[name] for name in ("stack", "frames", "frame_height", "frame_width", "frame_seconds")] == [
        stack,
        count,
        64,
        112,
        "2/25",
    ]
    index: PacketIndex = build_index_of([task.target], tmp_path / "proxy.h5")
    info = index.video(0)
    assert (info.stack, info.frame_count, info.rate, info.note) == (stack, count, 12.5, "")
    assert info.duration == pytest.approx(count / 12.5)
    times = index.frame_pts(0) * Fraction(*info.time_base)
    assert times.tolist() == [Fraction(2, 25) * k for k in range(count)]
    keys = np.flatnonzero(index.flags[index.packets(0)][index.frames(0)] & KEY)
    assert keys.tolist() == [k for k in range(count) if k % gop < stack]


def test_clips_show_the_frames_that_the_manifest_names(
    films: Path,
    tmp_path: Path,
    config_of: Callable[..., TranscodeConfig],
    in_process: list[str],
    streams: ModuleType,
    build_index_of: Any,
) -> None:
    """The same request gives the same source frames from a stacked proxy and from the other."""
    found = []
    for stack in (1, 4):
        out = tmp_path / f"stack{stack}"
        assert transcode(config_of(films, out=out, stack=stack, gop=16, rate=12.5)).made == 3
        manifest = open_manifest(out)
        index = build_index_of([out / name for name in manifest.columns["proxy"]], out / "corpus.h5")
        assert manifest.columns["stack"].tolist() == [stack] * 3
        requests = []
        for video in range(3):
            count = int(index.videos.frame_count[video])
            for position in (0.0, 0.3, 0.7):
                for shape in ({"fps": 5.0}, {"fps": 12.5}, {"stride": 2}):
                    frames = clip_frames(index, video, 0, count, position, 5, **shape)
                    requests.append(ClipRequest(len(requests), video, frames))
        with CpuEngine(index, 1) as engine:
            clips = engine.decode(requests)
        shown = []
        for clip in clips:
            name = manifest.columns["proxy"][clip.request.video]
            positions = [manifest.source_frame(name, frame).position for frame in clip.request.frames]
            assert [streams.read_number(image) for image in clip.frames] == positions
            shown.append((name, positions))
        found.append(shown)
    assert found[0] == found[1]


def test_a_content_area_is_cut_out_before(streams: ModuleType, tmp_path: Path) -> None:
    source = streams.make_stream("h264_default", tmp_path / "a", frames=10)
    task = task_of(source, tmp_path / "out", rate="0", area=(32, 48, 64, 96))
    assert make_proxy(task, still) is not None
    whole, _ = streams.decode_all(source)
    part = cut(streams, task.target, 4)[:10]
    assert part.shape == (10, 64, 96, 3)
    assert np.abs(part.astype(int) - whole[:, 32:96, 48:144]).mean() < 12


def test_damage_towards_the_end_leaves_the_right_number_in_the_tag(
    streams: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tag is written before the damage is found: the proxy is encoded again."""
    kept = proxy_file.decode_frames

    def damaged(*given: Any) -> Iterator[tuple[Any, str]]:
        for number, (frame, _) in enumerate(kept(*given)):
            yield frame, "broken" if number >= 51 else ""

    monkeypatch.setattr(proxy_file, "decode_frames", damaged)
    source = streams.make_stream("h264_default", tmp_path / "a", frames=80, size=(96, 64))
    task = task_of(source, tmp_path / "out")
    record = make_proxy(task, still)
    assert record is not None
    assert record.position.tolist() == list(range(0, 51, 2))
    assert "damaged from frame 51 to its end" in record.values["note"]
    tag = read_tag(task.target)
    assert tag is not None
    assert tag["frames"] == record.values["frame_count"] == 26
    numbers = [streams.read_number(image) for image in cut(streams, task.target, 4)]
    assert numbers == [*range(0, 51, 2), 50, 50]


def test_times_that_are_not_even_are_refused(streams: ModuleType, tmp_path: Path) -> None:
    source = streams.make_stream("h264_vfr", tmp_path / "a", frames=30, size=(96, 64))
    with pytest.raises(ProxyError, match=r"must be evenly spaced.*--rate that is not above its .*--stack 1"):
        make_proxy(task_of(source, tmp_path / "out", rate="0"), still)
    with pytest.raises(ProxyError, match="must be evenly spaced"):
        make_proxy(task_of(source, tmp_path / "out", rate="100"), still)
    assert make_proxy(task_of(source, tmp_path / "out", rate="10"), still) is not None


def test_a_run_goes_on_behind_a_refused_source(
    films: Path, config_of: Callable[..., TranscodeConfig], in_process: list[str]
) -> None:
    report = transcode(config_of(films, stack=4, rate=0))
    assert (report.made, [Path(failure.path).name for failure in report.failures]) == (2, ["three.mp4"])
    assert "must be evenly spaced" in report.failures[0].reason


def test_even_times() -> None:
    even = make_grid(np.arange(0, 50, 5), Fraction(1, 100), 20.0, Fraction(0))
    assert frame_seconds(even, 20.0) == Fraction(1, 20)
    grid = make_grid(np.arange(0, 500, 4), Fraction(1, 100), 25.0, Fraction(25, 4))
    assert frame_seconds(grid, 25.0) == Fraction(4, 25)
    alone = make_grid(np.array([3]), Fraction(1, 100), 25.0, Fraction(0))
    assert frame_seconds(alone, 25.0) == Fraction(4, 100)
    with pytest.raises(StackError, match=r"not above its 20.4 frames/s"):
        frame_seconds(make_grid(np.array([0, 5, 11]), Fraction(1, 100), 20.4, Fraction(0)), 20.4)


def test_pictures_that_are_too_tall(streams: ModuleType, tmp_path: Path) -> None:
    geometry = make_geometry(1080, 1920, (1, 1), 0, 272)
    check_lines(geometry, 15, "h264")
    check_lines(geometry, 16, "hevc")
    with pytest.raises(
        StackError, match=r"480x272 have 4352 lines.*4096.*--stack or --short-side, or --codec"
    ):
        check_lines(geometry, 16, "h264")
    tall = make_geometry(1920, 1080, (1, 1), 0, 512)
    with pytest.raises(StackError, match=r"8192 can be decoded\. Give a smaller --stack or --short-side\.$"):
        check_lines(tall, 16, "hevc")
    check_lines(make_geometry(8000, 1000, (1, 1), 0, 1008), 1, "h264")  # what was allowed stays allowed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stack": 0}, "--stack 0: 1"),
        ({"stack": 17}, "--stack 17: 1"),
        ({"stack": 3, "gop": 16}, "--gop 16: a multiple of --stack 3"),
        ({"stack": 4, "gop": 2}, "--gop 2: a multiple of --stack 4"),
        ({"stack": 3}, "--gop 16: a multiple of --stack 3"),
        ({"gop": -1}, "--gop -1: 1 to 1000"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ProxyOptions.of(TranscodeConfig(**options))


def test_defaults_and_digests() -> None:
    """Without stacks nothing changes: proxies of before stay up to date."""
    plain = ProxyOptions.of(TranscodeConfig())
    assert (plain.gop, plain.stack, plain.gop_pictures) == (16, 1, 16)
    assert plain.digest == "987d1f14c04c085e"
    assert "stack" not in plain.to_json()
    assert ProxyOptions.from_json(plain.to_json()) == plain
    for stack, gop in ((2, 16), (4, 4), (8, 8), (16, 16)):
        options = ProxyOptions.of(TranscodeConfig(stack=stack))
        assert (options.gop, options.digest == plain.digest) == (gop, False)
        assert ProxyOptions.from_json(options.to_json()) == options
    asked = ProxyOptions.of(TranscodeConfig(stack=4, gop=32))
    assert (asked.gop, asked.gop_pictures) == (32, 8)


@pytest.mark.parametrize(
    ("stack", "gop", "g", "bf"), [(1, 16, 16, 3), (1, 3, 3, 2), (4, 16, 4, 1), (4, 4, 1, 0)]
)
@pytest.mark.parametrize("name", ["libx264", "libx265", "h264_nvenc"])
def test_encoders_count_pictures(name: str, stack: int, gop: int, g: int, bf: int) -> None:
    options = encoder_options(name, replace(OPTIONS, stack=stack, gop=gop))
    assert (options["g"], options["bf"]) == (str(g), str(bf))


def test_a_stack_costs_no_quality(streams: ModuleType, tmp_path: Path) -> None:
    """Encoders give pictures that are shown for longer more bits: they are not told that these are."""
    source = streams.make_stream("h264_default", tmp_path / "a", frames=48, size=(96, 64))
    sizes = {}
    for stack, gop in ((1, 1), (4, 4), (8, 8)):
        record = make_proxy(task_of(source, tmp_path / f"out{stack}", stack=stack, gop=gop, rate="0"), still)
        assert record is not None
        sizes[stack] = record.values["bytes"]
    assert 0.8 < sizes[4] / sizes[1] < 1.05
    assert 0.8 < sizes[8] / sizes[1] < 1.05


def test_older_manifests_know_no_stacks(
    films: Path, tmp_path: Path, config_of: Callable[..., TranscodeConfig], in_process: list[str]
) -> None:
    transcode(config_of(films))
    out = tmp_path / "proxies"
    with h5py.File(out / MANIFEST_NAME, "r+") as file:
        del file["proxies"]["stack"]
    assert open_manifest(out).columns["stack"].tolist() == [1, 1, 1]
    assert transcode(config_of(films)).unchanged == 3


def test_a_stacker_gives_whole_pictures_and_the_rest() -> None:
    stacker = Stacker(3)
    pictures = []
    for number in range(4):
        frame = av.VideoFrame.from_ndarray(np.full((48, 16), 10 * number, np.uint8), format="yuv420p")
        pictures.append(stacker.add(frame))
    assert [picture is not None for picture in pictures] == [False, False, True, False]
    whole, rest = pictures[2].to_ndarray(), stacker.rest().to_ndarray()
    assert whole.shape == rest.shape == (144, 16)
    luma = [image[:96].reshape(3, 32, 16) for image in (whole, rest)]
    assert [np.unique(part).tolist() for part in luma[0]] == [[0], [10], [20]]
    assert [np.unique(part).tolist() for part in luma[1]] == [[30], [30], [30]]
    assert np.unique(rest).tolist() == [30]
    assert Stacker(3).rest() is None
    single = Stacker(1)
    assert single.add(frame) is frame
    assert single.rest() is None
