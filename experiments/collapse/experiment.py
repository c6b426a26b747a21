"""Do the monitors tell a JEPA that collapses from a healthy one?

Two runs of one recipe. In one the teacher is the student itself (EMA 0) and the gradient goes into both
sides of the loss (broken.py); the other is sound. A third, with EMA 0 and the stop-gradient left in place, is
only watched: nothing is claimed of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from experiments.digits import labelled_set, unlabelled_index
from experiments.lab import Check, Lab, Measure

BROKEN: Final = Path(__file__).with_name("broken.py")
NO_TEACHER: Final = "--model.ema-start 0 --model.ema-end 0"
HEALTHY, COLLAPSING, WATCHED = "healthy", "EMA 0, no stop-gradient", "EMA 0"


@dataclass(frozen=True)
class Config:
    """What is trained on."""

    seeds: tuple[int, ...]
    train: int
    """Samples of handwriting of each digit for each pair of motions; eight videos of each."""
    jepa: str
    """Options of surgrec.pretrain: a healthy recipe."""
    steps: int
    """Of all runs; the collapse must be flagged within 200."""


RUNS: Final = {
    HEALTHY: ("healthy", "", ()),
    COLLAPSING: ("broken", NO_TEACHER, (BROKEN,)),
    WATCHED: ("ema0", NO_TEACHER, ()),
}
"""Name -> short name, what is changed of the recipe, and what is run in the place of surgrec.pretrain."""


def prepare(lab: Lab, config: Config) -> Path:
    """An index of the videos."""
    samples = {"train": config.train, "val": 1, "test": 1}
    digits = labelled_set(lab, samples)  # type: ignore[arg-type]
    return unlabelled_index(lab, digits, samples, 0)  # type: ignore[arg-type]


def measure(lab: Lab, config: Config, data: Path, seed: int) -> None:
    """The three runs of one seed."""
    lab.together([partial(_run, config=config, index=data, name=name, seed=seed) for name in RUNS])


def _run(lab: Lab, config: Config, index: Path, name: str, seed: int) -> None:
    """The step at which a run was flagged first, and its last monitors."""
    short, change, module = RUNS[name]
    run = f"{short}-{seed}"
    lab.pretrain(run, f"{config.jepa} --steps {config.steps} {change}", {"index": index}, seed, module)
    curves = lab.curves[run]
    for figure in ("feature_std", "rankme"):
        lab.measures.append(Measure(name, "last step", figure, seed, curves[f"monitor/{figure}"][-1]))
    flagged = first_flag(curves)
    if flagged is not None:
        lab.measures.append(Measure(name, "collapse", "flagged at step", seed, flagged))


def first_flag(curves: dict[str, list[float]]) -> float | None:
    """The first step at which the monitors said that features had collapsed."""
    steps = zip(curves["step"], curves["monitor/collapsed"], strict=True)
    return next((step for step, flag in steps if flag), None)


def check(lab: Lab, config: Config) -> list[Check]:
    """The claims of docs/evidence.md, for every seed."""
    flags = {
        name: [m.value for m in lab.measures if (m.subject, m.task) == (name, "collapse")]
        for name in (HEALTHY, COLLAPSING)
    }
    runs = len({measure.seed for measure in lab.measures})
    late = [step for step in flags[COLLAPSING] if step > 200]
    said = ", ".join(f"{step:g}" for step in flags[COLLAPSING]) or "never"
    return [
        Check(
            "every run without teacher and stop-gradient is flagged within 200 steps",
            f"flagged in {len(flags[COLLAPSING])} of {runs} runs, at step {said}",
            len(flags[COLLAPSING]) == runs and not late,
        ),
        Check(
            "no healthy run is flagged",
            f"flagged in {len(flags[HEALTHY])} of {runs} runs",
            not flags[HEALTHY],
        ),
    ]
