"""A probe from features to a result: train on train, choose on val, report once on test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from surgrec.configs.probe import RATES, Kind, ProbeConfig
from surgrec.evaluation.device import device_of
from surgrec.evaluation.features import FeatureError, FeatureFile, open_features
from surgrec.evaluation.head_training import Candidate, one_head, probabilities, train_heads
from surgrec.evaluation.heads import AttentiveHeads, Heads, LinearHeads, Weights
from surgrec.evaluation.knn import knn_scores
from surgrec.evaluation.manifest import Split, SplitManifest, read_manifest
from surgrec.evaluation.metrics import Answers, class_figures
from surgrec.evaluation.outcome import BASELINE_FIGURES, Scores, outcome_of, val_score
from surgrec.evaluation.parts import Part
from surgrec.evaluation.probe_data import Reader, few_shot, parts_of
from surgrec.evaluation.results import provenance
from surgrec.evaluation.saved_head import HeadAbout, SavedHead, write_head


@dataclass(frozen=True)
class Chosen:
    """The best of a grid on val. parameters: that it was trained in. setting: what it is. val: score and loss
    of every candidate, None for one that diverged. test: float32 [n, C], what it says of test. weights: of a
    trained head, with shift and scale of its features where they are standardised; empty for knn."""

    parameters: int
    setting: dict[str, Any]
    val: list[dict[str, Any]]
    test: Scores
    weights: Weights


def probe(config: ProbeConfig, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The result, as JSON's plain values; docs/probes.md describes them.

    Raises ManifestError, FeatureError, ValueError for options that make no sense, OSError.
    """
    check_options(config)
    manifest = read_manifest(config.manifest)
    features = open_features(config.features, manifest)
    parts = parts_of(features, manifest)
    device = device_of(config.device)
    classes = len(manifest.classes)
    progress(f"{config.kind} probe of {features.about.model}, {len(parts['train'].rows)} rows of train")
    features.verify("tokens" if config.kind == "attentive" else "pooled")
    chosen = choose(config, features, parts, classes, device)
    result: dict[str, Any] = {
        "model": features.about.model,
        "model_identity": features.about.identity,
        "features_digest": features.digest,
        "geometry": features.about.geometry,
        "clips": features.about.clips,
        "views": list(features.about.views),
        "mode": mode_of(config.kind),
        "options": options_of(config),
        "device": device.type,
        "trained_parameters": chosen.parameters,
        "chosen": chosen.setting,
        "val": chosen.val,
        **outcome_of(manifest, parts, features.missing, chosen.test, config.seed, config.resamples),
    }
    if config.shots:
        result["few_shot"] = _few_shot(config, features, parts, classes, device, progress)
    if config.save is not None:
        result["head_digest"] = write_head(config.save, _saved(config, features, manifest, chosen))
    return result


def _saved(config: ProbeConfig, features: FeatureFile, manifest: SplitManifest, chosen: Chosen) -> SavedHead:
    """The chosen head with what made it."""
    tokens = features.token_shape
    about = HeadAbout(
        kind=mode_of(config.kind),
        classes=manifest.classes,
        dataset=manifest.dataset,
        manifest_digest=manifest.digest,
        features_digest=features.digest,
        model=features.about.model,
        identity=features.about.identity,
        geometry=features.about.geometry,
        clips=features.about.clips,
        views=features.about.views,
        width=features.width if config.kind == "linear" or tokens is None else tokens[1],
        blocks=config.blocks if config.kind == "attentive" else 0,
        precision=config.precision,
        options=options_of(config),
        chosen=chosen.setting,
        **provenance(),
    )
    return SavedHead(about, chosen.weights)


def mode_of(kind: Kind) -> str:
    """How results name a kind of probe."""
    return f"probe-{kind}"


def check_options(config: ProbeConfig) -> None:
    """Raises ValueError, naming the option and its bound."""
    for name in ("steps", "batch", "draws", "resamples"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name} is {getattr(config, name)}; it is at least 1")
    for name, least in (("ks", 1), ("shots", 1), ("seeds", 0)):
        if any(value < least for value in getattr(config, name)):
            raise ValueError(f"--{name} holds {min(getattr(config, name))}; each is at least {least}")
    if any(not 0 < rate < float("inf") for rate in config.lrs):
        raise ValueError(f"--lrs are {config.lrs}; each is above 0")
    if any(not 0 <= decay < float("inf") for decay in config.weight_decays):
        raise ValueError(f"--weight-decays are {config.weight_decays}; each is at least 0")
    for name in ("weight_decays", "seeds", "ks"):
        if not getattr(config, name):
            raise ValueError(f"--{name.replace('_', '-')} is empty; name at least one")
    if config.save is not None and config.kind == "knn":
        raise ValueError(
            "--save is of trained heads; knn trains none: leave it out, or choose another --kind"
        )
    if config.out.is_dir():
        raise ValueError(
            f"--out {config.out} is a folder; name a file, such as {config.out / 'results.jsonl'}"
        )
    if config.save is not None and config.save.exists():
        raise ValueError(f"{config.save}: is there already, and is not overwritten; name another --save")


