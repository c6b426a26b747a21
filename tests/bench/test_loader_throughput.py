from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from surgrec.loaders.packet_index import KEY

ROOT = Path(__file__).resolve().parents[2]


def run_script(*arguments: str | Path, folder: Path) -> tuple[int, str, list[dict]]:
    """Exit status, output and rows of bench/loader_throughput.py on given videos."""
    command = [sys.executable, ROOT / "bench" / "loader_throughput.py", "--corpora", *arguments]
    command += ["--clips", "4", "--runs", "2", "--cores", "1", "--max-seconds", "0.4", "--warmup", "0"]
    command += ["--cache", folder, "--out", folder / "results"]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=240, cwd=folder
    )
    rows = [
        entry
        for path in (folder / "results").glob("loader_throughput-*.json")
        for entry in json.loads(path.read_text())["rows"]
    ]
    return done.returncode, done.stdout + done.stderr, rows


def test_the_script_measures_and_compares_given_videos(streams, tmp_path):
    """The cpu engine and plain PyAV on a small video: same frames, two rows in the schema."""
    video = streams.make_stream("h264_default", tmp_path / "video")
    status, output, rows = run_script("--videos", video, "--engines", "cpu", "pyav", folder=tmp_path)
    assert status == 0, output
    assert [(entry["name"], entry["corpus"], entry["metric"]) for entry in rows] == [
        ("cpu", "videos", "clips_per_s"),
        ("pyav", "videos", "clips_per_s"),
    ]
    for entry in rows:
        assert 1 <= entry["runs"] <= 2
        assert 0 < entry["low"] <= entry["value"] <= entry["high"]
        assert entry["difference"] == entry["difference_but_colour"] == 0
        assert entry["clips"] >= entry["runs"]
    assert rows[0]["fed_per_s"] > 16 * rows[0]["value"] / 2  # the cpu engine tells what it fed
    assert not list(tmp_path.glob("*.npz"))


def test_the_cpu_time_of_processes_that_a_contestant_started_counts(bench_module):
    """Of one that still runs, as the cpu engine's decoding processes do, and of one that has ended."""
    team = bench_module("team")
    spin = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
    before = team.cpu_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as busy:
        busy.stdout.readline()
        running = team.cpu_seconds() - before
        busy.communicate(b"\n")
    assert running > 0.35
    assert team.cpu_seconds() - before > running - 0.05


def test_a_mixture_is_compared_with_its_parts_and_the_absent_disturb_nobody(streams, tmp_path):
    kinds = ("h264_default", "hevc_closed")
    videos = [streams.make_stream(kind, tmp_path / kind) for kind in kinds]
    engines = ("cpu", "nvdec") if not _gpu() else ("cpu",)
    status, output, rows = run_script("--videos", *videos, "--engines", *engines, folder=tmp_path)
    assert status == 0, output
    assert [entry["corpus"] for entry in rows] == [
        "videos",
        "videos/160x96-h264-8bit",
        "videos/160x96-hevc-8bit",
    ]
    assert rows[0]["share_of_parts"] > 0
    assert len(engines) == 1 or "nvdec: absent" in output


