"""Do MAE and JEPA learn what moves, and how, from unlabelled video of moving digits?

Both are pretrained on videos without labels, and an attentive probe is asked for digit and motion: beside
the same networks untrained, beside an MAE that was pretrained on single frames (each of which looks the same
way under every motion), and with few labels beside the same network trained from scratch on these labels:
features as they are, and the pretrained networks trained on like the other.
"""

from __future__ import annotations

import shlex
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from experiments.digits import few_labels, labelled_set, shots_of, unlabelled_index
from experiments.lab import Check, Lab, Measure, untrained
from surgrec.evaluation.manifest import read_manifest
from surgrec.evaluation.results import read_documents

TASKS: Final = ("digit", "motion")
LEARNT: Final = ("MAE", "JEPA")
STILL: Final = "MAE of single frames"
SUPERVISED: Final = "supervised from scratch"


@dataclass(frozen=True)
class Config:
    """What is made, trained and asked. Commands are written as after `python -m surgrec.NAME`."""

    seeds: tuple[int, ...]
    """Of weights, clips and masks."""
    train: int
    val: int
    test: int
    """Samples of handwriting of each digit for each pair of motions."""
    unlabelled: int
    """Further unlabelled videos of each train sample in each motion."""
    mae: str
    jepa: str
    still: str
    """Of surgrec.pretrain; `still` sees one frame."""
    frames: int
    """Clips of one frame of a video that the model of single frames is asked about."""
    probe: str
    finetune: str
    labels: tuple[float, ...]
    """Per cent of the labels of train."""
    draws: int
    """Of few labels."""
    tuned: tuple[str, ...]
    """Which of LEARNT are fine-tuned on few labels, by the very command of training from scratch."""
    digit_labels: float | None
    motion_labels: float | None
    """Per cent of the labels with which features are compared with untrained ones; None for all."""
    mae_digit: float | None
    mae_motion: float | None
    jepa_digit: float | None
    jepa_motion: float | None
    """Points by which features must beat those of the untrained network; None claims nothing."""
    few_labels: bool
    """Whether it is claimed that with the fewest labels those that are `tuned` beat training from scratch."""


@dataclass(frozen=True)
class Data:
    """digits: the labelled set. index: of the videos without labels."""

    digits: Path
    index: Path


def prepare(lab: Lab, config: Config) -> Data:
    """Draws the videos."""
    samples = {"train": config.train, "val": config.val, "test": config.test}
    digits = labelled_set(lab, samples)  # type: ignore[arg-type]
    return Data(digits, unlabelled_index(lab, digits, samples, config.unlabelled))  # type: ignore[arg-type]


def measure(lab: Lab, config: Config, data: Data, seed: int) -> None:
    """All models of one seed."""
    recipes = {"MAE": ("mae", config.mae), "JEPA": ("jepa", config.jepa), STILL: ("still", config.still)}
    runs = {name: lab.out / "runs" / f"{short}-{seed}" for name, (short, _) in recipes.items()}

    def pretrain(lab: Lab, name: str) -> None:
        lab.pretrain(runs[name].name, recipes[name][1], {"index": data.index}, seed)

    lab.together([partial(pretrain, name=name) for name in recipes])
    parts = []
    for name, run in runs.items():
        models = {name: f"ckpt:{run}"} | ({untrained(name): f"random:{run}"} if name in LEARNT else {})
        for subject, model in models.items():
            about: dict[str, Any] = {"config": config, "digits": data.digits, "seed": seed}
            about |= {"name": subject, "model": model}
            parts += [partial(_probe, task=task, **about) for task in TASKS]
    few = {SUPERVISED: f"random:{runs['MAE']}"} | {tuned(name): f"ckpt:{runs[name]}" for name in config.tuned}
    for name, model in few.items():
        about = {"config": config, "digits": data.digits, "seed": seed, "name": name, "model": model}
        parts += [
            partial(_on_few_labels, task=task, per_cent=per_cent, **about)
            for task in TASKS
            for per_cent in config.labels
        ]
    lab.together(parts)


def tuned(name: str) -> str:
    """Name of a pretrained model that was fine-tuned."""
    return f"{name}, fine-tuned"


def _short(name: str) -> str:
    return name.lower().replace(",", "").replace(" ", "-")


