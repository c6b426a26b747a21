"""`python -m surgrec.demo`: from nothing to a small pretrained model, by a user's own commands.

`python -m surgrec.demo dataset --out DIR`: a small labelled benchmark.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from surgrec.configs.demo import DemoConfig, DigitSetConfig

if TYPE_CHECKING:
    from surgrec.evaluation.manifest import Split

IMAGE_MODEL = "random:timm:test_vit"
"""The smallest vision transformer of timm: the demo has two CPU cores."""
LOSS_POINTS = 3
"""Points of the log that the loss at the start and at the end is the mean of."""


@dataclass(frozen=True)
class LossFall:
    """Mean loss over the first and the last points of a run, and the number of its last step."""

    start: float
    end: float
    steps: int


def python() -> str:
    """This interpreter, as a person in this folder would name it."""
    name = os.path.relpath(sys.executable)
    return sys.executable if name.startswith("..") else name


def run_command(arguments: list[str]) -> int:
    """Print a command, run it, and return its exit status."""
    print(f"\n$ {shlex.join([python(), *arguments])}", flush=True)
    return subprocess.run([sys.executable, *arguments], check=False).returncode


def read_loss(metrics: Path) -> LossFall:
    """The fall of the loss in a run's metrics.jsonl. Raises ValueError where it has no loss."""
    entries = [json.loads(line) for line in metrics.read_text().splitlines()]
    points = [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]
    if not points:
        raise ValueError(f"{metrics} holds no loss: the run ended before its first step")
    first, last = points[:LOSS_POINTS], points[-LOSS_POINTS:]
    start, end = (sum(loss for _, loss in part) / len(part) for part in (first, last))
    return LossFall(start, end, points[-1][0])


def new_run_folder(out: Path) -> Path:
    """A run folder that is not there yet: OUT/runs/demo-TIME."""
    base = out / "runs" / time.strftime("demo-%Y%m%d-%H%M%S")
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit status is that of the first command in it which fails."""
    import tyro

    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["dataset"]:
        made = tyro.cli(DigitSetConfig, args=arguments[1:], prog="python -m surgrec.demo dataset")
        return make_dataset(made)
    config = tyro.cli(DemoConfig, args=arguments, prog="python -m surgrec.demo")
    from surgrec.configs.presets import PRESETS
    from surgrec.demo_data.real_video import MissingPackageError

    try:
        manifest = gather_videos(config)
    except (ModuleNotFoundError, MissingPackageError) as error:
        print(
            f"surgrec.demo: {error}\nThe demo needs its extra: pip install 'surgrec[demo]', or make demo.",
            file=sys.stderr,
        )
        return 1
    index, run = config.out / "corpus.h5", new_run_folder(config.out)
    plan = config.out / "plan.h5"
    preset = PRESETS["demo"][1]
    steps = preset.steps if config.steps is None else config.steps
    for command in (
        ["-m", "surgrec.index", "--manifest", str(manifest), "--out", str(index)],
        curate_command(config, index, plan, steps * preset.batch),
        pretrain_command(config, index, plan, run),
    ):
        status = run_command(command)
        if status:
            return status
    print_summary(config.out, run, plan.with_suffix(".html"))
    return make_table(config, run) if config.table else 0


def make_table(config: DemoConfig, run: Path) -> int:
    """What a run's model can do on the moving digits, beside untrained ones; 0 if OUT/table.html is there."""
    page = config.out / "table.html"
    for command in table_commands(config, run, page):
        status = run_command(command)
        if status:
            return status
    print(f"Table of results, for a browser:\n  {page.absolute().as_uri()}")
    return 0


def table_commands(config: DemoConfig, run: Path, page: Path) -> list[list[str]]:
    """A labelled set, a small matrix, the page of its results."""
    digits, matrix = config.out / "digits", config.out / "matrix"
    models = ["random:demo", f"ckpt:{run}", IMAGE_MODEL]
    evaluate = ["-m", "surgrec.benchmark", "run", "--models", *models, "--out", str(matrix)]
    evaluate += ["--manifests", str(digits / "motion.json"), "--data-root", str(digits)]
    evaluate += ["--probes", "knn", "linear", "--extract.pictures", "4"]
    results = str(matrix / "results.jsonl")
    return [
        ["-m", "surgrec.demo", "dataset", "--out", str(digits), "--workers", str(config.workers)],
        [*evaluate, "--extract.workers", str(config.workers)],
        ["-m", "surgrec.benchmark", "table", results, "--form", "html", "--out", str(page)],
    ]