def test_what_was_measured_before_an_interrupt_is_written(bench_module, monkeypatch, tmp_path, capsys):
    script = bench_module("loader_throughput")

    def measure(args, cases, cores, gpu, rows, problems):
        rows.append(script.row("cpu", "videos", "clips_per_s", [7.0]))
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "measure_all", measure)
    line = ["loader_throughput", "--corpora", "--cache", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", line)
    assert script.main() == 130
    (path,) = tmp_path.glob("loader_throughput-*.json")
    assert [row["value"] for row in json.loads(path.read_text())["rows"]] == [7.0]
    assert "stopped" in capsys.readouterr().err


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def test_difference_tells_frames_apart(bench_module):
    script = bench_module("same_frames")
    generator = np.random.default_rng(0)
    clip = generator.integers(0, 200, (2, 32, 32, 3)).astype(np.uint8)
    assert script.difference(clip, clip) == 0
    other = clip + np.array([0, 10], np.uint8)[:, None, None, None]
    assert script.difference(clip, other) == pytest.approx(10)
    assert script.difference(clip, clip[:, :16]) == float("inf")
    assert script.difference_but_colour(clip, clip[:, :16]) == float("inf")


def test_another_colour_matrix_is_told_from_another_frame(bench_module):
    script = bench_module("same_frames")
    generator = np.random.default_rng(1)
    clip = generator.integers(40, 200, (2, 32, 32, 3)).astype(np.uint8)
    matrix = np.array([[0.95, 0.1, 0.0], [0.02, 0.9, 0.06], [0.0, 0.08, 1.0]])
    recoloured = np.clip(clip @ matrix.T + 5, 0, 255).round().astype(np.uint8)
    assert script.difference(recoloured, clip) > 3
    assert script.difference_but_colour(recoloured, clip) < 1
    assert script.difference_but_colour(clip[::-1], clip) > 20


def test_a_share_of_parts_weighs_requests_not_speeds(bench_module):
    from surgrec.loaders.clip_plan import ClipRequest

    script = bench_module("loader_throughput")
    requests = [ClipRequest(n, n % 2, (0,)) for n in range(4)]
    assert script.by_parts(requests, {0: 10.0, 1: 30.0}) == pytest.approx(15.0)


def test_speeds_add_up_over_processes(bench_module):
    script, team = bench_module("loader_throughput"), bench_module("team")
    windows = [
        [team.Window(10, 2.0, 1.0, 100), team.Window(10, 1.0, 1.0, 100)],
        [team.Window(6, 1.0, 1.0, 60)],
    ]
    assert script.speeds(windows) == [11.0]
    assert script.work(windows) == {"clips": 26, "clips_per_cpu_s": pytest.approx(8.667), "fed_per_s": 110}


def test_a_dying_or_hanging_process_is_reported(bench_module, monkeypatch):
    """The team's own processes: one is killed while it is asked, another does not answer in time."""
    team = bench_module("team")
    contestant = bench_module("contestants").CONTESTANTS["pyav"]
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    dying = team.Team("pyav", contestant, 1)
    dying._members[0][0].kill()
    with pytest.raises(team.Failed, match=r"died|Broken pipe"):
        dying.open(ROOT / "none.h5")
    assert not dying.alive
    hanging = team.Team("pyav", contestant, 1)
    monkeypatch.setattr(team, "SETUP_SECONDS", 0.0)
    with pytest.raises(team.Failed, match="no answer to 'open'"):
        hanging.open(ROOT / "none.h5")
    assert not hanging.alive


def test_measuring_counts_only_whole_batches_after_the_warm_up(bench_module):
    team = bench_module("team")
    taken = []

    def stream(requests, forever):
        assert forever
        try:
            while True:
                taken.append(1)
                yield [(request, None) for request in requests]
        finally:
            taken.append("closed")

    windows = team.measure(stream, [1, 2, 3], team.Times(0.0, 0.01, 2, 10.0))
    assert len(windows) == 2
    assert all(window.clips % 3 == 0 and window.seconds >= 0.01 for window in windows)
    assert sum(window.clips for window in windows) == 3 * (taken.count(1) - 1)
    assert taken[-1] == "closed"


def test_dali_gets_the_very_clips(bench_module, stream_corpus, tmp_path):
    from surgrec.loaders.clip_plan import ClipRequest

    gpu = bench_module("contestants_gpu")
    requests = [ClipRequest(7, 1, (10, 14, 18)), ClipRequest(8, 0, (0, 4, 8)), ClipRequest(9, 1, (3, 7, 11))]
    lines = gpu.write_file_list(stream_corpus.index, requests, tmp_path).read_text().splitlines()
    assert [line.split()[1:] for line in lines] == [["0", "10", "19"], ["1", "0", "9"], ["2", "3", "12"]]
    for line, request in zip(lines, requests, strict=True):
        assert Path(line.split()[0]).resolve() == Path(stream_corpus.index.videos.path[request.video])


def test_nv12_becomes_the_frames_that_ffmpeg_gives(bench_module, stream_corpus):
    """Planes built from FFmpeg's own NV12 and P010 pictures convert to FFmpeg's RGB within a few levels."""
    import av
    import torch

    pytest.importorskip("surgrec.kernels.nv12_crop")
    contestant, same = bench_module("contestant"), bench_module("same_frames")
    for kind, layout, most in (("h264_default", "nv12", 3), ("hevc_10bit", "p010le", 6)):
        with av.open(str(stream_corpus.paths[kind])) as container:
            frame = next(container.decode(video=0)).reformat(format=layout)
        lines = [
            np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, plane.line_size)
            for plane in frame.planes
        ]
        width = frame.width * (2 if layout == "p010le" else 1)
        picture = np.concatenate([part[:, :width] for part in lines])
        surface = torch.from_numpy(picture.copy())
        if layout == "p010le":
            surface = surface.view(torch.uint16)
        planes = contestant.nv12_planes(surface[None], stream_corpus.index, stream_corpus.video[kind])
        wanted = stream_corpus.reference(kind)[0][:1]
        assert same.difference(contestant.rgb(planes), wanted) < most


def test_the_pictures_of_a_corpus_are_the_same_each_time(bench_module):
    corpora = bench_module("corpora")
    for scene in ("tissue", "texture"):
        spec = corpora.VideoSpec(64, 48, 10, 3, 1, scene=scene)
        first, second = ([image.copy() for image in corpora.pictures(spec)] for _ in range(2))
        assert len(second) == 3
        np.testing.assert_array_equal(first[-1], second[-1])
        assert not (second[0] == second[1]).all()