def _probe(lab: Lab, config: Config, digits: Path, name: str, model: str, task: str, seed: int) -> None:
    short = _short(name)
    clips = config.frames if name == STILL else 1
    manifest, features = digits / f"{task}.json", lab.out / "features" / f"{short}-{seed}-{task}.h5"
    extract = ["-m", "surgrec.extract", "--manifest", manifest, "--data-root", digits, "--model", model]
    extract += ["--tokens", "--clips", clips, "--out", features, "--seed", seed, "--batch", 64]
    lab.run(f"extract-{features.stem}", [*extract, "--workers", lab.workers, "--device", lab.device])
    results = lab.out / "results" / f"{features.stem}.jsonl"
    probe = ["-m", "surgrec.probe", features, "--manifest", manifest, "--kind", "attentive"]
    probe += [*shlex.split(config.probe), "--seed", seed, "--out", results, "--device", lab.device]
    shots = {shots_of(manifest, per_cent): per_cent for per_cent in config.labels}
    if name in LEARNT or (name != STILL and getattr(config, f"{task}_labels") is not None):
        probe += ["--shots", *shots, "--draws", config.draws]
    lab.run(f"probe-{features.stem}", probe)
    lab.keep(name, task, results, seed)
    for entry in read_documents(results)[-1].get("few_shot", []):
        lab.measures.append(_of_draws(name, task, seed, shots[entry["shots"]], entry["draws"]))


def _of_draws(name: str, task: str, seed: int, per_cent: float, draws: list[dict[str, float]]) -> Measure:
    """The mean over draws of few labels; low and high are the least and the greatest of them."""
    values = [100 * draw["accuracy"] for draw in draws]
    mean = statistics.fmean(values)
    return Measure(name, task, "accuracy", seed, mean, min(values), max(values), amount=per_cent)


def _on_few_labels(
    lab: Lab, config: Config, digits: Path, task: str, per_cent: float, name: str, model: str, seed: int
) -> None:
    """A network trained on the rows that the probes have in each draw."""
    shots, draws = shots_of(digits / f"{task}.json", per_cent), []
    for draw in range(config.draws):
        step = f"{_short(name)}-{seed}-{task}-{shots}-{draw}"
        manifest = lab.out / "few" / f"{step}.json"
        few_labels(digits / f"{task}.json", shots, draw, seed, manifest)
        results = lab.out / "results" / f"{step}.jsonl"
        words = ["-m", "surgrec.finetune", "--manifest", manifest, "--data-root", digits, "--seed", seed]
        words += ["--model", model, "--out", lab.out / "finetune" / step, "--results", results]
        words += [*shlex.split(config.finetune), "--workers", lab.workers, "--device", lab.device]
        lab.run(step, words)
        draws.append({"accuracy": read_documents(results)[-1]["figures"]["accuracy"]["value"]})
    lab.measures.append(_of_draws(name, task, seed, per_cent, draws))


def check(lab: Lab, config: Config) -> list[Check]:
    """The claims of docs/evidence.md, by means over seeds."""

    def mean(name: str, task: str, amount: float | None = None) -> float:
        values = [m.value for m in lab.measures if (m.subject, m.task, m.amount) == (name, task, amount)]
        return statistics.fmean(values)

    found = []
    for task in TASKS:
        for name in LEARNT:
            least_gain = getattr(config, f"{name.lower()}_{task}")
            amount = getattr(config, f"{task}_labels")
            if least_gain is not None:
                gain = mean(name, task, amount) - mean(untrained(name), task, amount)
                with_labels = "" if amount is None else f" with {amount:g} % of the labels"
                claim = f"{name} beats its untrained twin on {task}{with_labels} by {least_gain:g} points"
                found.append(Check(claim, f"{gain:+.1f} points", gain >= least_gain))
            if config.few_labels and name in config.tuned:
                least = min(config.labels)
                ahead = mean(tuned(name), task, least) - mean(SUPERVISED, task, least)
                claim = f"with {least:g} % of the labels {name} beats training from scratch on {task}"
                found.append(Check(claim, f"{ahead:+.1f} points", ahead > 0))
    chance = 100 / len(read_manifest(lab.out / "digits" / "motion.json").classes)
    above = mean(STILL, "motion") - chance
    claim = "single frames are within 5 points of chance on motion"
    return [*found, Check(claim, f"{above:+.1f} points from {chance:.1f} %", abs(above) <= 5)]
