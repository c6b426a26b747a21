"""Does drawing in balance help what is rare?

Eight sources at 1 : 200 with junk in the common ones (sources.py). One recipe, equal steps: clips drawn frame
by frame of everything there is, or by what `surgrec.curate` makes of it, junk left out and clusters drawn
alike. The features are probed on the four rare sources, with handwriting that was in neither.
"""

from __future__ import annotations

import shlex
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from surgrec.loaders.corpus_plan import CorpusPlan
from surgrec.loaders.packet_index import PacketIndex

from experiments.balance.sources import RARE, SOURCES, make
from experiments.lab import Check, Lab, Measure

TASKS: Final = ("digit", "motion")
FRAMES, BALANCED = "uniform frames, with junk", "hierarchical balance"
SCHEMES: Final = {
    FRAMES: ("frames", ("--balance.scheme", "uniform-frames", "--quality.zero")),
    BALANCED: ("balanced", ("--balance.scheme", "hierarchical")),
}
"""Name -> short name, and what surgrec.curate is told."""
SET_SEED: Final = 0
"""Of the videos and of curation; the seeds of an experiment are those of training."""


@dataclass(frozen=True)
class Config:
    """What is made, trained and asked. Commands are written as after `python -m surgrec.NAME`."""

    seeds: tuple[int, ...]
    rarest: int
    """Frames of the rarest source."""
    train: int
    val: int
    test: int
    """Samples of each digit for each pair of motions, in each rare source."""
    pretrain: str
    probe: str


@dataclass(frozen=True)
class Data:
    """manifests: of TASKS. index, plans: of the corpus, plans by scheme."""

    manifests: tuple[Path, ...]
    index: Path
    plans: dict[str, Path]


def prepare(lab: Lab, config: Config) -> Data:
    """Draws the corpus and curates it by both schemes."""
    samples = {"train": config.train, "val": config.val, "test": config.test}
    manifests = make(lab.out, config.rarest, samples, SET_SEED, lab.workers)  # type: ignore[arg-type]
    index = lab.out / "corpus.h5"
    lab.run("index", ["-m", "surgrec.index", lab.out / "corpus", "--out", index, "--workers", lab.workers])
    plans = {}
    for name, (short, options) in SCHEMES.items():
        plan = plans[name] = lab.out / f"{short}.h5"
        curate = ["-m", "surgrec.curate", "all", "--index", index, "--out", plan, "--seed", SET_SEED]
        curate += ["--segments.detector", "content", "--workers", lab.workers, *options]
        lab.run(f"curate-{short}", curate)
    return Data(tuple(manifests), index, plans)


def measure(lab: Lab, config: Config, data: Data, seed: int) -> None:
    """Both schemes with one seed of training."""
    lab.together([partial(_scheme, config=config, data=data, name=name, seed=seed) for name in SCHEMES])


def _scheme(lab: Lab, config: Config, data: Data, name: str, seed: int) -> None:
    short, plan = SCHEMES[name][0], data.plans[name]
    share = 100 * rare_share(data.index, plan)
    lab.measures.append(Measure(name, "rare sources", "share of draws", seed, share))
    run = lab.pretrain(f"{short}-{seed}", config.pretrain, {"index": data.index, "plan": plan}, seed)
    lab.together(
        [
            partial(
                _probe,
                config=config,
                name=name,
                stem=f"{short}-{seed}-{task}",
                task=task,
                manifest=manifest,
                run=run,
                seed=seed,
            )
            for task, manifest in zip(TASKS, data.manifests, strict=True)
        ]
    )


def _probe(
    lab: Lab, config: Config, name: str, stem: str, task: str, manifest: Path, run: Path, seed: int
) -> None:
    features, results = lab.out / "features" / f"{stem}.h5", lab.out / "results" / f"{stem}.jsonl"
    extract = ["-m", "surgrec.extract", "--manifest", manifest, "--data-root", manifest.parent]
    extract += ["--model", f"ckpt:{run}", "--tokens", "--out", features, "--batch", 64]
    lab.run(f"extract-{stem}", [*extract, "--workers", lab.workers, "--device", lab.device])
    probe = ["-m", "surgrec.probe", features, "--manifest", manifest, "--kind", "attentive"]
    probe += [*shlex.split(config.probe), "--seed", seed, "--out", results, "--device", lab.device]
    lab.run(f"probe-{stem}", probe)
    lab.keep(name, task, results, seed)


def rare_share(index: Path, plan: Path) -> float:
    """Share of the draws of a plan that fall to the rare sources."""
    opened = PacketIndex.open(index)
    rare = {f"source{number}" for number in range(RARE)}
    videos = [Path(path).parent.name in rare for path in opened.videos.path]
    found = CorpusPlan.open(plan, opened)
    shares = zip(found.segments.video.tolist(), found.weight.tolist(), strict=True)
    return sum(weight for video, weight in shares if videos[video])


def check(lab: Lab, config: Config) -> list[Check]:
    """The claim of docs/evidence.md: a difference of means larger than the spread over the seeds."""
    found = []
    for task in TASKS:
        values = {
            name: [m.value for m in lab.measures if (m.subject, m.task) == (name, task)] for name in SCHEMES
        }
        spread = max(max(each) - min(each) for each in values.values())
        gain = statistics.fmean(values[BALANCED]) - statistics.fmean(values[FRAMES])
        claim = f"on {task} of the {RARE} rarest of {SOURCES} sources balance helps by more than the spread"
        text = f"{gain:+.1f} points; seeds spread over {spread:.1f}"
        found.append(Check(claim, text, len(config.seeds) > 1 and gain > spread))
    return found
