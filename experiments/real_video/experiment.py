"""Does pretraining on real video give features that know what belongs together?

All real footage at hand becomes proxies, on which MAE and JEPA are pretrained. Then every window of 8 frames
looks for its nearest neighbour: is that of the same source, and is the nearest of its own source near in
time? Beside the same networks untrained, and beside the descriptor of curation, which needs no weights. Means
over all windows are subtracted before cosines, for all alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.lab import Check, Lab, Measure, untrained
from experiments.real_video.footage import Windows, blocks, by_blocks, cut, descriptors, gather, hits
from surgrec.evaluation.features import open_features
from surgrec.evaluation.manifest import read_manifest

LEARNT: Final = ("MAE", "JEPA")
DESCRIPTOR: Final = "descriptor without weights"
QUESTIONS: Final = ("same source", "neighbouring time")


@dataclass(frozen=True)
class Config:
    """What is trained. Commands are written as after `python -m surgrec.pretrain`."""

    seeds: tuple[int, ...]
    size: int
    """Shorter side of the proxies, and of the clips of the commands."""
    frames: int
    """Of a window, and of the clips of the commands, which have stride 1."""
    mae: str
    jepa: str


@dataclass(frozen=True)
class Data:
    """index: of the proxies. rival: float32 [windows, D], features that need no weights."""

    index: Path
    windows: Windows
    rival: NDArray[np.float32]


def prepare(lab: Lab, config: Config) -> Data:
    """Makes proxies and windows."""
    proxies = gather(lab, lab.videos, config.size)
    index = lab.out / "corpus.h5"
    table = proxies / "videos.csv"
    lab.run("index", ["-m", "surgrec.index", "--manifest", table, "--out", index, "--workers", lab.workers])
    windows = cut(lab, proxies, index, config.frames)
    return Data(index, windows, descriptors(index, windows, config.frames, config.size))


def measure(lab: Lab, config: Config, data: Data, seed: int) -> None:
    """All models of one seed."""
    windows, learnt = data.windows, {}

    def train(lab: Lab, name: str, options: str) -> None:
        short = name.lower()
        run = lab.pretrain(f"{short}-{seed}", options, {"index": data.index}, seed)
        trained = _features(lab, windows, f"{short}-{seed}", f"ckpt:{run}", seed)
        learnt[name] = trained, _features(lab, windows, f"{short}-{seed}-untrained", f"random:{run}", seed)

    recipes = zip(LEARNT, (config.mae, config.jepa), strict=True)
    lab.together([partial(train, name=name, options=options) for name, options in recipes])
    found = {DESCRIPTOR: data.rival}
    for name in LEARNT:
        found[name], found[untrained(name)] = learnt[name]
    answers = {name: hits(features, windows) for name, features in found.items()}
    for name, answer in answers.items():
        for question in QUESTIONS:
            _keep(lab, windows, name, question, answer[question], seed, "accuracy")
    for name in LEARNT:
        for rival in (untrained(name), DESCRIPTOR):
            for question in QUESTIONS:
                ahead = answers[name][question] - answers[rival][question]
                _keep(lab, windows, f"{name} less {rival}", question, ahead, seed, "points")


def _keep(
    lab: Lab, windows: Windows, name: str, question: str, values: NDArray[np.float64], seed: int, figure: str
) -> None:
    kept = np.isfinite(values)
    value, low, high = by_blocks(values[kept], blocks(windows, kept), seed)
    count = int(kept.sum())
    lab.measures.append(Measure(name, question, figure, seed, value, low, high, count, count))


def _features(lab: Lab, windows: Windows, name: str, model: str, seed: int) -> NDArray[np.float32]:
    out = lab.out / "features" / f"{name}.h5"
    words = ["-m", "surgrec.extract", "--manifest", windows.manifest, "--data-root", windows.data_root]
    words += ["--model", model, "--out", out, "--seed", seed, "--batch", 16]
    lab.run(f"extract-{name}", [*words, "--workers", lab.workers, "--device", lab.device])
    file = open_features(out, read_manifest(windows.manifest))
    rows = np.flatnonzero(file.present)
    if len(rows) < len(file.present):
        raise ValueError(f"{out}: windows are missing: {next(iter(file.missing.values()))}")
    return file.pooled(rows, np.zeros(len(rows), np.int64)).astype(np.float32)


def check(lab: Lab, config: Config) -> list[Check]:
    """The claims of docs/evidence.md: in every seed the interval of the difference lies above 0."""
    found = []
    for name in LEARNT:
        for rival in (untrained(name), DESCRIPTOR):
            for question in QUESTIONS:
                own = [
                    measure
                    for measure in lab.measures
                    if (measure.subject, measure.task) == (f"{name} less {rival}", question)
                ]
                said = ", ".join(f"{m.value:+.1f} [{m.low:.1f}, {m.high:.1f}]" for m in own)
                claim = f"{name} finds {question} better than {rival}"
                found.append(Check(claim, f"{said} points", all((m.low or 0) > 0 for m in own)))
    return found
