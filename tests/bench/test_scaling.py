"""bench/scaling.py on the CPU: four ranks through gloo, rows from what they find, ranks that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "scaling.py"
POOR_RANKS = """
import os, time

def fails():
    yield "begun"
    if os.environ["RANK"] == "1":
        raise ValueError("no room for 7 clips")
    time.sleep(60)

def dies():
    yield "begun"
    if os.environ["RANK"] == "1":
        os._exit(3)
    time.sleep(60)

def hangs():
    yield "begun"
    time.sleep(60)

def tells():
    yield os.environ["WORLD_SIZE"], os.environ["OMP_NUM_THREADS"], sorted(os.sched_getaffinity(0))
"""


def script(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON file of a small run on one and on four ranks; "path" is where it lies."""
    out = tmp_path_factory.mktemp("scaling")
    small = ("--cases", "demo", "--ranks", 1, 4, "--inputs", "synthetic", "--batch", 2, "--blocks", "plain")
    quick = ("--steps", 2, "--warmup", 1, "--runs", 1, "--curve", 3)
    done = script(*small, *quick, "--cache", out, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.json")
    assert list(out.iterdir()) == [path], "checkpoints are removed"
    found: dict[str, Any] = json.loads(path.read_text())
    return found | {"path": path}


def values(result: dict[str, Any], metric: str, ranks: int, parallel: str) -> list[float]:
    chosen = [row for row in result["rows"] if (row["metric"], row["corpus"]) == (metric, str(ranks))]
    return [row["value"] for row in chosen if row["parallel"] == parallel]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_four_ranks_on_the_cpu(result: dict[str, Any], parallel: str) -> None:
    (one,) = values(result, "clips_per_s", 1, "none")
    (four,) = values(result, "clips_per_s", 4, parallel)
    (speedup,) = values(result, "speedup", 4, parallel)
    assert speedup == pytest.approx(four / one)
    (share,) = values(result, "communication", 4, parallel)
    assert 0 <= share < 1
    for metric in ("save_s", "save_held_s", "load_s"):
        (seconds,) = values(result, metric, 4, parallel)
        assert seconds > 0
    (held,), (saved,) = (values(result, metric, 4, parallel) for metric in ("save_held_s", "save_s"))
    assert held <= saved
    # Without ranks that talk there is nothing to hide, and no checkpoint but with the most ranks.
    assert not values(result, "communication", 1, "none")
    assert not values(result, "save_s", 1, "none")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_losses_of_four_ranks_are_those_of_one(result: dict[str, Any], parallel: str) -> None:
    rows = {
        row["metric"]: row
        for row in result["rows"]
        if row["parallel"] == parallel and row["metric"].endswith("difference")
    }
    assert rows["loss_difference"]["value"] < 1e-5
    assert rows["norm_difference"]["value"] < 1e-4
    for row in rows.values():
        assert len(row["points"]) == 3
        assert row["points"] == pytest.approx(row["points_of_one"], rel=1e-4)
        assert row["run_to_run"] < 1e-5
        # The weights move so much that wrong gradients would show.
        assert row["points"][-1] < 0.98 * row["points"][0]


def test_projection_of_what_was_measured(
    result: dict[str, Any],
    bench_module: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    projection = bench_module("projection")
    assert projection.main(projection.Args(result["path"])) == 0
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| demo")]
    assert [(line[2], line[3]) for line in table] == [
        (parallel, gpus) for parallel in ("ddp", "fsdp") for gpus in ("4", "64", "512")
    ]
    for parallel, line in (("ddp", table[0]), ("fsdp", table[3])):
        (measured,) = values(result, "clips_per_s", 4, parallel)
        assert float(line[4].replace(",", "")) == pytest.approx(measured, abs=1)


def test_a_rank_loads_clips_and_keeps_checkpoints(
    bench_module: Callable[[str], ModuleType],
    streams: ModuleType,
    build_index_of: Callable[[list[Path], Path], Any],
    tmp_path: Path,
) -> None:
    """One rank, in this process."""
    from surgrec.training.distributed import ALONE

    work_module, ranks = bench_module("scaling_work"), bench_module("scaling_ranks")
    video = streams.make_stream("h264_default", tmp_path / "a", frames=40)
    build_index_of([video], tmp_path / "c.h5")
    work = work_module.Work("demo", 1, None, 2, ("proxy16",), False, (), tmp_path / "c.h5")
    options = work_module.Options(
        steps=1, warmup=1, runs=1, curve=0, checkpoints=2, loader_seconds=0.1, blocks="plain", folder=tmp_path
    )
    stored, loaded, speed = ranks.measure(work, options, ALONE)
    assert len(stored.save) == len(stored.load) == 2
    assert stored.bytes > 3 * 4 * 6e6  # weights and two moments of 6.8 million parameters
    assert loaded.rates[0] > 0
    assert 0 < loaded.read_bytes < video.stat().st_size
    assert speed.source == "proxy16"
    assert 0 <= speed.waits[0][0] < speed.seconds[0][0]
    assert not list(tmp_path.glob("scaling-*"))


def test_rows_are_what_was_found(bench_module: Callable[[str], ModuleType]) -> None:
    """Two ranks of 10 clips: 4 steps take 1 s on one rank, 1.25 s on two, of which 1 s without talking."""
    work, rows = bench_module("scaling_work"), bench_module("scaling_rows")
    one = work.Work("mae-vitb", 1, None, 10, ("synthetic",), True, (2,))
    two = replace(one, ranks=2, parallel="ddp")
    curve = work.Curve(2, [2.0, 1.0], [4.0, 4.0])
    kept = {
        one: [curve, work.Curve(2, [2.0, 1.001], [4.0, 4.0]), work.Speed("synthetic", [[1.0]], [[0.1]])],
        two: [
            work.Speed(None, [[0.9, 1.0]], [[0, 0]]),
            work.Bus([0.5], 2 * 10**9, 2 * 10**9, 13),
            work.Curve(2, [2.0, 1.01], [5.0, 4.0]),
            work.Speed("synthetic", [[1.2, 1.25]], [[0.0, 0.245]]),
        ],
    }
    found = {(row.corpus, row.metric): row for row in rows.rows_of(kept, "plain", 4)}
    assert found["1", "clips_per_s"].value == pytest.approx(40)
    assert found["2", "clips_per_s"].value == pytest.approx(64)
    assert found["2", "speedup"].value == pytest.approx(1.6)
    assert found["2", "communication"].value == pytest.approx(0.2)
    assert found["2", "data_wait"].value == pytest.approx(0.1)
    assert found["2", "rank_spread"].value == pytest.approx(0.05 / 0.95)
    assert found["2", "bus_gb_s"].value == pytest.approx(4)
    assert found["2", "loss_difference"].value == pytest.approx(0.01)
    assert found["2", "loss_difference"].extra["run_to_run"] == pytest.approx(0.001 / 1.001)
    assert found["2", "norm_difference"].value == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("target", "limit", "reason"),
    [
        ("fails", 60, "rank 1: ValueError: no room for 7 clips"),
        ("dies", 60, "rank 1 died, exit code 3"),
        ("hangs", 3, "nothing was heard for 3 s"),
    ],
)
def test_a_rank_that_fails_ends_its_group(
    bench_module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    target: str,
    limit: float,
    reason: str,
) -> None:
    group = bench_module("rank_group")
    (tmp_path / "poor_ranks.py").write_text(POOR_RANKS)
    monkeypatch.syspath_prepend(tmp_path)
    import poor_ranks

    heard = []
    with pytest.raises(group.GroupError, match=reason):
        heard.extend(group.hear(getattr(poor_ranks, target), 2, 2, limit))
    told = list(group.hear(poor_ranks.tells, 2, 2, 60))
    (size, threads, cores) = told[0]
    assert (size, threads) == ("2", str(len(cores)))
    assert len(cores) == max(1, len(os.sched_getaffinity(0)) // 2)
    monkeypatch.delitem(sys.modules, "poor_ranks")


def test_cores_are_divided_by_the_most_ranks(
    bench_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = bench_module("rank_group")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 8, 9, 10, 11})
    assert [group.cores_of(rank, 4) for rank in range(4)] == [(0, 1), (2, 3), (8, 9), (10, 11)]
    assert group.cores_of(0, 1) == (0, 1, 2, 3, 8, 9, 10, 11)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5})
    assert [group.cores_of(rank, 4) for rank in range(4)] == [(4,), (5,), (4,), (5,)]


