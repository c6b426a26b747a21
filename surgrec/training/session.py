"""One start of a pretraining run: from a configuration to its last checkpoint."""

from __future__ import annotations

import dataclasses
import shlex
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from surgrec.configs.pretrain import (
    JepaPretrain,
    MaePretrain,
    PretrainConfig,
    differences,
    digest,
    to_document,
)
from surgrec.configs.yaml_io import load_yaml
from surgrec.loaders.clip_loader import ClipLoader, ClipLoaderError
from surgrec.loaders.ledger import Ledger
from surgrec.loaders.packet_index import PacketIndex, PacketIndexError
from surgrec.models.build import build_objective
from surgrec.models.compiled import compile_blocks
from surgrec.models.mae import MaskedAutoencoder
from surgrec.models.objective import Objective
from surgrec.training.checkpoint import Checkpoint, load_checkpoint, prune_checkpoints, save_checkpoint
from surgrec.training.console import Console
from surgrec.training.distributed import World, start_world, stop_world
from surgrec.training.errors import UserError
from surgrec.training.guard import FiniteGuard
from surgrec.training.loop import Hooks, Outcome, train
from surgrec.training.mix import mix_scalars
from surgrec.training.monitor import Monitor
from surgrec.training.optim import build_adamw, load_optimizer_tensors, optimizer_tensors
from surgrec.training.panels import panel, save_png
from surgrec.training.peaks import peak_flops
from surgrec.training.recorder import Recorder, Totals
from surgrec.training.resolve import batch_shape, choose_precision
from surgrec.training.run_folder import RunFolder, choose_folder, find_checkpoint, open_folder, write_config
from surgrec.training.run_record import IndexRecord, describe_device, end_record, start_record
from surgrec.training.signals import StopRequest
from surgrec.training.step import Batch, Parts
from surgrec.training.summary import proxies_text, summarise, summary_text
from surgrec.training.values import check_values

SHOWN_UNUSABLE = 5


@dataclass(frozen=True)
class _Place:
    """Where a run goes on: its folder, and the checkpoint that it starts from."""

    run: RunFolder
    checkpoint: Path | None


def pretrain(config: PretrainConfig) -> int:
    """Carry out a run, or what is left of it. Returns the exit status: 0, or 128 + the stopping signal.

    Raises UserError for everything that the person can mend, OSError where the run folder cannot be written.
    """
    check_values(config)
    with StopRequest() as stop:
        world = start_world(config.device)
        try:
            return _pretrain(config, world, stop)
        finally:
            stop_world(world)


def _pretrain(config: PretrainConfig, world: World, stop: StopRequest) -> int:
    assert isinstance(config, MaePretrain | JepaPretrain)
    shape = batch_shape(config, world.size)
    try:
        index = PacketIndex.open(config.data.index)
    except PacketIndexError as error:
        raise UserError(str(error)) from error
    # The folder in which --config is read again may be another one.
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, index=config.data.index.resolve())
    )
    with ExitStack() as stack:
        place = world.share_result(lambda: _take_place(config, index, stack))
        run = place.run
        ledger = stack.enter_context(Ledger(run.ledger))
        failures_before = ledger.count
        try:
            loader = stack.enter_context(
                ClipLoader(
                    index,
                    config.data,
                    config.seed,
                    shape.global_batch,
                    shape.micro_batch,
                    rank=world.rank,
                    world_size=world.size,
                    device=world.device,
                    ledger=ledger,
                )
            )
            objective = build_objective(config.model, config.seed, config.data.frames, config.data.size)
        except ValueError as error:
            raise UserError(str(error)) from error
        objective.to(world.device)
        if config.compile == "on" or (config.compile == "auto" and world.device.type == "cuda"):
            compile_blocks(objective)
        optimizer = build_adamw(objective, objective.no_weight_decay, config.optim)
        start, totals = 0, Totals()
        if place.checkpoint is not None:
            checkpoint = load_checkpoint(place.checkpoint, verify=False)
            start, totals = checkpoint.step, Totals(**checkpoint.values["totals"])
            _restore(checkpoint, objective, optimizer, loader)
        console = Console(config.steps, start, enabled=world.first)
        _greet(console, config, world, index, loader, objective, place, start)
        if start >= config.steps:
            console.say(f"nothing to do: the run is complete\n{summary_text(run, place.checkpoint)}")
            return 0

        monitor = None
        if world.first:
            _write_records(config, run, world, index, start)
            if text := proxies_text(run):
                console.say(text)
            monitor = stack.enter_context(Monitor(run, to_document(config), start))
        precision = choose_precision(config, world.device)
        parts = Parts(config, world, objective, _wrap(objective, world), optimizer, loader, shape, precision)
        peak = None
        if world.device.type == "cuda":
            peak = peak_flops(describe_device(world.device), precision)
        recorder = Recorder(
            world,
            config.batch,
            monitor,
            console,
            objective.flops_per_clip(),
            peak,
            lambda: loader.failures,
            failures_before,
            lambda: mix_scalars(loader.mix, loader.expected_mix),
            totals,
        )
        saver = _Saver(parts, run, index, loader, recorder)
        guard = FiniteGuard(run, world, index.videos.path, config.max_bad_steps)
        hooks = Hooks(saver.save, lambda step, batch: _draw(parts, monitor, step, batch))
        try:
            outcome = train(parts, start, recorder, guard, stop, hooks)
        except (UserError, ClipLoaderError, OSError) as error:
            if world.first:
                console.close()
                # A full disk may be the very error; it is the one to tell.
                with suppress(OSError):
                    end_record(run, {"reason": f"error: {error}"})
            if isinstance(error, ClipLoaderError):
                raise UserError(str(error)) from error
            raise
        if world.first:
            assert monitor is not None
            _finish(parts, run, monitor, console, outcome, saver.last or place.checkpoint)
        return 128 + outcome.signal if outcome.signal else 0


