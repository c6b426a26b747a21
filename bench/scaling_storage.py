"""Checkpoints written and read, and clips loaded, as a rank of bench/scaling.py times them."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scaling_steps import Steps, settle
from scaling_work import Loaded, Options, Stored, Work

if TYPE_CHECKING:
    from surgrec.configs.pretrain import JepaPretrain, MaePretrain
    from surgrec.loaders.clip_loader import ClipLoader

    from surgrec.training.distributed import World

PLANNED_CLIPS: Final = 64
"""Clips from whose plans the bytes of a clip are taken."""


def stored_of(steps: Steps, options: Options, world: World) -> Stored:
    """Checkpoints by the Saver, and the last of them read as a resumed run reads it, from the disk."""
    from surgrec.configs.pretrain import CheckpointConfig

    from surgrec.training.checkpoint import verify_checkpoint
    from surgrec.training.saver import Saver, restore

    parts = steps.parts
    folder = Path(world.share(tempfile.mkdtemp(prefix="scaling-", dir=options.folder) if world.first else ""))
    save, held, load = [], [], []
    try:
        with Saver(folder, world, parts.objective, parts.optimizer, CheckpointConfig(keep_last=1)) as saver:
            for number in range(1, options.checkpoints + 1):
                settle(world)
                began = time.perf_counter()
                saver.save(number, {})
                settle(world)
                held.append(time.perf_counter() - began)
                saver.wait()
                save.append(max(world.gather(time.perf_counter() - began)))
            path = saver.last
            assert path is not None
            for _ in range(options.checkpoints):
                if world.first:
                    forget(path)
                settle(world)
                began = time.perf_counter()
                world.share_result(lambda: verify_checkpoint(path))
                restore(path, parts.objective, parts.optimizer, world)
                settle(world)
                load.append(time.perf_counter() - began)
        size = sum(file.stat().st_size for file in path.iterdir())
        settle(world)  # The first rank takes it away.
    finally:
        if world.first:
            shutil.rmtree(folder, ignore_errors=True)
    return Stored(save, held, load, size)


def forget(path: Path) -> None:
    """Lets the kernel drop its copies of a checkpoint's files, which are on the disk already."""
    for file in path.iterdir():
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def open_loader(config: MaePretrain | JepaPretrain, work: Work, world: World) -> ClipLoader:
    """This rank's loader, with an engine of its own."""
    from surgrec.loaders.clip_loader import ClipLoader
    from surgrec.loaders.packet_index import PacketIndex

    index = PacketIndex.open(config.data.index)
    return ClipLoader(
        index, config.data, config.seed, config.batch, work.batch, world.rank, world.size, world.device
    )


def loaded_of(
    loader: ClipLoader, config: MaePretrain | JepaPretrain, options: Options, world: World
) -> Loaded:
    """Batches that are asked for as fast as they come, on all ranks at the same time."""
    import torch
    from surgrec.loaders.clip_plan import plan_clip
    from surgrec.loaders.packet_index import PacketIndex

    index = PacketIndex.open(config.data.index)
    requests = next(loader).requests[:PLANNED_CLIPS]
    read = [plan_clip(index, request, config.data.drop_disposable).read_bytes for request in requests]
    for _ in range(config.data.prefetch):  # Made while nobody asked.
        next(loader)
    settle(world)
    began = time.perf_counter()
    clips = 0
    while time.perf_counter() - began < options.loader_seconds:
        clips += len(next(loader).frames)
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    rate = clips / (time.perf_counter() - began)
    return Loaded(world.gather(rate), world.gather(sum(read) / len(read))[0])
