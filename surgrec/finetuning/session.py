"""One start of a fine-tuning: from a configuration to the line of its result."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from surgrec.configs.finetune import FinetuneConfig, to_document
from surgrec.configs.yaml_io import dump_yaml
from surgrec.evaluation.manifest import Split, SplitManifest, read_manifest
from surgrec.evaluation.outcome import val_score
from surgrec.evaluation.parts import part_among
from surgrec.finetuning.classifier import build_classifier, trained
from surgrec.finetuning.labelled_clips import TrainClips
from surgrec.finetuning.network_file import write_network
from surgrec.finetuning.options import check_options, crop_of
from surgrec.finetuning.run_data import RunData, open_data
from surgrec.finetuning.run_result import about_of, append_once, kept_result, result_of
from surgrec.finetuning.run_state import newest, restore_best, restore_epoch, save_epoch
from surgrec.finetuning.tuner import Asked, Tuner, ask
from surgrec.models.block_ways import set_blocks, way_on
from surgrec.models.low_rank import merge_low_rank
from surgrec.training.distributed import World, choose_device
from surgrec.training.monitor import Monitor
from surgrec.training.run_folder import RunFolder, choose_folder, open_folder, write_atomically
from surgrec.training.run_record import IndexRecord, start_record
from surgrec.weights.load import OpenedModel, open_model


@dataclass(frozen=True)
class Progress:
    """Who is told how it goes. say: a line. step: (updates so far, of all, mean loss of the epoch)."""

    say: Callable[[str], None] = lambda text: None
    step: Callable[[int, int, float], None] = lambda done, of, loss: None


@dataclass(frozen=True)
class Finished:
    """What a start came to. reused: the run had its result before."""

    run: RunFolder
    result: dict[str, Any]
    reused: bool


def finetune(config: FinetuneConfig, threads: int, progress: Progress) -> Finished:
    """Carries out a run, or what is left of it, and appends its result.

    Raises ValueError (options, ManifestError, FeatureError), UserError, CurationError (weights), BuildError
    (the index of the videos), ClipLoaderError, OSError.
    """
    check_options(config)
    manifest = read_manifest(config.manifest)
    model = open_model(config.model, seed=config.seed)
    if model is None:
        raise ValueError(
            f"there is no model {config.model!r}: give --model ckpt:PATH of surgrec.pretrain, file:PATH,"
            " hf:FOLDER, timm:MODEL, timm:MODEL@FILE, random:timm:MODEL, random:RUN or random:PRESET"
        )
    if not config.data_root.is_dir():
        raise ValueError(f"{config.data_root}: no such folder; check --data-root")
    # The folder in which --config is read again may be another one.
    config = replace(config, manifest=config.manifest.resolve(), data_root=config.data_root.resolve())
    device = choose_device(config.device, 0)
    run = choose_folder(config.out, "finetune")
    with ExitStack() as stack:
        stack.enter_context(open_folder(run))
        newest(run, _wanted(config, manifest, model))
        before = kept_result(run, config, manifest, model)
        if before is not None:
            append_once(config.results, before)
            return Finished(run, before, reused=True)
        progress.say(f"run: {run.path}; indexing the videos of {len(manifest.rows)} rows")
        data = open_data(config, manifest, model, run, device, threads, stack)
        result = _finetune(config, data, run, device, progress)
    return Finished(run, result, reused=False)


def _finetune(
    config: FinetuneConfig, data: RunData, run: RunFolder, device: torch.device, progress: Progress
) -> dict[str, Any]:
    classes = len(data.manifest.classes)
    encoder = data.model.load(torch.device("cpu")).encoder
    set_blocks(encoder, way_on(device.type, "auto"))
    classifier = build_classifier(config, encoder, classes).to(device)
    tuner = Tuner(config, classifier, classes, data.batch)
    train = TrainClips(
        data.clips, data.parts["train"].rows, data.batch, crop_of(config), data.stream, data.watch
    )
    wanted = _wanted(config, data.manifest, data.model) | {"videos": data.clips.contents}
    path = newest(run, wanted)
    values: dict[str, Any] = wanted | {"epoch": 0, "val": [], "val_missing": [], "substitutes": 0}
    if path is not None:
        values = restore_epoch(path, tuner) | wanted
        progress.say(f"resumed from {path}, after epoch {values['epoch']}")
    count = sum(value.numel() for value in trained(classifier).values())
    progress.say(
        f"{config.mode}: {count:,} trained parameters; {len(data.parts['train'].rows)} rows of train,"
        f" {config.epochs} epochs of {train.steps} steps of {data.batch} clips"
    )
    _write_records(config, data, run, device, values["epoch"] * train.steps)
    with Monitor(run, to_document(config), values["epoch"] * train.steps) as monitor:
        for epoch in range(values["epoch"], config.epochs):
            _epoch(config, data, run, tuner, train, epoch, values, monitor, progress)
    best = _best(values["val"])
    restore_best(run, best["epoch"] * train.steps, tuner)
    merge_low_rank(classifier)
    progress.say(f"epoch {best['epoch']} is the best on val; asking it about test")
    test = _ask(config, data, tuner, "test", {})
    result = result_of(config, data, values, best, count, device, test)
    about = about_of(config, data, result)
    result["network_digest"] = write_network(run.network, about, classifier)
    write_atomically(run.result, json.dumps(result, allow_nan=False) + "\n")
    append_once(config.results, result)
    return result


def _epoch(
    config: FinetuneConfig,
    data: RunData,
    run: RunFolder,
    tuner: Tuner,
    train: TrainClips,
    epoch: int,
    values: dict[str, Any],
    monitor: Monitor,
    progress: Progress,
) -> None:
    """Trains an epoch, judges it on val, and keeps it. values: of the checkpoint, brought up to date."""
    total = config.epochs * train.steps
    done = tuner.train(train, epoch, lambda step, loss: progress.step(step, total, loss))
    asked = _ask(config, data, tuner, "val", tuner.average.values)
    val = part_among(data.present(asked.missing), data.manifest, "val", str(config.manifest))
    entry: dict[str, Any] = {"epoch": epoch + 1, "score": None, "loss": None, "train_loss": done.loss}
    if np.isfinite(asked.scores).all():
        entry["score"], entry["loss"] = val_score(val, asked.scores, config.select)
    values["epoch"] = epoch + 1
    values["val_missing"] = list(asked.missing.items())
    values["val"] = [*values["val"], entry]
    values["substitutes"] += done.substitutes
    step = (epoch + 1) * train.steps
    scalars = {"train/loss": done.loss, "data/substitutes": float(values["substitutes"])}
    if entry["score"] is not None:
        scalars |= {f"val/{config.select}": entry["score"], "val/loss": entry["loss"]}
    # Before the checkpoint: a resumed run withdraws points behind its own.
    monitor.scalars(step, scalars)
    save_epoch(run, step, tuner, values, _best(values["val"])["epoch"] * train.steps)
    said = (
        "diverged"
        if entry["score"] is None
        else f"{config.select} {entry['score']:.3f}, loss {entry['loss']:.3f}"
    )
    progress.say(f"epoch {epoch + 1} of {config.epochs}: train loss {done.loss:.3f}, val {said}")


def _ask(
    config: FinetuneConfig, data: RunData, tuner: Tuner, split: Split, weights: dict[str, torch.Tensor]
) -> Asked:
    """About the rows of val or test, which has its own clips and views."""
    own: dict[str, Any] = {}
    if split == "test":
        own = {"count": config.test_clips, "views": config.test_views}
    rows = data.parts[split].rows
    return ask(tuner.classifier, weights, data.clips, rows, data.stream, config.batch, **own)


def _best(val: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch of the highest score on val; of equal ones that of the lowest loss, then the first."""
    scored = [entry for entry in val if entry["score"] is not None]
    return min(scored, key=lambda entry: (-entry["score"], entry["loss"])) if scored else val[-1]


def _wanted(config: FinetuneConfig, manifest: SplitManifest, model: OpenedModel) -> dict[str, Any]:
    """What the checkpoints of a run have in common with a start that goes on from them."""
    return {"config": to_document(config), "manifest_digest": manifest.digest, "identity": model.identity}


def _write_records(
    config: FinetuneConfig, data: RunData, run: RunFolder, device: torch.device, start: int
) -> None:
    index = data.clips.index
    record = IndexRecord(str(index.path), index.digest, len(index))
    world = World(0, 0, 1, device)
    start_record(run, world, record, None, start or None, {}, graphed=False, program="surgrec.finetune")
    write_atomically(run.config, dump_yaml(to_document(config)))
