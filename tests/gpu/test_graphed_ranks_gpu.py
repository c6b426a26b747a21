"""Two ranks under DDP from CUDA graphs, sums over ranks included, against launches one by one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
