"""Whole runs of two processes with gloo: as one would run, resumed by one, stopped, restarted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from surgrec.configs.pretrain import to_document
from surgrec.configs.yaml_io import dump_yaml

from surgrec.training.checkpoint import DamagedCheckpointError, list_checkpoints, load_checkpoint
from surgrec.training.distributed import World, start_world
from surgrec.training.errors import UserError
from surgrec.training.session import pretrain


def two_processes(command, folder: Path, *arguments: object) -> list[Any]:
    """Two ranks as torchrun would start them, without the seconds that it takes itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [
        command(*arguments, cwd=folder, **place, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)
    ]


def points(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [point["loss"] for point in points(run)]


def saved(run: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(run / "checkpoints")]


def same_weights(one: Path, other: Path) -> None:
    a, b = (load_checkpoint(run / "checkpoints" / "step-00000006").model for run in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kind", "mode"), [("mae", "fsdp"), ("jepa", "ddp")])
def test_two_ranks_are_one_and_one_goes_on_from_two(kind, mode, request, ranks, tmp_path, capsys):
    config = request.getfixturevalue(kind)
    # One clip a micro-batch: two ranks accumulate over two, one rank over four.
    config = replace(config, micro_batch=1, log=replace(config.log, every=1))
    (tmp_path / "config.yaml").write_text(dump_yaml(to_document(config)))
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = ["--config", str(tmp_path / "config.yaml"), "--parallel", mode, "--out", str(two)]
    first, second = ranks("rank_pretrain", 2, arguments=arguments)
    assert (first["status"], second["status"]) == (0, 0)
    assert "2 ranks" in first["output"]
    assert first["output"].count("step 6/6") == 1
    assert second["output"] == ""
    assert (two / "reconstruction.png").exists() == (kind == "mae")

    assert pretrain(replace(config, out=one)) == 0
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    for name in points(one)[0]:
        if name.startswith("monitor/") or name == "gradient_norm":
            # The health of features is that of a micro-batch, and each rank has its own.
            rel = 1e-3 if name in ("gradient_norm", "monitor/teacher_distance") else 0.5
            assert [p[name] for p in points(two)] == pytest.approx([p[name] for p in points(one)], rel=rel)
    same_weights(one, two)

    # One process finds the damage, goes back to the checkpoint before, and ends as if nothing had been.
    capsys.readouterr()
    broken = two / "checkpoints" / "step-00000006" / "optimizer-shard-00002-of-00002.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpointError, match=broken.name):
        pretrain(replace(config, out=two))
    fall_back = replace(config.checkpoint, fall_back=True)
    assert pretrain(replace(config, out=two, checkpoint=fall_back)) == 0
    assert "after step 3" in capsys.readouterr().out
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    same_weights(one, two)
    starts = json.loads((two / "run.json").read_text())["starts"]
    assert [start["ranks"] for start in starts] == [2, 1]


def test_torchrun_restarts_a_run_of_which_a_rank_has_died(mae, tmp_path):
    config = replace(
        mae, steps=30, checkpoint=replace(mae.checkpoint, every=5), log=replace(mae.log, every=1)
    )
    (tmp_path / "config.yaml").write_text(dump_yaml(to_document(config)))
    run = tmp_path / "run"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    arguments = ["-m", "surgrec.pretrain", "--config", tmp_path / "config.yaml", "--out", run]
    launcher = subprocess.Popen(
        [sys.executable, *torchrun, *map(str, arguments)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not saved(run):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker = psutil.Process(launcher.pid).children()[-1]
    assert worker.environ()["RANK"] == "1"
    worker.kill()
    try:
        output, _ = launcher.communicate(timeout=120)
    finally:
        # Only torchrun knows its workers; it takes them with it.
        launcher.terminate()
    assert launcher.returncode == 0, output
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert starts[0].get("ended") is None or "error" in starts[0]["ended"]["reason"]
    assert starts[1]["resumed_from_step"] >= 5
    assert starts[1]["ended"]["reason"] == "finished"
    assert [point["step"] for point in points(run)] == list(range(1, 31))

    assert pretrain(replace(config, out=tmp_path / "undisturbed")) == 0
    assert losses(run) == pytest.approx(losses(tmp_path / "undisturbed"), rel=1e-3)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(mae, command, tmp_path):
    config = replace(mae, steps=100_000, checkpoint=replace(mae.checkpoint, every=100_000))
    (tmp_path / "config.yaml").write_text(dump_yaml(to_document(config)))
    run = tmp_path / "run"
    first, second = two_processes(command, tmp_path, "--config", tmp_path / "config.yaml", "--out", run)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The rank that does not write: its request has to reach the other.
    second.send_signal(signal.SIGUSR1)
    for process in (first, second):
        said = process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGUSR1, said
    assert len(list((run / "checkpoints").glob("step-*"))) == 1
    ended = json.loads((run / "run.json").read_text())["starts"][0]["ended"]
    assert ended["reason"] == "SIGUSR1"


def test_an_error_on_rank_0_reaches_all(monkeypatch):
    sent = []
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda box, **_: sent.append(box[0]))

    def fail():
        raise UserError("no room")

    first = World(0, 0, 2, torch.device("cpu"), control=object())
    with pytest.raises(UserError, match="no room"):
        first.share_result(fail)

    def receive(box, **_):
        box[0] = sent[0]

    monkeypatch.setattr("torch.distributed.broadcast_object_list", receive)
    second = World(1, 1, 2, torch.device("cpu"), control=object())
    with pytest.raises(UserError, match="no room"):
        second.share_result(lambda: pytest.fail("only rank 0 works"))


def test_restarts_on_several_machines_need_a_store_of_their_own(monkeypatch):
    """Torchrun's variables on a machine where a rank has died, beside another machine."""
    values = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "GROUP_WORLD_SIZE": "2"}
    values |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        start_world("cpu")
