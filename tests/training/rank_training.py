"""What each rank of test_parallel.py does: train tiny models, save, resume, and say what came of it."""

from __future__ import annotations

import resource
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import JEPA, MAE, make_parts
from surgrec.configs.model import VIT_SHAPES, ViTShape
from surgrec.configs.pretrain import BlockWay, Parallel, PretrainConfig
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from surgrec.models.shards import local_tensors
from surgrec.models.vit import Block
from surgrec.training.distributed import World, start_world, stop_world
from surgrec.training.errors import UserError
from surgrec.training.optim import optimizer_tensors
from surgrec.training.parallel import needs_all_ranks
from surgrec.training.saver import Saver, restore
from surgrec.training.step import Parts, train_step

STEPS = 3
SAVED = 1
# Two ranks accumulate over two micro-batches, four over one.
CONFIGS: dict[str, PretrainConfig] = {
    kind: replace(config, batch=8, micro_batch=2, steps=STEPS)
    for kind, config in (("mae", MAE), ("jepa", JEPA))
}


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Runs by name, "mae-ddp" for example, and those resumed from the checkpoints in job["resume"]; a model
    of size "tiny" has the shape job["tiny"]."""
    VIT_SHAPES["tiny"] = ViTShape(**job["tiny"])
    world = start_world("cpu")
    results: dict[str, Any] = {}
    for kind in CONFIGS:
        for parallel in ("ddp", "fsdp"):
            name = f"{kind}-{parallel}"
            results[name] = whole_run(kind, parallel, world, Path(job["out"]) / name)
        if world.size == 2:
            for way in ("compiled", "fused"):
                results[f"{kind}-{way}"] = recomputed_run(kind, way, world)
        for start in job["resume"]:
            # What DDP wrote goes on under FSDP, and the other way round.
            for before, after in (("ddp", "fsdp"), ("fsdp", "ddp")):
                path = Path(start) / f"{kind}-{before}" / f"step-{SAVED:08d}"
                results[f"{path.parent} as {after}"] = resumed_run(kind, after, world, path)
    results["bad steps"] = [bad_step(parallel, world) for parallel in ("ddp", "fsdp")]
    results["full disk"] = full_disk(world, Path(job["out"]) / "full")
    stop_world(world)
    return results


def configured(kind: str, parallel: Parallel) -> PretrainConfig:
    return replace(CONFIGS[kind], parallel=parallel)


def take(parts: Parts, first: int, last: int) -> list[dict[str, float]]:
    """The numbers of steps first..last."""
    points = []
    for step in range(first, last + 1):
        result = train_step(parts, step, monitor=True)
        values = {"loss": result.loss, "norm": result.gradient_norm} | result.monitors
        points.append({name: float(value) for name, value in values.items()})
        assert all(
            isinstance(p, DTensor) == needs_all_ranks(parts.model) for p in parts.objective.parameters()
        )
    return points


def whole_run(kind: str, parallel: Parallel, world: World, folder: Path) -> dict[str, Any]:
    """All steps, with checkpoints of the first and the last; then what is computed outside a step."""
    parts = make_parts(configured(kind, parallel), world)
    with Saver(folder, world, parts.objective, parts.optimizer, parts.config.checkpoint) as saver:
        points = take(parts, 1, SAVED)
        saver.save(SAVED, parts.batches.state_dict())
        points += take(parts, SAVED + 1, STEPS)
        saver.save(STEPS, parts.batches.state_dict())
        saver.wait()
        assert saver.last == folder / f"step-{STEPS:08d}"
    batch = make_parts(configured(kind, parallel)).batches
    frames = next(batch).frames
    outside = {"features": float(parts.objective.features(frames).detach().double().abs().sum())}
    if kind == "mae":
        outside["rebuilt"] = int(parts.objective.reconstruct(frames, torch.arange(len(frames)))[2].sum())
    run = {"points": points, "outside": outside, "accumulation": parts.shape.accumulation}
    if parts.shape.accumulation > 1:
        undivided = make_parts(replace(parts.config, micro_batch=None), world)
        # DDP arranges its buckets anew in the second step; FSDP may hold weights gathered outside of one.
        take(undivided, 1, 2)
        take(parts, STEPS, STEPS)
        run["collectives"] = collectives(parts, STEPS)
        run["collectives of one micro-batch"] = collectives(undivided, 3)
        run["blocks"] = [isinstance(part, Block) for part in parts.objective.modules()].count(True)
    return run


def recomputed_run(kind: str, way: BlockWay, world: World) -> list[dict[str, float]]:
    """FSDP2 around compiled or fused blocks, which are computed once more in the backward pass."""
    config = configured(kind, "fsdp")
    model = replace(config.model, checkpoint_activations=True)
    return take(make_parts(replace(config, model=model, blocks=way), world), 1, 2)


class CollectiveCounter(TorchDispatchMode):
    """Counts the collectives that this rank calls, from Python or C++, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            self.calls[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def collectives(parts: Parts, step: int) -> dict[str, int]:
    """How often each collective is called in a step."""
    with CollectiveCounter() as counter:
        train_step(parts, step)
    return dict(counter.calls)


def resumed_run(kind: str, parallel: Parallel, world: World, path: Path) -> list[dict[str, float]]:
    """The steps that are left from a checkpoint."""
    parts = make_parts(configured(kind, parallel), world)
    step, position = restore(path, parts.objective, parts.optimizer, world)
    parts.batches.load_state_dict(position)
    return take(parts, step + 1, STEPS)


def bad_step(parallel: Parallel, world: World) -> dict[str, bool]:
    """A loss that is NaN on the last rank only; and the flag by which AdamW skips a step on a GPU."""
    parts = make_parts(configured("mae", parallel), world)
    take(parts, 1, 1)
    tensors = [*parts.objective.parameters(), *optimizer_tensors(parts.optimizer).values()]
    before = [tensor.clone() for tensor in local_tensors(tensors)]

    def unchanged() -> bool:
        return all(torch.equal(a, b) for a, b in zip(before, local_tensors(tensors), strict=True))

    original = parts.objective.loss
    if world.rank == world.size - 1:
        parts.objective.loss = lambda frames, mask: original(frames, mask) * float("nan")
    found = {"seen": bool(train_step(parts, 2).bad), "skipped": unchanged()}
    parts.objective.loss = original
    parts.optimizer.found_inf = torch.ones(())
    train_step(parts, 2)
    found["skipped by the flag"] = unchanged()
    parts.optimizer.found_inf = torch.zeros(())
    train_step(parts, 2)
    return found | {"trained again": not unchanged()}


def full_disk(world: World, folder: Path) -> dict[str, Any]:
    """The last rank can write no more than a few bytes to a file: what every rank is told, and when."""
    parts = make_parts(configured("mae", "fsdp"), world)
    saver = Saver(folder, world, parts.objective, parts.optimizer, parts.config.checkpoint)
    saver.save(1, {})
    saver.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == world.size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    saver.save(2, {})
    take(parts, 1, 1)
    try:
        saver.save(3, {})
        message = ""
    except UserError as error:
        message = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    world.gather(None)  # rank 0 cleans up before it is told
    return {"message": message, "left": sorted(path.name for path in folder.iterdir())}
