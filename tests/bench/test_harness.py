from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Args:
    videos: tuple[Path, ...]
    clips: int = 3


def test_results_follow_the_schema_and_are_never_overwritten(bench_module, tmp_path):
    harness = bench_module("harness")
    rows = [harness.row("cpu", "480g250", "clips_per_s", [3.0, 1.0, 2.0], cores=1)]
    first = harness.write_results("bench/some_speed.py", Args((Path("a.mp4"),)), rows, tmp_path)
    second = harness.write_results("bench/some_speed.py", Args(()), rows, tmp_path)
    assert first != second
    assert second.stem == first.stem + "-2"
    content = json.loads(first.read_text())
    assert {"bench", "date", "commit", "device", "cpus", "versions", "args", "rows"} <= set(content)
    assert content["bench"] == "some_speed"
    assert content["args"] == {"videos": ["a.mp4"], "clips": 3}
    expected = {"name": "cpu", "corpus": "480g250", "metric": "clips_per_s", "value": 2.0, "low": 1.0}
    assert content["rows"] == [expected | {"high": 3.0, "runs": 3, "cores": 1}]
    assert content["versions"]["numpy"] != "absent"


def test_repeat_leaves_the_warm_up_out(bench_module):
    values = iter([100.0, 1.0, 2.0, 3.0])
    assert bench_module("harness").repeat(lambda: next(values), warmup=1, runs=3) == [1.0, 2.0, 3.0]


def test_rows_without_a_run_are_refused(bench_module):
    with pytest.raises(ValueError, match="no run"):
        bench_module("harness").row("cpu", "480g250", "clips_per_s", [])


def test_a_missing_package_is_named_as_absent(bench_module):
    assert bench_module("harness").versions(["surely-not-installed"])["surely-not-installed"] == "absent"


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("1500, 1700, 301.5\n1600, 1700, 99.5\n1700, 1800, 400\n15", (1600, 1700, 301.5)),
        ("[N/A], 1700, 300\n", None),
        ("", None),
    ],
)
def test_clocks_are_the_median_of_what_nvidia_smi_says(
    bench_module, tmp_path, monkeypatch, printed, expected
):
    tool = tmp_path / "nvidia-smi"
    (tmp_path / "printed").write_text(printed)
    tool.write_text(f"#!/bin/sh\ncat {tmp_path / 'printed'}\ntouch {tmp_path / 'done'}\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with bench_module("gpu_clocks").gpu_clocks() as clocks:
        for _ in range(1000):
            if (tmp_path / "done").exists():
                break
            time.sleep(0.01)
    names = ("video_mhz", "sm_mhz", "watts")
    assert clocks == ({} if expected is None else dict(zip(names, expected, strict=True)))


def test_no_clocks_without_nvidia_smi(bench_module, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with bench_module("gpu_clocks").gpu_clocks() as clocks:
        pass
    assert clocks == {}
