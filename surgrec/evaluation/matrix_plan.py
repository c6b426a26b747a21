"""What of a matrix of models x splits x probes is to be done, and the room that its features need."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from surgrec.configs.extract import ExtractConfig
from surgrec.configs.matrix import MatrixConfig
from surgrec.configs.probe import Kind, ProbeConfig
from surgrec.curation.records import key_of
from surgrec.evaluation.feature_models import FeatureModel, feature_model, is_image_model
from surgrec.evaluation.manifest import ManifestError, SplitManifest, read_manifest
from surgrec.evaluation.probing import check_options, mode_of, options_of
from surgrec.evaluation.registry_table import chosen
from surgrec.evaluation.results import read_documents
from surgrec.training.errors import UserError

FAILURES: Final = (ValueError, RuntimeError, UserError, OSError)
"""What ends a cell, and not the matrix: every error of data, weights, disk and GPU is one of these."""


@dataclass(frozen=True)
class Pair:
    """A model on a split, of which features are extracted once.

    dataset, digest, rows: of the split. features: the file. bytes: that it will have; 0 where it is there, or
    is not needed. begun: bytes of it that a stopped run has left. todo, done: probes without and with a
    result. fault: why nothing can be done; dataset is then the manifest's path where that is the cause.
    """

    model: str
    manifest: Path
    dataset: str
    digest: str = ""
    rows: int = 0
    features: Path = Path()
    bytes: int = 0
    begun: int = 0
    todo: tuple[Kind, ...] = ()
    done: tuple[Kind, ...] = ()
    fault: str = ""


def results_of(config: MatrixConfig) -> Path:
    """The file that results are appended to."""
    return config.out / "results.jsonl"


def features_of(config: MatrixConfig) -> Path:
    """The folder of the feature files."""
    return config.out / "features"


def extract_config(config: MatrixConfig, model: str, manifest: Path, out: Path) -> ExtractConfig:
    """How the features of a model on a split are extracted; tokens only for attentive probes."""
    options = config.extract if is_image_model(model) else replace(config.extract, pictures=None)
    tokens = "attentive" in config.probes
    return ExtractConfig(manifest, config.data_root, model, out, tokens, **vars(options))


def probe_config(config: MatrixConfig, pair: Pair, kind: Kind) -> ProbeConfig:
    """How one cell is evaluated."""
    return ProbeConfig(pair.features, pair.manifest, **vars(config.probe), kind=kind, out=results_of(config))


def make_plan(config: MatrixConfig, device: torch.device) -> list[Pair]:
    """All pairs, by model and then by split. device: where networks say how large their features are.

    Raises ValueError for options that make no sense, ResultsError where OUT/results.jsonl is damaged.
    """
    manifests = _check(config)
    results = results_of(config)
    known = {_cell(document) for document in read_documents(results)} if results.exists() else set()
    splits = [(path, _read(path)) for path in manifests]
    pairs: list[Pair] = []
    for name in config.models:
        pairs += _of_model(config, name, splits, known, device)
    _check_twice(pairs)
    return pairs


def room(pairs: Sequence[Pair], ranks: int, drop: bool) -> int:
    """Bytes of the disk that the pairs' features need at most, beyond what is there: files that are kept, or
    of `ranks` pairs at a time, and beside a file that is written its parts."""
    sizes = sorted((pair.bytes for pair in pairs), reverse=True)
    written = sum(sizes[:ranks])
    kept = written if drop else sum(sizes)
    return max(0, kept + written - sum(pair.begun for pair in pairs))


def check_room(config: MatrixConfig, pairs: Sequence[Pair], ranks: int) -> tuple[int, int]:
    """Bytes that are needed and that the disk has left. Raises ValueError where they are too few."""
    folder = next(each for each in (config.out, *config.out.absolute().parents) if each.exists())
    needed, free = room(pairs, ranks, config.drop_features), shutil.disk_usage(folder).free
    if needed > free:
        remedy = "" if config.drop_features else "give --drop-features, "
        raise ValueError(
            f"{config.out}: the features need {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left;"
            f" {remedy}free some space, or leave out the attentive probe, which reads tokens"
        )
    return needed, free


def _check(config: MatrixConfig) -> list[Path]:
    """The manifests that are asked for. Raises ValueError, naming the option."""
    for name in ("models", "probes"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"--{name} are {' '.join(values) or 'empty'}; name each once, at least one")
    ending = ".json" if config.splits == "published" else ".repaired.json"
    found = [*config.manifests]
    if config.datasets:
        found += [config.manifest_folder / f"{dataset.key}{ending}" for dataset in chosen(config.datasets)]
    if not found:
        raise ValueError("nothing to evaluate on: give --manifests FILE ... or --datasets NAME ...")
    if not config.data_root.is_dir():
        raise ValueError(f"{config.data_root}: no such folder; check --data-root")
    for kind in config.probes:
        check_options(ProbeConfig(Path(), Path(), **vars(config.probe), kind=kind))
    return found


def _check_twice(pairs: Sequence[Pair]) -> None:
    """Raises ValueError where two pairs are the same: one would wait for the other's features."""
    seen: dict[Path, Pair] = {}
    for pair in pairs:
        other = seen.setdefault(pair.features, pair)
        if other is not pair and not pair.fault:
            raise ValueError(
                f"{pair.model} on {pair.manifest} is the same as {other.model} on {other.manifest}: weights"
                f" and split are equal; name one of them"
            )