def test_what_is_left_is_measured_after_a_failure(
    bench_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    scaling, work, group = (bench_module(name) for name in ("scaling", "scaling_work", "rank_group"))
    first = work.Work("demo", 2, "ddp", 2, ("synthetic",), True)
    works = [first, replace(first, parallel="fsdp", bus=False), replace(first, case="demo-jepa")]
    speed = work.Speed("synthetic", [[1.0, 1.0]], [[0.0, 0.0]])
    groups = []

    def hear(target, ranks, most, limit, left, options):
        groups.append([entry.case for entry in left])
        yield group.Ready()
        for entry in left:
            if entry.parallel == "fsdp":
                raise group.GroupError("rank 1: out of memory")
            yield speed
            yield work.Finished()

    monkeypatch.setattr(scaling, "hear", hear)
    kept: dict[Any, Any] = {}
    assert scaling.measured(works, scaling.Args(), 2, kept) == 1
    assert list(kept) == [works[0], works[2]]
    assert groups == [["demo", "demo", "demo-jepa"], ["demo-jepa"]]


def test_what_was_found_is_written_when_time_runs_out(
    bench_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scaling, work, group = (bench_module(name) for name in ("scaling", "scaling_work", "rank_group"))
    groups = []

    def hear(target, ranks, most, limit, left, options):
        groups.append(ranks)
        yield group.Ready()
        if ranks == 2:
            raise KeyboardInterrupt
        for _ in left:
            yield work.Speed("synthetic", [[2.0] * ranks], [[0.0] * ranks])
            yield work.Finished()

    monkeypatch.setattr(scaling, "hear", hear)
    monkeypatch.setattr(scaling, "count_gpus", lambda: 4)
    args = scaling.Args(cases=("demo",), inputs=("synthetic",), batch=4, cache=tmp_path / "c", out=tmp_path)
    assert scaling.main(args) == 130
    assert groups == [1, 4, 2]
    (path,) = tmp_path.glob("scaling-*.json")
    rows = json.loads(path.read_text())["rows"]
    speedups = {(row["corpus"], row["parallel"]): row["value"] for row in rows if row["metric"] == "speedup"}
    assert speedups == {("1", "none"): 1.0, ("4", "ddp"): 4.0, ("4", "fsdp"): 4.0}


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    done = script("--cases", "mae-vitx", "--ranks", 0, "--warmup", 0, "--inputs", "disk", timeout=60)
    assert done.returncode == 2
    for part in ("mae-vitx", "disk", "--ranks 0", "--warmup is 0"):
        assert part in done.stderr
