"""One start of a fine-tuning: from a configuration to the line of its result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surgrec.configs.data import DataConfig
from surgrec.configs.finetune import FinetuneConfig, of_mode, to_document
from surgrec.configs.pretrain import to_document as pretraining_document
from surgrec.configs.yaml_io import dump_yaml
from surgrec.curation.records import key_of
from surgrec.evaluation.feature_models import VideoModel, clip_geometry, video_model
from surgrec.evaluation.manifest import Split, SplitManifest, read_manifest
from surgrec.evaluation.outcome import outcome_of, val_score
from surgrec.evaluation.parts import Part, part_among, parts_among
from surgrec.evaluation.results import append_result
from surgrec.finetuning.classifier import build_classifier, trained
from surgrec.finetuning.labelled_clips import Clips, TrainClips
from surgrec.finetuning.network_file import NetworkAbout, pretraining_of, write_network
from surgrec.finetuning.options import check_options, crop_of, options_of
from surgrec.finetuning.run_state import newest, restore_best, restore_epoch, save_epoch
from surgrec.finetuning.tuner import Asked, Tuner, ask
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.failure_watch import FailureWatch
from surgrec.loaders.ledger import Ledger
from surgrec.models.block_ways import set_blocks, way_on
from surgrec.models.low_rank import merge_low_rank
from surgrec.models.video_encoder import encoder_of
from surgrec.training.distributed import World, choose_device
from surgrec.training.errors import UserError
from surgrec.training.monitor import Monitor
from surgrec.training.run_folder import RunFolder, choose_folder, open_folder, write_atomically
from surgrec.training.run_record import IndexRecord, start_record


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


@dataclass(frozen=True)
class _Data:
    """What a run reads. batch: clips of a step."""

    manifest: SplitManifest
    ours: VideoModel
    clips: Clips
    parts: dict[Split, Part]
    batch: int
    stream: ClipStream
    watch: FailureWatch

    @property
    def videos(self) -> str:
        """A digest of the content of the videos of all rows, wherever they lie."""
        return key_of(self.clips.index.videos.xxh3)


def finetune(config: FinetuneConfig, threads: int, progress: Progress) -> Finished:
    """Carries out a run, or what is left of it, and appends its result.

    Raises ValueError (options, ManifestError, FeatureError), UserError, CurationError (weights), BuildError
    (the index of the videos), ClipLoaderError, OSError.
    """
    check_options(config)
    manifest = read_manifest(config.manifest)
    ours = video_model(config.model, config.seed)
    if ours is None:
        raise ValueError(
            f"--model {config.model} cannot be fine-tuned: give ckpt:PATH of surgrec.pretrain, or random:"
            "PRESET; image models are for surgrec.extract and surgrec.probe"
        )
    if not config.data_root.is_dir():
        raise ValueError(f"{config.data_root}: no such folder; check --data-root")
    # The folder in which --config is read again may be another one.
    config = replace(config, manifest=config.manifest.resolve(), data_root=config.data_root.resolve())
    device = choose_device(config.device, 0)
    run = choose_folder(config.out, "finetune")
    with ExitStack() as stack:
        stack.enter_context(open_folder(run))
        before = _before(run, config, manifest, ours)
        if before is not None:
            _append(config, before)
            return Finished(run, before, reused=True)
        progress.say(f"run: {run.path}")
        data = _open(config, manifest, ours, run, device, threads, stack, progress)
        result = _finetune(config, data, run, device, progress)
    return Finished(run, result, reused=False)


def _before(
    run: RunFolder, config: FinetuneConfig, manifest: SplitManifest, ours: VideoModel
) -> dict[str, Any] | None:
    """The result of a run that is complete. Raises UserError where the folder holds another run."""
    newest(run, _wanted(config, manifest, ours))
    if not run.result.exists():
        return None
    try:
        result: dict[str, Any] = json.loads(run.result.read_text())
    except ValueError as error:
        raise UserError(
            f"{run.result} is damaged: not JSON ({error}). Remove it, and test is asked again"
        ) from error
    for name, wanted in (
        ("mode", f"finetune-{config.mode}"),
        ("options", options_of(config)),
        ("model_identity", ours.identity),
        ("manifest_digest", manifest.digest),
    ):
        if result.get(name) != wanted:
            raise UserError(
                f"{run.path} holds the result of another run: {name} is {result.get(name)!r}, here"
                f" {wanted!r}; give another --out"
            )
    return result


def _wanted(config: FinetuneConfig, manifest: SplitManifest, ours: VideoModel) -> dict[str, Any]:
    """What the checkpoints of a run have in common with a start that goes on from them."""
    return {"config": to_document(config), "manifest_digest": manifest.digest, "identity": ours.identity}


def _append(config: FinetuneConfig, result: dict[str, Any]) -> None:
    """Appends a result, unless its very line is there: a run may be stopped between keeping and appending
    it."""
    line = json.dumps(result, allow_nan=False).encode()
    if not config.results.exists() or line not in config.results.read_bytes().splitlines():
        append_result(config.results, result)


def _open(
    config: FinetuneConfig,
    manifest: SplitManifest,
    ours: VideoModel,
    run: RunFolder,
    device: torch.device,
    threads: int,
    stack: ExitStack,
    progress: Progress,
) -> _Data:
    progress.say(f"indexing the videos of {len(manifest.rows)} rows")
    clips = Clips(manifest, config.data_root, ours.config.data, run.path / "videos.h5", threads)
    parts = parts_among(clips.present, manifest, str(config.manifest))
    batch = min(config.batch, len(parts["train"].rows))
    if config.mixup or config.cutmix:
        batch -= batch % 2
    data = DataConfig(size=ours.config.data.size)
    stream = stack.enter_context(ClipStream(clips.index, data, device, threads))
    ledger = stack.enter_context(Ledger(run.ledger))
    watch = FailureWatch(data.max_failures, ledger)
    return _Data(manifest, ours, clips, parts, batch, stream, watch)


def _finetune(
    config: FinetuneConfig, data: _Data, run: RunFolder, device: torch.device, progress: Progress
) -> dict[str, Any]:
    classes = len(data.manifest.classes)
    encoder = encoder_of(data.ours.build(torch.device("cpu")))
    set_blocks(encoder, way_on(device.type, "auto"))
    classifier = build_classifier(config, encoder, classes).to(device)
    tuner = Tuner(config, classifier, classes, data.batch)
    train = TrainClips(
        data.clips, data.parts["train"].rows, data.batch, crop_of(config), data.stream, data.watch
    )
    wanted = _wanted(config, data.manifest, data.ours) | {"videos": data.videos}
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
    result = _result(config, data, values, best, count, device, test)
    about = _about(config, data, result)
    result["network_digest"] = write_network(run.network, about, classifier)
    write_atomically(run.result, json.dumps(result, allow_nan=False) + "\n")
    _append(config, result)
    return result


def _epoch(
    config: FinetuneConfig,
    data: _Data,
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
    val = part_among(_read(data, asked.missing), data.manifest, "val", str(config.manifest))
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
    config: FinetuneConfig, data: _Data, tuner: Tuner, split: Split, weights: dict[str, torch.Tensor]
) -> Asked:
    """About the rows of val or test, which has its own clips and views."""
    own: dict[str, Any] = {}
    if split == "test":
        own = {"count": config.test_clips, "views": config.test_views}
    rows = data.parts[split].rows
    return ask(tuner.classifier, weights, data.clips, rows, data.stream, config.batch, **own)


def _read(data: _Data, missing: Mapping[int, str]) -> NDArray[np.bool_]:
    """bool [rows of the manifest]: those that can be read, but the missing."""
    present = data.clips.present
    present[list(missing)] = False
    return present


def _best(val: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch of the highest score on val; of equal ones that of the lowest loss, then the first."""
    scored = [entry for entry in val if entry["score"] is not None]
    return min(scored, key=lambda entry: (-entry["score"], entry["loss"])) if scored else val[-1]


