"""bench/release.py: what becomes of steps that end well, fail, hang, or are to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import tyro

ROOT = Path(__file__).resolve().parents[2]
SLEEP = "import time; print('begun', flush=True); time.sleep(60)"


@pytest.fixture
def release(bench_module: Callable[[str], ModuleType]) -> ModuleType:
    return bench_module("release")


def test_steps_side_by_side_fail_alone(release: ModuleType, tmp_path: Path, capsys) -> None:
    together = (
        release.python("well", 30, "-c", "print('this one is well')"),
        release.python("ill", 30, "-c", "import sys; print('this one is not'); sys.exit(3)"),
        release.python("slow", 2, "-c", SLEEP),
    )
    assert release.run(together, tmp_path) == ["ill", "slow"]
    shown = capsys.readouterr().out
    assert "=== ill: exit status 3" in shown
    assert "this one is well" in shown
    assert "KeyboardInterrupt" in (tmp_path / "slow.log").read_text()


def test_a_step_is_killed_once_a_file_is_there(release: ModuleType, tmp_path: Path) -> None:
    there = tmp_path / "checkpoint"
    code = f"open({str(there)!r}, 'w').close(); {SLEEP}"
    assert release.run((release.python("killed", 30, "-c", code, until=there),), tmp_path) == []
    # One that ends before has not shown what it was to show.
    gone = release.python("early", 30, "-c", "", until=tmp_path / "never")
    assert release.run((gone,), tmp_path) == ["early"]


def test_every_part_calls_what_there_is(release: ModuleType, tmp_path: Path) -> None:
    """Scripts and options of all steps: each line is read by the script's own parser."""
    args = release.Args(out=tmp_path, cache=tmp_path)
    lines = [
        step.command[1:]
        for part in release.PARTS
        if part not in ("tests", "ranks", "runs")
        for together in release.PARTS[part](args)
        for step in together
    ]
    assert len(lines) >= 8
    for script in {line[0] for line in lines}:
        options = {word for line in lines if line[0] == script for word in line if word.startswith("--")}
        shown = subprocess.run(
            [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert not [option for option in options if option not in shown], script


def test_unknown_parts_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "release.py", "everything"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "everything" in done.stderr


def test_parts_are_spread_over_gpus(
    release: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    code = "import os, sys; print(sys.argv[1:], os.environ['CUDA_VISIBLE_DEVICES'], os.sched_getaffinity(0))"

    def command(part: str, args: object) -> list[str]:
        ending = "; sys.exit(1)" if part == "ill" else ""
        return [sys.executable, "-c", code + ending, part, str(args.cache.name)]  # type: ignore[attr-defined]

    monkeypatch.setattr(release, "command_of", command)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    before = os.sched_getaffinity(0)
    args = release.Args(out=tmp_path, cache=tmp_path, gpus=2)
    assert release.spread(["one", "ill", "three"], args) == ["ill"]
    assert os.sched_getaffinity(0) == before
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("on GPU")]
    assert len(lines) == 3
    share = max(1, len(before) // 2)
    for line in lines:
        number = int(line.split()[2].rstrip(":"))
        assert f"'gpu-{number}'] {(4, 7)[number]} " in line
        assert len(line.split("{")[1].split(",")) == share


def test_gpus_that_are_not_there_are_told(
    release: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    places = ["--out", str(tmp_path), "--cache", str(tmp_path)]
    for named, seen in (("", 0), ("3", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert len(release.visible_gpus()) == seen
        monkeypatch.setattr(sys, "argv", ["release.py", "crop", "--gpus", "2", *places])
        assert release.main() == 2
        assert f"this process sees {seen}" in capsys.readouterr().err


def test_the_command_of_a_part_is_read_again(release: ModuleType, tmp_path: Path) -> None:
    args = release.Args(out=tmp_path / "o", cache=tmp_path / "c", limit=0.5)
    line = release.command_of("crop", args)
    assert line[1] == str(ROOT / "bench" / "release.py")
    found = tyro.cli(release.Args, args=line[2:])
    assert found == replace(args, parts=("crop",))