def _take_place(config: PretrainConfig, index: PacketIndex, stack: ExitStack) -> _Place:
    """On rank 0: lock the run folder for as long as `stack` is open, and look for what to resume."""
    run = choose_folder(config)
    stack.enter_context(open_folder(run))
    return _Place(run, find_checkpoint(run, config, index.digest))


def _restore(
    checkpoint: Checkpoint, objective: Objective, optimizer: torch.optim.Optimizer, loader: ClipLoader
) -> None:
    try:
        objective.load_state_dict(checkpoint.model, strict=True)
        load_optimizer_tensors(optimizer, checkpoint.optimizer)
        loader.load_state_dict(checkpoint.values["loader"])
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the checkpoint of step {checkpoint.step} does not fit this run: {error}") from error


def _wrap(objective: Objective, world: World) -> torch.nn.Module:
    if world.size == 1:
        return objective
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(objective, device_ids=ids, broadcast_buffers=False)


def _write_records(
    config: PretrainConfig, run: RunFolder, world: World, index: PacketIndex, start: int
) -> None:
    changed: dict[str, tuple[Any, Any]] = {}
    if run.config.exists():
        changed = differences(load_yaml(run.config), to_document(config))
    record = IndexRecord(str(config.data.index), index.digest, len(index))
    start_record(run, world, record, start or None, changed)
    write_config(run, config)


def _greet(
    console: Console,
    config: PretrainConfig,
    world: World,
    index: PacketIndex,
    loader: ClipLoader,
    objective: Objective,
    place: _Place,
    start: int,
) -> None:
    ranks = f", {world.size} ranks" if world.size > 1 else ""
    console.say(
        f"run: {place.run.path}\n"
        f"device: {describe_device(world.device)}{ranks}; "
        f"{objective.parameter_count:,} parameters; {len(index) - len(loader.unusable):,} videos; "
        f"{config.steps:,} steps of {config.batch:,} clips"
    )
    for video in loader.unusable[:SHOWN_UNUSABLE]:
        console.say(f"left out: {video.path}: {video.reason}")
    if len(loader.unusable) > SHOWN_UNUSABLE:
        console.say(f"left out: {len(loader.unusable) - SHOWN_UNUSABLE} more videos, see {place.run.ledger}")
    if place.checkpoint is not None:
        console.say(f"resumed from {place.checkpoint}, after step {start}")


class _Saver:
    """Writes checkpoints and remembers the last one."""

    def __init__(
        self, parts: Parts, run: RunFolder, index: PacketIndex, loader: ClipLoader, recorder: Recorder
    ) -> None:
        self._parts = parts
        self._run = run
        self._index = index
        self._loader = loader
        self._recorder = recorder
        self.last: Path | None = None

    def save(self, step: int) -> None:
        """All ranks call it together; rank 0 writes."""
        parts, config = self._parts, self._parts.config
        totals = self._recorder.totals()
        if parts.world.first:
            document = to_document(config)
            values = {
                "config": document,
                "config_digest": digest(document),
                "index_digest": self._index.digest,
                "loader": self._loader.state_dict(),
                "totals": dataclasses.asdict(totals),
            }
            contents = Checkpoint(
                step, parts.objective.state_dict(), optimizer_tensors(parts.optimizer), values
            )
            try:
                self.last = save_checkpoint(self._run.checkpoints, contents)
            except OSError as error:
                raise UserError(
                    f"the checkpoint of step {step} cannot be written in {self._run.checkpoints}: "
                    f"{error.strerror}. Checkpoints written before it are whole; make room and start again "
                    f"with the same command to go on from the last."
                ) from error
            prune_checkpoints(
                self._run.checkpoints, config.checkpoint.keep_last, config.checkpoint.keep_every
            )
        parts.world.barrier()


def _picture(parts: Parts, batch: Batch) -> Any:
    """A panel of the batch's first clips, u8 [height, width, 3]; None for an objective without pictures."""
    objective, config = parts.objective, parts.config
    if not isinstance(objective, MaskedAutoencoder):
        return None
    count = config.log.panels
    with torch.autocast(parts.world.device.type, torch.bfloat16, enabled=parts.precision == torch.bfloat16):
        pictures = objective.reconstruct(batch.frames[:count], batch.samples[:count])
    return panel(*pictures, objective.config.tubelet)


def _draw(parts: Parts, monitor: Monitor | None, step: int, batch: Batch) -> None:
    if monitor is not None:
        picture = _picture(parts, batch)
        if picture is not None:
            monitor.picture(step, "input, mask, reconstruction", picture)


def _finish(
    parts: Parts, run: RunFolder, monitor: Monitor, console: Console, outcome: Outcome, last: Path | None
) -> None:
    """Records, final picture and the last words; on rank 0."""
    if outcome.last_batch is not None:
        picture = _picture(parts, outcome.last_batch)
        if picture is not None:
            save_png(run.reconstruction, picture)
    found = summarise(run)
    results = {} if found is None else {"hparam/loss": found.last_loss, "hparam/first_loss": found.first_loss}
    monitor.hparams(results)
    if outcome.signal:
        name = signal.Signals(outcome.signal).name
        end_record(run, {"step": outcome.step, "reason": name})
        again = f"python -m surgrec.pretrain --config {shlex.quote(str(run.config))}"
        console.say(
            f"stopped by {name} after step {outcome.step} of {parts.config.steps}; to go on:\n"
            f"  {again} --out {shlex.quote(str(run.path))}"
        )
    else:
        end_record(run, {"step": outcome.step, "reason": "finished"})
    console.say(summary_text(run, last))
