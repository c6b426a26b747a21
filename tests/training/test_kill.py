"""The command as a process: killed, terminated, started again; its weights are those of one undisturbed."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surgrec.training.checkpoint import list_checkpoints
from surgrec.training.tensor_file import file_digest

ARGUMENTS = (
    *("demo", "--device", "cpu", "--steps", 100, "--batch", 4, "--log.every", 20, "--log.panels-every", 0),
    *("--data.frames", 4, "--data.stride", 2, "--data.size", 32, "--data.threads", 1),
    *("--model.decoder-depth", 1, "--model.decoder-width", 48, "--checkpoint.every", 50, "--seed", 7),
)


def wait_for(condition: Callable[[], bool], process: Any) -> None:
    """Poll until `condition` holds; fails with the output of a process that ended before."""
    deadline = time.monotonic() + 120
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.01)


def saved(run: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(run / "checkpoints")]


def test_killed_and_resumed_gives_the_weights_of_one_go(command, corpus, tmp_path):
    arguments = (*ARGUMENTS, "--data.index", corpus)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    undisturbed = command(*arguments, "--out", whole, cwd=tmp_path)

    killed = command(*arguments, "--out", parts, cwd=tmp_path)
    wait_for(lambda: 50 in saved(parts), killed)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert saved(parts) == [50]

    # The same command goes on; asked to stop, it finishes its step and says how to go on.
    terminated = command(*arguments, "--out", parts, cwd=tmp_path)
    wait_for(lambda: 'resumed_from_step": 50' in (parts / "run.json").read_text(), terminated)
    terminated.send_signal(signal.SIGTERM)
    output, errors = terminated.communicate(timeout=120)
    assert terminated.returncode == 128 + signal.SIGTERM, errors
    assert f"to go on:\n  python -m surgrec.pretrain --config {parts}/config.yaml --out {parts}" in output

    resumed = command("--config", parts / "config.yaml", "--out", parts, cwd=tmp_path)
    output, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    assert "step 100/100" in output
    undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0

    for name in ("model.safetensors", "optimizer.safetensors"):
        last = Path("checkpoints") / "step-00000100" / name
        assert file_digest(parts / last) == file_digest(whole / last)
    starts = json.loads((parts / "run.json").read_text())["starts"]
    assert starts[0].get("ended") is None
    assert [start["resumed_from_step"] for start in starts][:2] == [None, 50]