def make_dataset(config: DigitSetConfig) -> int:
    """Make the set of moving digits; 0 if it is whole, 1 for an error, 130 if it was interrupted."""
    from tqdm import tqdm

    from surgrec.corpus.discovery import InputError, check_workers
    from surgrec.demo_data.handwriting import HandwritingError, opencv_digits, sklearn_digits

    samples: dict[Split, int] = {"train": config.train, "val": config.val, "test": config.test}
    bar = tqdm(unit="video", dynamic_ncols=True, disable=None)

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        from surgrec.demo_data.digit_set import DigitSetError, make_set

        check_workers(config.workers, 1.0)
        material = sklearn_digits() if config.digits is None else opencv_digits(config.digits)
        manifests = make_set(config.out, material, samples, config.seed, config.workers, progress)
    except ModuleNotFoundError as error:
        print(
            f"surgrec.demo: {error}\nThe set needs the demo's extra: pip install 'surgrec[demo]'",
            file=sys.stderr,
        )
        return 1
    except (HandwritingError, DigitSetError, InputError) as error:
        print(f"surgrec.demo: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"surgrec.demo: {where}{error.strerror or error}; what is finished is kept, and the same command"
            f" goes on from there",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("surgrec.demo: stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    finally:
        bar.close()
    print_dataset(config.out, manifests)
    return 0


def print_dataset(out: Path, manifests: list[Path]) -> None:
    """What each manifest holds, and the command that makes the videos readable by every other one."""
    from surgrec.evaluation.manifest import SPLITS, read_manifest

    for path in manifests:
        manifest = read_manifest(path)
        counts = ", ".join(f"{len(manifest.of(split))} {split}" for split in SPLITS)
        print(f"{path}: {len(manifest.classes)} classes, {counts}, digest {manifest.digest}")
    index = [python(), "-m", "surgrec.index", str(out / "videos"), "--out", str(out / "corpus.h5")]
    print(f"index the videos: {shlex.join(index)}")


def curate_command(config: DemoConfig, index: Path, plan: Path, samples: int) -> list[str]:
    """Curation of the demo's corpus, whose report expects the repeats of a run of `samples` clips."""
    command = ["-m", "surgrec.curate", "all", "--index", str(index), "--out", str(plan)]
    command += ["--segments.detector", "content"]  # TransNetV2 takes minutes on a CPU
    command += [
        "--workers",
        str(config.workers),
        "--seed",
        str(config.seed),
        "--report.samples",
        str(samples),
    ]
    return command


def pretrain_command(config: DemoConfig, index: Path, plan: Path, run: Path) -> list[str]:
    """Training on what the plan draws."""
    command = ["-m", "surgrec.pretrain", "demo", "--data.index", str(index), "--data.plan", str(plan)]
    command += ["--out", str(run), "--seed", str(config.seed)]
    if config.steps is not None:
        command += ["--steps", str(config.steps)]
    return command


def gather_videos(config: DemoConfig) -> Path:
    """Make the videos that are missing, with a progress bar; returns the manifest."""
    from tqdm import tqdm

    from surgrec.demo_data.gather import gather
    from surgrec.demo_data.operations import operations
    from surgrec.kernels.counter_rng import stream_key

    folder = config.out / "videos"
    print(f"Gathering real video and drawing operations into {folder}/", flush=True)
    keys = {each.name: stream_key(config.seed, f"demo/{each.name}") for each in operations()}
    with tqdm(unit="video", dynamic_ncols=True, disable=None) as bar:

        def progress(name: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)

        return gather(folder, keys, config.workers, progress)


def print_summary(out: Path, run: Path, report: Path) -> None:
    """What came out: the fall of the loss, the picture, the report of curation, and what to type next."""
    from rich.console import Console
    from rich.table import Table

    fall = read_loss(run / "metrics.jsonl")
    picture = out / "reconstruction.png"
    shutil.copyfile(run / "reconstruction.png", picture)
    table = Table(title="SurgRec demo", show_header=False, title_justify="left")
    table.add_row("loss at the start", f"{fall.start:.3f}")
    table.add_row(f"loss at the end (step {fall.steps})", f"{fall.end:.3f}")
    table.add_row("input, mask, reconstruction", str(picture))
    table.add_row("what is drawn, how often", str(report))
    table.add_row("run folder", str(run))
    console = Console()
    console.print()
    console.print(table)
    link = report.absolute().as_uri()
    console.print(
        f"Report of curation, for a browser:\n  {link}", markup=False, highlight=False, soft_wrap=True
    )
    for label, line in (
        ("Curves and pictures of all demo runs", f"-m tensorboard.main --logdir {out / 'runs'}"),
        (
            "The same run again",
            f"-m surgrec.pretrain --config {run / 'config.yaml'} --out {out / 'runs' / 'again'}",
        ),
    ):
        console.print(f"{label}:\n  {python()} {line}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