def options_of(config: ProbeConfig) -> dict[str, Any]:
    """The options that a result depends on."""
    common = ("select", "resamples", "seed", "shots", "draws")
    own = {
        "knn": ("ks",),
        "linear": ("weight_decays", "seeds", "steps", "batch", "precision"),
        "attentive": ("weight_decays", "seeds", "steps", "batch", "precision", "blocks"),
    }[config.kind]
    found = {name: getattr(config, name) for name in (*common, *own)}
    if config.kind != "knn":
        found["lrs"] = config.lrs or RATES[config.kind]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def choose(
    config: ProbeConfig, features: FeatureFile, parts: dict[Split, Part], classes: int, device: torch.device
) -> Chosen:
    """Trains the grid on train, takes the best on val, and asks it about test.

    Raises FeatureError where features are not finite, are no tokens, or every head diverged.
    """
    if config.kind == "knn":
        return _nearest(config, features, parts, classes, device)
    reader = Reader(features, "tokens" if config.kind == "attentive" else "pooled", device)
    if config.kind == "linear":
        reader = reader.standardised(parts["train"])
    heads: Heads
    if config.kind == "linear":
        heads = LinearHeads(reader.width, classes)
    else:
        heads = AttentiveHeads(reader.width, classes, config.blocks)
    grid = [
        Candidate(lr, decay, seed)
        for lr in config.lrs or RATES[config.kind]
        for decay in config.weight_decays
        for seed in config.seeds
    ]
    half = config.precision == "bfloat16"
    batches = reader.batches(parts["train"], config.batch, config.steps, config.seed)
    weights = train_heads(heads, grid, batches, config.steps, device, half)

    def ask(part: Part, chosen: Any) -> Scores:
        """float32 [G, n, C]: the mean over the samples of a row."""
        found = []
        for values, _ in reader.in_order(part, config.batch):
            shares = [probabilities(heads, chosen, sample, half) for sample in values]
            found.append(torch.stack(shares).mean(0).cpu())
        return np.asarray(torch.cat(found, 1).numpy())

    val = ask(parts["val"], weights)
    settings = [vars(candidate) for candidate in grid]
    best, scores = _best(config, parts["val"], val, settings, str(features.path))
    head = one_head(weights, best)
    kept = {name: value[0].cpu() for name, value in head.items()}
    if reader.shift is not None and reader.scale is not None:
        kept |= {"shift": reader.shift.cpu(), "scale": reader.scale.cpu()}
    return Chosen(heads.parameters, settings[best], scores, ask(parts["test"], head)[0], kept)


def _nearest(
    config: ProbeConfig, features: FeatureFile, parts: dict[Split, Part], classes: int, device: torch.device
) -> Chosen:
    reader = Reader(features, "pooled", device)
    ks = sorted(set(config.ks))

    def ask(part: Part, ks: list[int]) -> Scores:
        found = []
        for values, _ in reader.in_order(part):
            bank = ((own.mean(0), labels) for own, labels in reader.in_order(parts["train"]))
            found.append(knn_scores(values.mean(0), bank, ks, classes).cpu())
        return np.asarray(torch.cat(found, 1).numpy())

    settings = [{"k": k} for k in ks]
    best, scores = _best(config, parts["val"], ask(parts["val"], ks), settings, str(features.path))
    return Chosen(0, settings[best], scores, ask(parts["test"], [ks[best]])[0], {})


def _best(
    config: ProbeConfig, val: Part, shares: Scores, settings: list[dict[str, Any]], where: str
) -> tuple[int, list[dict[str, Any]]]:
    """The candidate of the highest score on val; of equal ones that of the lowest loss, then the first."""
    found: list[dict[str, Any]] = []
    ranks = []
    for number, (setting, own) in enumerate(zip(settings, shares, strict=True)):
        if not np.isfinite(own).all():
            found.append(setting | {"score": None, "loss": None})
            continue
        score, loss = val_score(val, own, config.select)
        found.append(setting | {"score": score, "loss": loss})
        ranks.append((-score, loss, number))
    if not ranks:
        rates = config.lrs or RATES[config.kind]
        raise FeatureError(f"{where}: every head of the grid diverged; give smaller --lrs than {rates}")
    return min(ranks)[2], found


def _few_shot(
    config: ProbeConfig,
    features: FeatureFile,
    parts: dict[Split, Part],
    classes: int,
    device: torch.device,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """For each number of shots: figures of every draw on test, their mean and standard deviation."""
    test = parts["test"]
    found = []
    for shots in config.shots:
        draws: list[dict[str, Any]] = []
        for draw in range(config.draws):
            progress(f"{shots} shots, draw {draw + 1} of {config.draws}")
            few = few_shot(parts["train"], shots, draw, config.seed)
            chosen = choose(config, features, parts | {"train": few}, classes, device)
            answers = Answers(test.labels, chosen.test.astype(np.float64), test.groups)
            figures = class_figures(answers, np.ones((1, answers.group_count)))
            draws.append(
                {"train_rows": len(few.rows), "chosen": chosen.setting}
                | {name: float(figures[name][0]) for name in BASELINE_FIGURES}
            )
        entry: dict[str, Any] = {"shots": shots, "draws": draws}
        for name in BASELINE_FIGURES:
            values = [draw[name] for draw in draws]
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
            entry[name] = {"mean": float(np.mean(values)), "deviation": deviation}
        found.append(entry)
    return found
