"""Small models of both objectives, all weights random, as checkpoints of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from surgrec.configs.data import DataConfig
from surgrec.configs.model import VIT_SHAPES, JepaConfig, MaeConfig, ViTShape
from surgrec.configs.pretrain import JepaPretrain, MaePretrain, to_document

from surgrec.convert import main
from surgrec.models.build import build_objective
from surgrec.models.objective import Objective
from surgrec.training.checkpoint import Checkpoint, save_checkpoint

SMALL = ViTShape(2, 192, 3)
DATA = DataConfig(frames=16, stride=4, size=224)
"""As published, since files of the original programs do not say of which clips they are."""
RUNS: dict[str, MaePretrain | JepaPretrain] = {
    "mae": MaePretrain(
        data=DATA,
        model=MaeConfig(size="tiny", patch=32, decoder_depth=2, decoder_width=36, decoder_heads=3),
    ),
    "jepa": JepaPretrain(
        data=DATA,
        model=JepaConfig(size="tiny", patch=32, predictor_depth=2, predictor_width=48, predictor_heads=4),
    ),
    "jepa2": JepaPretrain(
        data=replace(DATA, size=256, fps=4.0),
        model=JepaConfig(
            size="tiny",
            patch=32,
            position="rotary_3d",
            predictor_depth=2,
            predictor_width=48,
            predictor_heads=4,
        ),
    ),
}
"""Of a run by name: V-JEPA's positions, and V-JEPA 2's."""


@dataclass(frozen=True)
class Trained:
    """path: of the run folder. objective: as its checkpoint holds it."""

    path: Path
    config: MaePretrain | JepaPretrain
    objective: Objective


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> ViTShape:
    """Makes the size `tiny` smaller, also where timm's models are registered."""
    monkeypatch.setitem(VIT_SHAPES, "tiny", SMALL)
    return SMALL


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """A run folder with one checkpoint for each of RUNS, with a record of index and plan."""
    folder = tmp_path_factory.mktemp("exports")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VIT_SHAPES, "tiny", SMALL)
        for name, config in RUNS.items():
            objective = build_objective(config.model, 7, config.data.frames, config.data.size)
            shake(objective)
            values = {"config": to_document(config), "index_digest": "0123abcd"}
            path = folder / name
            save_checkpoint(path / "checkpoints", Checkpoint(9, objective.state_dict(), {}, values))
            (path / "run.json").write_text(json.dumps({"starts": [START]}))
            found[name] = Trained(path, config, objective.eval())
    return found


START = {
    "time": "2026-01-02T03:04:05+0000",
    "command": "python -m surgrec.pretrain demo --data.index /home/someone/corpus.h5",
    "folder": "/home/someone",
    "versions": {"python": "3.11", "torch": "2.11"},
    "git": {"commit": "abc123", "dirty": True},
    "host": "secret-host",
    "device": "a processor",
    "ranks": 2,
    "index": {"path": "/home/someone/corpus.h5", "digest": "0123abcd", "videos": 1234},
    "plan": {"path": "/home/someone/plan.h5", "digest": "feed5678", "segments": 98765},
}
"""Of a run's record, as surgrec.pretrain writes it, but for entries that nothing here reads."""


def shake(objective: Objective) -> None:
    """Random biases, norms and mask tokens, student and teacher apart: first ones would hide a mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in objective.parameters():
            scale = 0.2 if parameter.ndim == 1 else 0.05
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., Path]:
    """convert(run, to, name, *options): by the command, which must succeed; the path that it wrote."""

    def run(model: Path, to: str, name: str, *options: str) -> Path:
        out = tmp_path / name
        assert main([str(model), "--to", to, "--out", str(out), *options]) == 0
        return out

    return run


OFFLINE = """
import socket, sys
def refuse(*arguments, **keywords):
    raise AssertionError("the network was asked for")
socket.socket.connect = socket.getaddrinfo = refuse
"""


@pytest.fixture
def offline(tmp_path: Path) -> Callable[..., None]:
    """offline(code, *arguments): in a process that has nothing of this one's environment, and no network."""

    def run(code: str, *arguments: object) -> None:
        kept = ("PATH", "PYTHONPATH", "PYTHONSAFEPATH", "LD_LIBRARY_PATH")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment |= {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", OFFLINE + code, *map(str, arguments)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr

    return run
