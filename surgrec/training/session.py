"""One start of a pretraining run: from a configuration to its last checkpoint."""

from __future__ import annotations

import dataclasses
import shlex
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
from surgrec.loaders.corpus_plan import CorpusPlan
from surgrec.loaders.ledger import Ledger
from surgrec.loaders.packet_index import PacketIndex, PacketIndexError
from surgrec.models.block_ways import set_blocks
from surgrec.models.build import build_objective
from surgrec.models.mae import MaskedAutoencoder
from surgrec.models.objective import Objective
from surgrec.training.console import Console
from surgrec.training.distributed import World, start_world, stop_world
from surgrec.training.errors import UserError
from surgrec.training.graphed import graph_stream, graphed_passes, reason_against
from surgrec.training.guard import FiniteGuard, check_weights
from surgrec.training.loop import Hooks, Outcome, train
from surgrec.training.mix import mix_scalars
from surgrec.training.monitor import Monitor
from surgrec.training.optim import build_adamw
from surgrec.training.panels import panel, save_png
from surgrec.training.parallel import needs_all_ranks, wrap
from surgrec.training.peaks import peak_flops
from surgrec.training.recorder import Recorder, Totals
from surgrec.training.resolve import batch_shape, choose_precision
from surgrec.training.run_folder import RunFolder, choose_folder, find_checkpoint, open_folder, write_config
from surgrec.training.run_record import (
    IndexRecord,
    PlanRecord,
    describe_device,
    end_record,
    start_record,
)
from surgrec.training.saver import Saver, restore
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
        set_blocks(objective, config.blocks)
        stream = graph_stream(config, objective, world)
        model = wrap(objective, world, config.parallel, stream)
        optimizer = build_adamw(objective, objective.no_weight_decay, config.optim)
        start, totals = 0, Totals()
        if place.checkpoint is not None:
            start, values = restore(place.checkpoint, objective, optimizer, world)
            try:
                loader.load_state_dict(values["loader"])
            except ValueError as error:
                raise UserError(f"{place.checkpoint} does not fit this run: {error}") from error
            totals = Totals(**values["totals"])
        console = Console(config.steps, start, enabled=world.first)
        against = reason_against(config.graph, objective, world.device.type, world.size, config.parallel)
        _greet(console, config, world, index, loader, objective, place, start, against)
        if start >= config.steps:
            console.say(f"nothing to do: the run is complete\n{summary_text(run, place.checkpoint)}")
            return 0

        monitor = None
        if world.first:
            _write_records(config, run, world, index, loader.plan, start, graphed=against is None)
            if text := proxies_text(run):
                console.say(text)
            monitor = stack.enter_context(Monitor(run, to_document(config), start))
        precision = choose_precision(config, world.device)
        graph = graphed_passes(config, model, stream, shape, precision)
        if graph is not None:
            stack.callback(graph.close)
        parts = Parts(config, world, objective, model, optimizer, loader, shape, precision, graph)
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
        saver = stack.enter_context(Saver(run.checkpoints, world, objective, optimizer, config.checkpoint))
        guard = FiniteGuard(run, world, index.videos.path, config.max_bad_steps)

        def save(step: int) -> None:
            check_weights(objective, world, step)
            saver.save(step, _checkpoint_values(parts, index, recorder.totals()))

        hooks = Hooks(save, lambda step, batch: _draw(parts, monitor, step, batch))
        try:
            outcome = train(parts, start, recorder, guard, stop, hooks)
            saver.wait()
        except Exception as error:
            if world.first:
                console.close()
                expected = isinstance(error, UserError | ClipLoaderError | OSError)
                kind = "" if expected else f"{type(error).__name__}: "
                # A full disk may be the very error; it is the one to tell.
                with suppress(OSError):
                    end_record(run, {"reason": f"error: {kind}{error}"})
            if isinstance(error, ClipLoaderError):
                raise UserError(str(error)) from error
            raise
        picture = None if outcome.last_batch is None else _picture(parts, outcome.last_batch)
        if world.first:
            assert monitor is not None
            _finish(parts, run, monitor, console, outcome, picture, saver.last or place.checkpoint)
        return 128 + outcome.signal if outcome.signal else 0