def test_corpora_are_made_once_in_parallel_and_cropped_as_the_stream_says(
    bench_module, tmp_path, monkeypatch, build_index_of
):
    from surgrec.loaders.clip_plan import ClipRequest
    from surgrec.loaders.engines.cpu import CpuEngine

    corpora = bench_module("corpora")
    monkeypatch.syspath_prepend(str(ROOT / "bench"))  # for the processes
    crop = (("x264-params", "crop-rect=0,2,10,14"),)
    specs = (
        corpora.VideoSpec(128, 96, 10, 20, 2, options=crop, bt709=True),
        corpora._x265(118, 78, 10, 2, 1, "yuv420p10le"),
    )
    monkeypatch.setitem(corpora.CORPORA, "small", corpora.Corpus(specs))
    paths = corpora.make_corpora(["small"], tmp_path)["small"]
    made = [path.stat().st_mtime_ns for path in paths]
    assert corpora.make_corpora(["small"], tmp_path)["small"] == paths
    assert [path.stat().st_mtime_ns for path in paths] == made
    assert not list(tmp_path.glob("*partial*"))
    index = build_index_of(paths, tmp_path / "small.h5")
    assert [int(count) for count in index.videos.frame_count] == [40, 40]
    assert index.videos.bit_depth.tolist() == [8, 10]
    with CpuEngine(index, 1) as engine:
        clips = engine.decode([ClipRequest(0, 0, (5, 25)), ClipRequest(1, 1, (5, 25))])
    assert [clip.frames.shape for clip in clips] == [(2, 80, 118, 3), (2, 78, 118, 3)]
    for clip in clips:  # the second stretch repeats the first
        assert np.abs(clip.frames[0].astype(int) - clip.frames[1]).mean() < 1


def test_stacked_videos_are_read_by_this_project_alone(make_stacked, tmp_path):
    """Another loader would give whole pictures: it is left out with a line, which is no failure."""
    stacked = make_stacked(tmp_path, stack=4, gop=16, frames=90)
    status, output, rows = run_script("--videos", stacked.path, "--engines", "cpu", "pyav", folder=tmp_path)
    assert status == 0, output
    assert "LEFT OUT pyav on videos: it gives pictures, not the frames stacked in them" in output
    (row,) = rows
    assert (row["name"], row["difference"]) == ("cpu", 0)
    assert row["fed_per_s"] > 32 * row["value"]  # all frames of 16 pictures and more


def test_a_stacked_corpus_holds_the_frames_of_the_other(bench_module, build_index_of, tmp_path):
    from surgrec.loaders.clip_plan import ClipRequest
    from surgrec.loaders.engines.cpu import CpuEngine

    corpora = bench_module("corpora")
    specs = corpora.CORPORA["proxy16"].videos[0], corpora.CORPORA["proxy16s4"].videos[0]
    assert dataclasses.replace(specs[1], stack=1, options=specs[0].options) == specs[0]
    paths = [tmp_path / "one.mp4", tmp_path / "four.mp4"]
    for spec, path in zip(specs, paths, strict=True):
        corpora.write_video(dataclasses.replace(spec, width=96, height=64, stretch=48, repeats=2), path)
    index = build_index_of(paths, tmp_path / "corpus.h5")
    one, four = index.video(0), index.video(1)
    assert (four.stack, four.status, four.note) == (4, 0, "")
    for name in ("frame_count", "rate", "height", "width"):
        assert getattr(four, name) == getattr(one, name), name
    keys = [index.flags[index.packets(video)][index.frames(video)] & KEY for video in (0, 1)]
    assert np.flatnonzero(keys[0]).tolist() == list(range(0, 96, 16))
    assert np.flatnonzero(keys[1]).tolist() == [frame for frame in range(96) if frame % 16 < 4]
    frames = (3, 4, 17, 50, 95)
    with CpuEngine(index, 1) as engine:
        clips = engine.decode([ClipRequest(0, 0, frames), ClipRequest(1, 1, frames)])
    assert np.abs(clips[0].frames.astype(int) - clips[1].frames).mean() < 4


def test_engines_with_a_number_of_sessions(bench_module):
    contestants = bench_module("contestants")
    assert contestants.contestant_of("nvdec-14").about.endswith("14 sessions")
    assert contestants.contestant_of("hybrid-7").modules == contestants.CONTESTANTS["hybrid"].modules
    for name in ("nvdec-0", "nvdec-", "cpu-4", "nvdec-14-2"):
        assert contestants.contestant_of(name) is None
    assert [contestants.is_ours(name) for name in ("nvdec-14", "cpu-keep", "decord", "pynvvideocodec")] == [
        True,
        True,
        False,
        False,
    ]
