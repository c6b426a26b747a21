from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def test_the_script_measures_and_compares_given_videos(streams, tmp_path):
    """The cpu engine and plain PyAV on a small video: same frames, two rows in the schema."""
    video = streams.make_stream("h264_default", tmp_path / "video")
    command = [
        sys.executable,
        str(ROOT / "bench" / "loader_throughput.py"),
        "--corpora",
        "--videos",
        str(video),
    ]
    command += ["--engines", "cpu", "pyav", "--clips", "3", "--runs", "2", "--cores", "1"]
    command += ["--cache", str(tmp_path), "--out", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "results").glob("loader_throughput-*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [(entry["name"], entry["corpus"], entry["metric"]) for entry in rows] == [
        ("cpu", "videos", "clips_per_s"),
        ("pyav", "videos", "clips_per_s"),
    ]
    for entry in rows:
        assert entry["runs"] == 2
        assert 0 < entry["low"] <= entry["value"] <= entry["high"]
        assert entry["difference"] == 0


def test_difference_tells_frames_apart(bench_module):
    script = bench_module("loader_throughput")
    clip = np.zeros((2, 4, 4, 3), np.uint8)
    assert script.difference([clip], [clip]) == 0
    assert script.difference([clip], [clip + np.array([0, 10], np.uint8)[:, None, None, None]]) == 10
    assert script.difference([clip], [clip[:, :2]]) == float("inf")


def test_the_pictures_of_a_corpus_are_the_same_each_time(bench_module):
    corpora = bench_module("corpora")
    spec = corpora.VideoSpec(64, 48, 10, 3, 1)
    first, second = ([image.copy() for image in corpora.pictures(spec)] for _ in range(2))
    assert len(second) == 3
    np.testing.assert_array_equal(first[-1], second[-1])
    assert not (second[0] == second[1]).all()
