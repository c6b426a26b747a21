"""bench/loader_soak.py: what it takes for growth, and a short run of the real loader."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_growth_compares_the_end_with_the_time_after_the_warm_up(bench_module):
    script = bench_module("loader_soak")
    seconds = [float(second) for second in range(101)]
    warming = [1.0 if second < 25 else 2.0 for second in seconds]
    assert script.growth(seconds, warming, 0.25) == 0
    leaking = [2.0 + 0.01 * second for second in seconds]
    assert script.growth(seconds, leaking, 0.25) == pytest.approx(100 * (2.95 - 2.30) / 2.30)
    assert script.growth(seconds, leaking, 0.7) == pytest.approx(100 * (2.95 - 2.75) / 2.75)


@pytest.mark.parametrize(("last", "warm"), [(0, 0.25), (10, 0.25), (40, 0.4), (69, 0.69), (100, 0.7)])
def test_the_warm_up_lasts_while_sessions_are_made_but_not_for_ever(bench_module, last, warm):
    script = bench_module("loader_soak")
    seconds = [float(second) for second in range(101)]
    sessions = [1.0 + 0.01 * min(second, last) - 0.1 * (second % 10 == 3) for second in range(101)]
    assert script.warm_up(seconds, sessions) == pytest.approx(warm, abs=0.011)
    # A pool that never ends to grow is growth, wherever the warm-up ends.
    grows = script.growth(seconds, sessions, script.warm_up(seconds, sessions)) > 1
    assert grows == (last == 100)


def test_a_leak_and_a_loader_that_is_too_large_are_told(bench_module):
    script = bench_module("loader_soak")
    flat = [(float(second), 100 * second + 100, 2.0, 3.0, 0.5) for second in range(101)]
    rows, problems = script.judge(script.Args(), "cuda", [9.5, 4.5], flat)
    values = {row.metric: row.value for row in rows}
    assert not problems
    assert (values["first_start_s"], values["first_batch_s"], values["clips_per_s"]) == (9.5, 4.5, 100)
    assert (values["host_growth_percent"], values["device_gib"]) == (0, 3.0)
    leaking = [(at, clips, host + 0.001 * at, 5.0, 0.5) for at, clips, host, _, _ in flat]
    _, problems = script.judge(script.Args(), "cuda", [9.5, 4.5], leaking)
    assert len(problems) == 2
    assert "host memory grew" in problems[0]
    assert "5.00 GiB of the device" in problems[1]
    assert script.judge(script.Args(), "cpu", [9.5, 4.5], leaking)[1] == problems[:1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("soak")


def command(cache, out, clips):
    words = [sys.executable, str(ROOT / "bench" / "loader_soak.py"), "--clips", str(clips), "--batch", "4"]
    words += ["--engine", "cpu", "--device", "cpu", "--files", "12", "--copies", "3", "--size", "32"]
    words += ["--frames", "4", "--interval", "0", "--max-growth", "1000"]
    return [*words, "--cache", str(cache), "--out", str(out)]


def rows_in(out):
    (path,) = out.glob("loader_soak-*.json")
    return {entry["metric"]: entry for entry in json.loads(path.read_text())["rows"]}


def test_the_script_runs_the_loader_over_linked_files(cache, tmp_path):
    words = command(cache, tmp_path, 24)
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    videos = sorted((cache / "soak-12-3" / "videos").iterdir())
    assert len(videos) == 12
    assert len({video.stat().st_ino for video in videos}) == 3
    rows = rows_in(tmp_path)
    assert rows["clips_per_s"]["clips"] == 24
    assert rows["first_batch_s"]["value"] > 0
    assert 0.05 < rows["host_gib"]["value"] < 20


def test_what_was_measured_until_ctrl_c_is_kept(cache, tmp_path):
    words = command(cache, tmp_path, 10**8)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        looks = (line for line in process.stdout if " clips, host " in line)
        for _ in range(3):  # of both processes that the script starts
            assert next(looks)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    reached = rows_in(tmp_path)["clips_per_s"]["clips"]
    assert 0 < reached < 10**8
    assert f"stopped after {reached} of {10**8} clips" in said