def _read(path: Path) -> SplitManifest | str:
    try:
        return read_manifest(path)
    except ManifestError as error:
        return str(error)


def _of_model(
    config: MatrixConfig,
    name: str,
    splits: list[tuple[Path, SplitManifest | str]],
    known: set[str],
    device: torch.device,
) -> list[Pair]:
    """The pairs of a model; where it cannot be had, all say why."""
    fault, model, shapes = "", None, None
    try:
        options = extract_config(config, name, Path(), Path())
        model = feature_model(name, options.pictures, options.seed)
    except FAILURES as error:
        fault = reason_of(error)
    pairs = []
    for path, manifest in splits:
        if isinstance(manifest, str) or model is None:
            dataset = str(path) if isinstance(manifest, str) else manifest.dataset
            digest = "" if isinstance(manifest, str) else manifest.digest
            own = manifest if isinstance(manifest, str) else fault
            pairs.append(Pair(name, path, dataset, digest, todo=config.probes, fault=own))
            continue
        pair = _pair(config, name, model, path, manifest, known)
        if pair.todo and not pair.features.exists():
            try:
                if not fault and shapes is None:
                    shapes = model.shapes(device)
            except FAILURES as error:
                fault = reason_of(error)
            size = 0 if shapes is None else _bytes(config, pair.rows, *shapes)
            pair = replace(pair, fault=fault, bytes=size, begun=_begun(pair.features))
        pairs.append(pair)
    return pairs


def _pair(
    config: MatrixConfig,
    name: str,
    model: FeatureModel,
    path: Path,
    manifest: SplitManifest,
    known: set[str],
) -> Pair:
    options = config.extract
    tokens = "attentive" in config.probes
    about = model.identity, model.geometry, manifest.digest, options.clips, options.views, tokens
    readable = re.sub(r"[^a-z0-9]+", "-", f"{manifest.dataset}-{name}".lower()).strip("-")
    features = features_of(config) / f"{readable[-80:]}-{key_of(*about)[:16]}.h5"
    pair = Pair(name, path, manifest.dataset, manifest.digest, len(manifest.rows), features)
    done = [
        kind
        for kind in config.probes
        if _cell(
            {
                "dataset": manifest.dataset,
                "manifest_digest": manifest.digest,
                "model_identity": model.identity,
                "geometry": model.geometry,
                "clips": options.clips,
                "views": options.views,
                "mode": mode_of(kind),
                "options": options_of(probe_config(config, pair, kind)),
            }
        )
        in known
    ]
    todo = tuple(kind for kind in config.probes if kind not in done)
    return replace(pair, todo=todo, done=tuple(done))


def _cell(document: dict[str, Any]) -> str:
    """What tells results apart: model, split, how its clips are looked at, and how it is probed."""
    names = ("dataset", "manifest_digest", "model_identity", "geometry", "clips", "views", "mode", "options")
    return json.dumps([document.get(name) for name in names], sort_keys=True)


def _bytes(config: MatrixConfig, rows: int, width: int, tokens: tuple[int, int]) -> int:
    """Of the columns of a feature file, float16."""
    values = width + tokens[0] * tokens[1] * ("attentive" in config.probes)
    return 2 * values * rows * config.extract.clips * len(config.extract.views)


def _begun(features: Path) -> int:
    folder = features.with_name(f"{features.name}.work")
    return sum(path.stat().st_size for path in folder.glob("*.npz")) if folder.is_dir() else 0


def reason_of(error: BaseException) -> str:
    """What people are told of an error that ended a cell."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU has no memory left; give a smaller --probe.batch, fewer --probe.lrs, or bfloat16"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return str(error) or type(error).__name__
