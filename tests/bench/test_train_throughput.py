"""bench/train_throughput.py on the CPU: our step, each peer's, and clips through the loader and decord."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from surgrec.configs.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"steps": 1, "warmup": 1, "runs": 1, "batch": (2,)}


@pytest.fixture
def bench(bench_module: Callable[[str], ModuleType]) -> ModuleType:
    return bench_module("train_throughput")


@pytest.mark.parametrize(
    ("case", "name"),
    [("demo", "demo"), ("demo-jepa", "demo-jepa"), ("demo", "transformers"), ("demo", "videomae")],
)
def test_steps_are_taken_and_timed(bench: ModuleType, case: str, name: str) -> None:
    args = bench.Args(**QUICK)
    work = bench.Work(name, case, "synthetic", 2)
    found = bench.measure(args, work)
    assert found.first > 0
    assert all(rate > 0 for rate in found.rates)
    assert all(0 <= wait < 1 for wait in found.waits)
    rows = bench.rows_of(bench.Args(), work, replace(found, device="NVIDIA H100 80GB HBM3"))
    values = {row.metric: row.value for row in rows}
    assert values["mfu"] == pytest.approx(values["clips_per_s"] * found.flops / 989.4e12)
    assert {"peak_gib", "data_wait", "first_step_s"} < set(values)
    on_a_cpu = {row.metric for row in bench.rows_of(bench.Args(), work, found)}
    assert on_a_cpu == {"clips_per_s", "data_wait", "first_step_s"}


def test_vjepa2_needs_rotary_positions_only(bench_module: Callable[[str], ModuleType]) -> None:
    """The peer of jepa-vitl-256 in small."""
    contestants = bench_module("training_contestants")
    config = PRESETS["demo-jepa"][1]
    config = replace(config, batch=2, micro_batch=2, model=replace(config.model, position="rotary_3d"))
    shape = (2, config.data.frames, config.data.size, config.data.size, 3)
    batches = contestants.Repeated(
        [torch.zeros(shape, dtype=torch.uint8), torch.ones(shape, dtype=torch.uint8)]
    )
    step = contestants.vjepa2(contestants.Setup(config, batches, torch.device("cpu")), False)
    assert step() >= 0
    assert step() >= 0
    assert batches.state_dict() == {"next_sample": 4}


def test_each_input_has_its_own_videos(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cached clips come from plain proxies; stacked ones are not given to peers, which would misread them."""
    corpora, loader = ModuleType("corpora"), ModuleType("loader_throughput")
    corpora.make_corpora = lambda names, cache: {name: [cache / f"{name}.mp4"] for name in names}  # type: ignore[attr-defined]
    loader.index_of = lambda name, videos, cache: cache / f"{name}.h5"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "corpora", corpora)
    monkeypatch.setitem(sys.modules, "loader_throughput", loader)
    inputs = ("synthetic", "cached", "proxy16", "proxy4s4")
    args = bench.Args(cases=("demo",), inputs=inputs, peers=("transformers",), cache=tmp_path)
    found = [(work.name, work.source, work.index and work.index.stem) for work in bench.plan(args)]
    assert found == [
        ("demo", "synthetic", None),
        ("transformers", "synthetic", None),
        ("demo", "cached", "proxy16"),
        ("transformers", "cached", "proxy16"),
        ("demo", "proxy16", "proxy16"),
        ("transformers", "proxy16", "proxy16"),
        ("demo", "proxy4s4", "proxy4s4"),
    ]