def _result(
    config: FinetuneConfig,
    data: _Data,
    values: dict[str, Any],
    best: dict[str, Any],
    parameters: int,
    device: torch.device,
    test: Asked,
) -> dict[str, Any]:
    where = str(config.manifest)
    if best["score"] is None or not np.isfinite(test.scores).all():
        raise UserError(
            f"{where}: every epoch diverged; give a smaller --lr than {of_mode(config)['lr']:g} and another"
            " --out"
        )
    # Of val, what could not be read in the last epoch.
    lost = dict(values["val_missing"]) | test.missing
    parts = parts_among(_read(data, lost), data.manifest, where)
    missing = dict(sorted((data.clips.missing | lost).items()))
    return {
        "model": config.model,
        "model_identity": data.ours.identity,
        "features_digest": "",
        "geometry": clip_geometry(data.ours.config.data),
        "clips": config.test_clips,
        "views": list(config.test_views),
        "mode": f"finetune-{config.mode}",
        "options": options_of(config),
        "device": device.type,
        "trained_parameters": parameters,
        "chosen": {name: best[name] for name in ("epoch", "score", "loss")},
        "val": values["val"],
        "substitutes": values["substitutes"],
        **outcome_of(data.manifest, parts, missing, test.scores, config.seed, config.resamples),
    }


def _about(config: FinetuneConfig, data: _Data, result: dict[str, Any]) -> NetworkAbout:
    pretraining = data.ours.config
    names = ("dataset", "manifest_digest", "model", "geometry", "clips", "options", "chosen")
    return NetworkAbout(
        kind=result["mode"],
        classes=data.manifest.classes,
        identity=data.ours.identity,
        pretraining=pretraining_of(pretraining, pretraining_document(pretraining)),
        head=config.head,
        blocks=config.blocks,
        views=config.test_views,
        **{name: result[name] for name in (*names, "date", "versions", "commit")},
    )


def _write_records(
    config: FinetuneConfig, data: _Data, run: RunFolder, device: torch.device, start: int
) -> None:
    index = data.clips.index
    record = IndexRecord(str(index.path), index.digest, len(index))
    world = World(0, 0, 1, device)
    start_record(run, world, record, None, start or None, {}, graphed=False, program="surgrec.finetune")
    write_atomically(run.config, dump_yaml(to_document(config)))