def _take_place(config: PretrainConfig, index: PacketIndex, stack: ExitStack) -> _Place:
    """On rank 0: lock the run folder for as long as `stack` is open, and look for what to resume."""
    run = choose_folder(config.out, config.name)
    stack.enter_context(open_folder(run))
    return _Place(run, find_checkpoint(run, config, index.digest))


def _write_records(
    config: PretrainConfig,
    run: RunFolder,
    world: World,
    index: PacketIndex,
    plan: CorpusPlan | None,
    start: int,
    graphed: bool,
) -> None:
    changed: dict[str, tuple[Any, Any]] = {}
    if run.config.exists():
        changed = differences(load_yaml(run.config), to_document(config))
    record = IndexRecord(str(config.data.index), index.digest, len(index))
    drawn_by = None if plan is None else PlanRecord(str(plan.path), plan.digest, len(plan))
    start_record(run, world, record, drawn_by, start or None, changed, graphed)
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
    against: str | None,
) -> None:
    """`against`: why there is no CUDA graph, None where there is one."""
    ranks = f", {world.size} ranks" if world.size > 1 else ""
    console.say(
        f"run: {place.run.path}\n"
        f"device: {describe_device(world.device)}{ranks}; "
        f"{objective.parameter_count:,} parameters; {len(index) - len(loader.unusable):,} videos; "
        f"{config.steps:,} steps of {config.batch:,} clips\n"
        f"CUDA graph: {'replayed in every step' if against is None else f'none, {against}'}"
    )
    for video in loader.unusable[:SHOWN_UNUSABLE]:
        console.say(f"left out: {video.path}: {video.reason}")
    if len(loader.unusable) > SHOWN_UNUSABLE:
        console.say(f"left out: {len(loader.unusable) - SHOWN_UNUSABLE} more videos, see {place.run.ledger}")
    if isinstance(config, MaePretrain) and config.model.decoder_share < 1:
        share = f"{config.model.decoder_share:.0%} of the hidden tokens"
        console.say(f"the decoder rebuilds {share} (model.decoder_share): the loss is of these alone")
    if place.checkpoint is not None:
        console.say(f"resumed from {place.checkpoint}, after step {start}")


def _checkpoint_values(parts: Parts, index: PacketIndex, totals: Totals) -> dict[str, Any]:
    """What a checkpoint holds beside tensors."""
    document = to_document(parts.config)
    return {
        "config": document,
        "config_digest": digest(document),
        "index_digest": index.digest,
        "loader": parts.batches.state_dict(),
        "totals": dataclasses.asdict(totals),
    }


def _picture(parts: Parts, batch: Batch) -> NDArray[np.uint8] | None:
    """On rank 0, a panel of the batch's first clips, u8 [height, width, 3]; None for a JEPA.

    All ranks call it together.
    """
    objective, config = parts.objective, parts.config
    if not isinstance(objective, MaskedAutoencoder):
        return None
    if not parts.world.first and not needs_all_ranks(parts.model):
        return None
    count = config.log.panels
    with torch.autocast(parts.world.device.type, torch.bfloat16, enabled=parts.precision == torch.bfloat16):
        pictures = objective.reconstruct(batch.frames[:count], batch.samples[:count])
    return panel(*pictures, objective.config.tubelet) if parts.world.first else None


def _draw(parts: Parts, monitor: Monitor | None, step: int, batch: Batch) -> None:
    picture = _picture(parts, batch)
    if monitor is not None and picture is not None:
        monitor.picture(step, "input, mask, reconstruction", picture)


def _finish(
    parts: Parts,
    run: RunFolder,
    monitor: Monitor,
    console: Console,
    outcome: Outcome,
    picture: NDArray[np.uint8] | None,
    last: Path | None,
) -> None:
    """Records, final picture and the last words; on rank 0."""
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