def test_clips_from_disk(bench: ModuleType, tmp_path: Path, streams: ModuleType) -> None:
    """Ours through the loader, cached from it, and the peer's through decord."""
    from surgrec.corpus.build import build_index
    from surgrec.corpus.discovery import find_entries

    path = streams.make_stream("h264_default", tmp_path / "a", frames=40)
    build_index(find_entries([str(path)]), tmp_path / "c.h5", workers=1)
    args = bench.Args(**QUICK, workers=1)
    config = replace(PRESETS["demo"][1], batch=2, micro_batch=2)
    config = replace(config, data=replace(config.data, index=tmp_path / "c.h5", stride=1, threads=1))
    shape = (2, config.data.frames, config.data.size, config.data.size, 3)
    names = {"proxy16": "demo", "cached": "demo", "decord": "transformers"}
    for source, name in names.items():
        work = bench.Work(
            name, "demo", "proxy16" if source == "decord" else source, 2, tmp_path / "c.h5", (path,)
        )
        batches = bench.open_batches(args, work, config, torch.device("cpu"))
        try:
            first, second = next(batches), next(batches)
            assert first.frames.shape == shape
            assert first.samples.tolist() == [0, 1]
            assert second.samples.tolist() == [2, 3]
            assert first.frames.float().std() > 5
        finally:
            getattr(batches, "close", lambda: None)()


def test_crops_of_one_decode_are_named_in_the_rows(
    bench: ModuleType, tmp_path: Path, streams: ModuleType
) -> None:
    from surgrec.corpus.build import build_index
    from surgrec.corpus.discovery import find_entries

    path = streams.make_stream("h264_default", tmp_path / "a", frames=40)
    build_index(find_entries([str(path)]), tmp_path / "c.h5", workers=1)
    args = bench.Args(**QUICK, repeats=2)
    config = replace(PRESETS["demo"][1], batch=4, micro_batch=4)
    data = replace(config.data, index=tmp_path / "c.h5", stride=1, threads=1, shuffle_mib=0)
    work = bench.Work("demo", "demo", "proxy16", 4, tmp_path / "c.h5", (path,))
    with bench.open_batches(args, work, replace(config, data=data), torch.device("cpu")) as batches:
        assert next(batches).decode_repetition == 1
    found = bench.Measured(1.0, [2.0], [0.0], 1.0, 0.0, "a CPU")
    assert {row.extra.get("repeats") for row in bench.rows_of(args, work, found)} == {2}
    synthetic = replace(work, source="synthetic")
    assert {row.extra.get("repeats") for row in bench.rows_of(args, synthetic, found)} == {None}


def test_the_script_leaves_out_what_fails(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "bench" / "train_throughput.py", "--out", tmp_path, "--cases", "demo"]
    quick = ["--steps", "1", "--warmup", "0", "--runs", "1"]
    done = subprocess.run(
        [*command, *quick, "--batch", "0", "2"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "demo synthetic batch 0: left out" in done.stdout
    (result,) = tmp_path.glob("train_throughput-*.json")
    rows = json.loads(result.read_text())["rows"]
    assert {(row["name"], row["corpus"], row["batch"]) for row in rows} == {("demo", "synthetic", 2)}
    wrong = subprocess.run(
        [*command, "--inputs", "none"], capture_output=True, text=True, check=False, timeout=60
    )
    assert wrong.returncode == 2


def test_what_was_measured_is_written_where_a_run_is_stopped(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = iter([bench.Measured(1.0, [7.0], [0.0], 1.0, 0.0, "CPU")])

    def measure(*_: object) -> object:
        try:
            return next(found)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(bench, "in_a_process", measure)
    args = bench.Args(cases=("demo", "demo-jepa"), batch=(2,), out=tmp_path)
    assert bench.main(args) == 130
    (path,) = tmp_path.glob("train_throughput-*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [row["value"] for row in rows if row["metric"] == "clips_per_s"] == [7.0]
    assert "stopped" in capsys.readouterr().err


def test_rows_hold_the_clocks_that_the_gpu_ran_at(bench: ModuleType) -> None:
    work = bench.Work("mae-vitb", "mae-vitb", "synthetic", 128)
    clocks = {"video_mhz": 1545.0, "sm_mhz": 1410.0, "watts": 698.5}
    found = bench.Measured(2.0, [1700.0], [0.0], 2e11, 12.9, "NVIDIA H100 80GB HBM3", clocks)
    rows = {row.metric: row for row in bench.rows_of(bench.Args(), work, found)}
    assert rows["clips_per_s"].extra["watts"] == 698.5
    assert rows["mfu"].extra.get("watts") is None
    assert bench.shown(clocks) == ", 1410 MHz, 698 W"
    assert bench.shown({}) == ""
