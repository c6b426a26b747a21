"""Runs an experiment, writes down what was measured, and says whether it bears out what is claimed.

    python experiments/run.py motion_digits                 # two cores, fifteen minutes
    python experiments/run.py motion_digits --size gpu      # one GPU, about eight minutes

A module of experiments has a Config and three functions: prepare(lab, config) makes the data that all seeds
share, measure(lab, config, data, seed) trains and asks, check(lab, config) compares with what is claimed.

The result goes to experiments/NAME/results/, whether it is as expected or not. The exit status is 0 where all
claims hold, 1 where one does not or a step failed, 130 after Ctrl-C; the same command then goes on.
"""

from __future__ import annotations

import datetime
import os
import re
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

ROOT = Path(__file__).resolve().parents[1]
# Behind what is installed: the top-level folder `surgrec` is not the whole package.
sys.path += [str(ROOT), str(ROOT / "bench")]

if TYPE_CHECKING:
    from experiments.lab import Check, Lab

GPU_JOBS = 4
"""A GPU has room for several small models, and a command spends half its time with imports and compiling."""
Name = Literal["motion_digits", "balance", "real_video", "collapse"]


@dataclass(frozen=True)
class Options:
    """Run an experiment and keep its result."""

    name: Annotated[Name, tyro.conf.Positional]
    size: Literal["cpu", "gpu"] = "cpu"
    """cpu: two cores, up to fifteen minutes. gpu: made for one GPU and about eight."""
    config: Path | None = None
    """Another configuration than experiments/NAME/SIZE.yaml."""
    seeds: tuple[int, ...] = ()
    """In the place of the configuration's."""
    out: Path | None = None
    """Where videos, runs and features go; build/experiments/NAME-SIZE by default."""
    videos: tuple[Path, ...] = ()
    """Your own footage, for real_video."""
    workers: int = 0
    """Decoding threads and processes of a command; 0 takes the cores of this machine, shared by its jobs."""
    jobs: int = 0
    """Commands at a time; 0 takes one for cpu and four for gpu."""
    save: bool = True
    """Write the result to `results`."""
    results: Path | None = None
    """Folder of the results; experiments/NAME/results by default."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit status is as the module says."""
    options = tyro.cli(Options, args=arguments, prog="python experiments/run.py")
    from surgrec.configs.yaml_io import ConfigError, from_plain, load_yaml, to_plain

    from experiments.lab import ExperimentError, Lab

    module = import_module(f"experiments.{options.name}.experiment")
    path = options.config or ROOT / "experiments" / options.name / f"{options.size}.yaml"
    if options.videos and options.name != "real_video":
        print(f"experiments: --videos is of real_video; leave it out for {options.name}", file=sys.stderr)
        return 2
    try:
        config = from_plain(module.Config, load_yaml(path) or {})
    except ConfigError as error:
        print(f"experiments: {path}: {error}", file=sys.stderr)
        return 2
    out = (options.out or ROOT / "build" / "experiments" / f"{options.name}-{options.size}").absolute()
    jobs = options.jobs or (1 if options.size == "cpu" else GPU_JOBS)
    workers = options.workers or max(1, len(os.sched_getaffinity(0)) // jobs)
    if min(jobs, workers) < 1:
        print(f"experiments: --jobs {jobs} and --workers {workers} must be at least 1", file=sys.stderr)
        return 2
    lab = Lab(out, "cpu" if options.size == "cpu" else "cuda", workers, options.videos, jobs)
    seeds = options.seeds or tuple(config.seeds)
    checks: list[Check] = []
    failure = ""
    try:
        out.mkdir(parents=True, exist_ok=True)
        data = module.prepare(replace(lab, workers=jobs * workers), config)
        lab.together([partial(module.measure, config=config, data=data, seed=seed) for seed in seeds])
        checks = module.check(lab, config)
    except (ExperimentError, OSError, ValueError) as error:
        failure = str(error)
        print(f"experiments: {failure}", file=sys.stderr)
    except KeyboardInterrupt:
        print("experiments: stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    for check in checks:
        print(f"{'holds' if check.holds else 'DOES NOT HOLD'}: {check.claim}: {check.found}")
    if options.save:
        content = document(options, lab, checks, failure.replace(str(out), "OUT"))
        content |= {"config": to_plain(config), "seeds": list(seeds)}
        folder = options.results or ROOT / "experiments" / options.name / "results"
        print(f"written: {write_result(folder, options.size, content)}")
    return 0 if checks and all(check.holds for check in checks) else 1


def document(options: Options, lab: Lab, checks: list[Check], failure: str) -> dict[str, Any]:
    """The record of an experiment, as plain values."""
    import harness

    from experiments.lab import wall_seconds
    from surgrec.training.run_record import package_versions

    return {
        "experiment": options.name,
        "size": options.size,
        "date": datetime.date.today().isoformat(),
        "commit": harness.commit(),
        "machine": harness.machine(),
        "versions": package_versions(),
        # Of an experiment that went on after a stop, all of it.
        "seconds": round(wall_seconds(lab.steps), 1),
        "failure": failure,
        "checks": [asdict(check) for check in checks],
        "measures": [asdict(measure) for measure in lab.measures],
        "steps": [asdict(step) for step in lab.steps],
        "curves": lab.curves,
    }


def write_result(folder: Path, size: str, content: dict[str, Any]) -> Path:
    """SIZE-DEVICE-DATE[-n].json; an earlier result is never overwritten."""
    from experiments.lab import write_whole

    device = re.sub(r"[^a-z0-9]+", "-", content["machine"]["device"].lower()).strip("-")
    base = f"{size}-{device}-{content['date'].replace('-', '')}"
    path, number = folder / f"{base}.json", 2
    while path.exists():
        path, number = folder / f"{base}-{number}.json", number + 1
    write_whole(path, content)
    return path


if __name__ == "__main__":
    sys.exit(main())
