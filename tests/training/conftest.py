"""A corpus of small real videos, a run of a few seconds on it, and a run that needs no video at all."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from surgrec.configs.data import BalanceConfig, DataConfig
from surgrec.configs.model import BlockGroup, JepaConfig, MaeConfig
from surgrec.configs.pretrain import (
    CheckpointConfig,
    JepaPretrain,
    LogConfig,
    MaePretrain,
    OptimConfig,
    PretrainConfig,
)
from surgrec.loaders.clip_loader import Batch
from surgrec.loaders.clip_plan import ClipRequest

from surgrec.corpus.build import build_index
from surgrec.corpus.discovery import find_entries
from surgrec.models.block_ways import compile_blocks, set_blocks
from surgrec.models.build import build_objective
from surgrec.training.distributed import ALONE, World
from surgrec.training.optim import build_adamw
from surgrec.training.parallel import wrap
from surgrec.training.resolve import BatchShape, batch_shape
from surgrec.training.step import Parts

COMMAND_IMPORTS = ("surgrec.training.session", "torch.utils.tensorboard")
"""What a run imports before its first step."""


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors: more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpus(streams: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index of three small videos of two domains."""
    folder = tmp_path_factory.mktemp("corpus")
    entries = []
    for domain, kind in (
        ("endoscopy", "h264_default"),
        ("laparoscopy", "hevc_closed"),
        ("laparoscopy", "mpeg4_avi"),
    ):
        path = streams.make_stream(kind, folder / kind)
        entries += find_entries([str(path)], dataset=kind, domain=domain)
    index = folder / "corpus.h5"
    build_index(entries, index, workers=1)
    return index


DATA = DataConfig(
    frames=4, stride=2, size=32, threads=1, segment_seconds=1.0, balance=BalanceConfig(), max_failures=0.5
)
OPTIM = OptimConfig(lr=1e-3, start_lr=1e-4, final_lr=1e-5, lr_per_256=False, warmup=0.2, clip=1.0)
MAE = MaePretrain(
    name="test",
    steps=6,
    batch=4,
    device="cpu",
    data=DATA,
    optim=OPTIM,
    checkpoint=CheckpointConfig(every=3, keep_last=2),
    log=LogConfig(every=2, panels_every=3, panels=2),
    model=MaeConfig(size="tiny", mask_ratio=0.5, decoder_depth=1, decoder_width=48, decoder_heads=3),
)
JEPA = JepaPretrain(
    **{f.name: getattr(MAE, f.name) for f in dataclasses.fields(MAE) if f.name != "model"},
    model=JepaConfig(
        size="tiny",
        predictor_depth=1,
        predictor_width=48,
        predictor_heads=3,
        groups=(BlockGroup(1, 0.3),),
        ema_start=0.9,
    ),
)


@pytest.fixture(scope="session")
def dry_mae() -> MaePretrain:
    """MAE for synthetic clips."""
    return MAE


@pytest.fixture(scope="session")
def dry_jepa() -> JepaPretrain:
    """JEPA for synthetic clips."""
    return JEPA


@pytest.fixture
def mae(corpus: Path, tmp_path: Path) -> MaePretrain:
    """Six steps of a tiny MAE into tmp_path/run."""
    return dataclasses.replace(MAE, data=dataclasses.replace(MAE.data, index=corpus), out=tmp_path / "run")


@pytest.fixture
def jepa(corpus: Path, tmp_path: Path) -> JepaPretrain:
    """Six steps of a tiny JEPA into tmp_path/run."""
    return dataclasses.replace(JEPA, data=dataclasses.replace(JEPA.data, index=corpus), out=tmp_path / "run")


@dataclasses.dataclass
class SyntheticBatches:
    """Micro-batches whose frames are a pure function of their sample numbers, laid out like ClipLoader's."""

    shape: BatchShape
    frames: int = 4
    size: int = 32
    rank: int = 0
    ranks: int = 1
    next_sample: int = 0

    def __next__(self) -> Batch:
        rows = self.shape.micro_batch
        first = self.next_sample + self.rank * rows
        self.next_sample += rows * self.ranks
        numbers = range(first, first + rows)
        clips = [self._clip(number) for number in numbers]
        requests = [ClipRequest(number, 0, tuple(range(self.frames))) for number in numbers]
        return Batch(torch.stack(clips), torch.tensor(numbers), requests, 0, 3 * rows * self.frames, 0.0)

    def _clip(self, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(number)
        coarse = torch.randint(0, 256, (self.frames, 4, 4, 3), generator=generator, dtype=torch.uint8)
        zoom = self.size // 4
        return coarse.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)

    def state_dict(self) -> dict[str, Any]:
        return {"next_sample": self.next_sample}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next_sample = state["next_sample"]


def make_parts(config: PretrainConfig, world: World = ALONE) -> Parts:
    """The Parts of a run on synthetic clips; blocks="compiled" compiles without a C++ compiler."""
    shape = batch_shape(config, world.size)
    objective = build_objective(config.model, config.seed, config.data.frames, config.data.size)
    if config.blocks == "compiled":
        compile_blocks(objective, backend="aot_eager")
    else:
        set_blocks(objective, config.blocks)
    model = wrap(objective, world, config.parallel)
    optimizer = build_adamw(objective, objective.no_weight_decay, config.optim)
    batches = SyntheticBatches(shape, config.data.frames, config.data.size, world.rank, world.size)
    return Parts(config, world, objective, model, optimizer, batches, shape, torch.float32)


@pytest.fixture(scope="session")
def synthetic_parts() -> Callable[..., Parts]:
    """`make_parts`, for tests."""
    return make_parts


class Ranks:
    """Starts processes that run a script of this folder as the ranks of one group."""

    def __init__(self, folder: Path, warm_start: Callable[..., Any]) -> None:
        self._folder = folder
        self._warm_start = warm_start
        self._launches = 0

    def __call__(self, script: str, size: int, timeout: float = 300, **job: Any) -> list[Any]:
        """What SCRIPT.py's `main(job)` returned on each of `size` ranks, as plain values."""
        self._launches += 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        results, processes = [], []
        for rank in range(size):
            results.append(self._folder / f"{self._launches}-{rank}.json")
            place = {"WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(
                self._warm_start(
                    Path(__file__).with_name("rank.py"),
                    *(script, json.dumps(job), results[-1]),
                    imports=COMMAND_IMPORTS,
                    environment=address | place | {"CUDA_VISIBLE_DEVICES": ""},
                )
            )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(0.02)
        alive = [process for process in processes if process.poll() is None]
        for process in alive:
            process.kill()
        answers = [json.loads(path.read_text()) if path.exists() else {"error": "died"} for path in results]
        errors = [answer["error"] for answer in answers if "error" in answer]
        assert not alive, f"still at work after {timeout} s: {errors}"
        assert not errors, "\n".join(errors)
        return [answer["result"] for answer in answers]


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory, warm_start: Callable[..., Any]) -> Ranks:
    """ranks("script", 2, key=value) runs `main` of tests/training/script.py on two ranks."""
    return Ranks(tmp_path_factory.mktemp("ranks"), warm_start)


@pytest.fixture(scope="session")
def command(warm_start: Callable[..., Any]) -> Callable[..., Any]:
    """command(*arguments, cwd=folder): `python -m surgrec.pretrain` as a process, without its imports."""

    def start(*arguments: object, cwd: Path, **environment: str) -> Any:
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
        return warm_start(
            "surgrec.pretrain", *arguments, imports=COMMAND_IMPORTS, environment=environment, cwd=cwd
        )

    return start
