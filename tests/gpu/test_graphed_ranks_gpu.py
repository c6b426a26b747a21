"""Two ranks under DDP from CUDA graphs, sums over ranks included, against launches one by one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from surgrec.corpus.build import build_index
from surgrec.corpus.discovery import find_entries

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
]


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_replayed_steps_of_two_ranks_are_the_steps(accumulation: int) -> None:
    script = Path(__file__).with_name("graphed_ranks.py")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(accumulation)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["graphed"] == pytest.approx(found["eager"], rel=2e-3)
    assert found["graphed"][0] == pytest.approx(found["eager"][0], rel=1e-4)
    assert max(found["eager"]) / min(found["eager"]) > 1.05
    # All ranks have the same weights: their gradients were summed.
    assert found["sums"][0] == found["sums"][1]
    assert found["difference"] < 0.05


def test_ranks_part_where_a_run_ends_with_an_error(streams: ModuleType, tmp_path: Path) -> None:
    """NCCL waits for ever for ranks of which one still holds a graph: none may, however a run ends."""
    for kind in ("h264_default", "hevc_closed"):
        streams.make_stream(kind, tmp_path / kind, frames=90, size=(320, 240))
    build_index(find_entries([str(tmp_path)]), tmp_path / "corpus.h5", workers=1)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    steep = ("--optim.lr", "1e30", "--optim.start-lr", "1e30", "--optim.warmup", "0")
    data = ("--data.index", str(tmp_path / "corpus.h5"), "--data.engine", "cpu", "--data.threads", "2")
    run = ("-m", "surgrec.pretrain", "demo", "--device", "cuda", "--steps", "50", "--batch", "8", *steep)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *launcher, *run, *data, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode != 0
    assert "CUDA graph: replayed in every step" in done.stdout
    assert "Start again with a lower --optim.lr" in done.stderr
    # torchrun would end a rank that hangs, after a while, by force.
    assert "SIGKILL" not in done.stderr
    assert time.monotonic() - began < 120
