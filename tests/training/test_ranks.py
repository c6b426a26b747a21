"""Two processes with gloo take the steps that one takes with the same global batch."""

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

import pytest
import torch
from safetensors.torch import load_file
from surgrec.configs.pretrain import to_document
from surgrec.configs.yaml_io import dump_yaml

from surgrec.training.distributed import World
from surgrec.training.errors import UserError
from surgrec.training.session import pretrain

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(folder: Path, arguments: list[object], prefix: list[str], **added: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *prefix, "-m", "surgrec.pretrain", *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT | added,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def torchrun(folder: Path, *arguments: object) -> list[subprocess.Popen[str]]:
    """Two ranks under torchrun: one process to wait for."""
    prefix = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [start(folder, list(arguments), prefix)]


def two_processes(folder: Path, *arguments: object) -> list[subprocess.Popen[str]]:
    """Two ranks as torchrun would start them, without the seconds that it takes itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        start(
            folder,
            list(arguments),
            [],
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="2",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in range(2)
    ]


def losses(run) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("kind", "launch"), [("mae", torchrun), ("jepa", two_processes)])
def test_two_ranks_are_one(kind, launch, request, tmp_path):
    config = request.getfixturevalue(kind)
    # One clip a micro-batch: two ranks accumulate over two, one rank over four.
    config = replace(config, micro_batch=1, log=replace(config.log, every=1))
    (tmp_path / "config.yaml").write_text(dump_yaml(to_document(config)))
    two = launch(tmp_path, "--config", tmp_path / "config.yaml", "--out", tmp_path / "two")
    assert pretrain(replace(config, out=tmp_path / "one")) == 0
    output = "".join(process.communicate(timeout=180)[0] for process in two)
    assert [process.returncode for process in two] == [0] * len(two), output
    assert "2 ranks" in output
    assert output.count("step 6/6") == 1
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    last = "checkpoints/step-00000006/model.safetensors"
    for a, b in zip(
        load_file(tmp_path / "one" / last).values(), load_file(tmp_path / "two" / last).values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(mae, tmp_path):
    config = replace(mae, steps=100_000, checkpoint=replace(mae.checkpoint, every=100_000))
    (tmp_path / "config.yaml").write_text(dump_yaml(to_document(config)))
    run = tmp_path / "run"
    first, second = two_processes(tmp_path, "--config", tmp_path / "config.yaml", "--out", run)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The rank that does not write: its request has to reach the other.
    second.send_signal(signal.SIGUSR1)
    for process in (first, second):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGUSR1, output
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
