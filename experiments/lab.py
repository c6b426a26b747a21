"""What the experiments share: SurgRec's commands run one after the other, their record, measures and checks.

A folder of an experiment holds what it made. A command that has ended well there is not run again, so that an
experiment which was stopped goes on; one that fails ends it, and stands in the record as what it was. Parts
that need nothing of each other run side by side, as many commands at a time as a lab has jobs.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from surgrec.loaders.whole_file import replacing

from surgrec.evaluation.results import Interval, Result, read_results

ROOT: Final = Path(__file__).resolve().parents[1]
CURVES: Final = ("loss", "monitor/feature_std", "monitor/rankme", "monitor/collapsed")
"""Scalars of a run that are kept."""
STOP_SECONDS: Final = 30.0
"""For commands to end after Ctrl-C."""
TAIL: Final = 20
"""Lines of a failed command's output that are shown."""


class ExperimentError(RuntimeError):
    """An experiment that cannot go on; the message names the step, the cause and the remedy."""


@dataclass(frozen=True)
class Measure:
    """A figure. subject: what was measured, a model mostly. task: what on. amount: of labels, in per cent, or
    another variable of the experiment; None where there is none. low, high: the interval over test groups.
    n, of: rows that were scored, of how many."""

    subject: str
    task: str
    figure: str
    seed: int
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    of: int | None = None
    amount: float | None = None


@dataclass(frozen=True)
class Check:
    """A claim of the issue, what was measured for it, and whether that bears it out."""

    claim: str
    found: str
    holds: bool


@dataclass(frozen=True)
class Step:
    """A command that was run. seconds: of wall time. status: its exit status. began: seconds since 1970."""

    name: str
    command: str
    status: int
    seconds: float
    began: float


class _Commands:
    """The commands that run at the moment, `jobs` of them at most."""

    def __init__(self, jobs: int) -> None:
        self.slots = threading.BoundedSemaphore(jobs)
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run(self, words: Sequence[str], log: Path) -> int:
        """The exit status. Raises KeyboardInterrupt where commands are to be stopped."""
        with self.lock:
            if self.stopped:
                raise KeyboardInterrupt
            with open(log, "w", encoding="utf-8") as file:
                process = subprocess.Popen(
                    [sys.executable, *words], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
                )
            self.running.add(process)
        try:
            return process.wait()
        except KeyboardInterrupt:
            self.stop()
            raise
        finally:
            with self.lock:
                self.running.discard(process)

    def stop(self) -> None:
        """Lets none begin from now on, and ends those that run as Ctrl-C would."""
        with self.lock:
            self.stopped = True
            running = list(self.running)
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Lab:
    """One experiment under way. out: its folder. workers: decoding threads and processes of a command.
    videos: of the command line. jobs: commands at a time. curves: by name of a run, columns of CURVES and
    `step`."""

    out: Path
    device: Literal["auto", "cpu", "cuda"]
    workers: int
    videos: tuple[Path, ...] = ()
    jobs: int = 1
    steps: list[Step] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    commands: _Commands = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.commands = _Commands(self.jobs)

    def together(self, parts: Sequence[Callable[[Lab], None]]) -> None:
        """Runs parts that need nothing of each other, and takes over what they found in this order.

        Where a part fails, commands that run beside it end as they would, and no other begins.
        """

        def guarded(part: Callable[[Lab], None], lab: Lab) -> None:
            try:
                part(lab)
            except BaseException:
                self.commands.stopped = True
                raise

        labs = [replace(self, steps=[], measures=[], curves={}) for _ in parts]
        for lab in labs:
            lab.commands = self.commands
        with ThreadPoolExecutor(max(1, len(parts))) as pool:
            futures = [pool.submit(guarded, part, lab) for part, lab in zip(parts, labs, strict=True)]
            try:
                errors = [future.exception() for future in futures]
            except KeyboardInterrupt:
                self.commands.stop()
                raise
        for lab in labs:
            self.steps += [step for step in lab.steps if step not in self.steps]
            self.measures += lab.measures
            self.curves |= lab.curves
        found = [error for error in errors if error is not None]
        # Whoever was kept from beginning has KeyboardInterrupt.
        for error in sorted(found, key=lambda error: isinstance(error, KeyboardInterrupt)):
            raise error

    def run(self, name: str, arguments: Sequence[object]) -> None:
        """A command of Python, unless it has ended well here before.

        name: of the step, and of OUT/logs/NAME.log. Raises ExperimentError for a status other than 0,
        KeyboardInterrupt where Ctrl-C ended it.
        """
        words = [str(argument) for argument in arguments]
        # Records are published: no folder of this machine stands in them.
        shown = shlex.join(["python", *words]).replace(f"{self.out}/", "").replace(f"{ROOT}/", "")
        before = self._finished().get(shown)
        if before is not None:
            if before not in self.steps:
                self.steps.append(before)
            return
        log = self.out / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with self.commands.slots:
            print(f"{name}: {shown}", flush=True)
            began, ticks = time.time(), time.monotonic()
            status = self.commands.run(words, log)
            step = Step(name, shown, status, round(time.monotonic() - ticks, 1), round(began, 1))
        self.steps.append(step)
        print(f"{name}: {step.seconds:.0f} s, exit status {step.status}", flush=True)
        if status in (130, -2):
            raise KeyboardInterrupt
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
            raise ExperimentError("\n".join([f"step {name} ended with status {status} ({log}):", *lines]))
        self._finish(step)

    def pretrain(
        self, name: str, options: str, data: Mapping[str, Path], seed: int, module: Sequence[str | Path] = ()
    ) -> Path:
        """A run of surgrec.pretrain and its curves; returns its folder, OUT/runs/NAME.

        options: a preset and what is changed of it, as on the command line. data: index, and plan where there
        is one. module: what is run in the place of `-m surgrec.pretrain`.
        """
        folder = self.out / "runs" / name
        words = [*(module or ("-m", "surgrec.pretrain")), *shlex.split(options)]
        for kind, path in data.items():
            words += [f"--data.{kind}", path]
        words += ["--seed", str(seed), "--out", folder, "--device", self.device]
        words += ["--data.threads", str(self.workers)]
        self.run(f"pretrain-{name}", words)
        self.curves[name] = read_curves(folder / "metrics.jsonl")
        return folder

    def keep(self, subject: str, task: str, results: Path, seed: int, amount: float | None = None) -> None:
        """The accuracy on test of the result that a command has just appended to a file."""
        result = read_results(results)[-1]
        self.measures.append(measure_of(subject, task, result, seed, amount))

    def _finished(self) -> dict[str, Step]:
        path = self.out / "steps.jsonl"
        if not path.exists():
            return {}
        found = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                step = Step(**json.loads(line))
            except (ValueError, TypeError):  # torn by a kill; its command is run again
                continue
            found[step.command] = step
        return found

    def _finish(self, step: Step) -> None:
        with self.commands.lock, open(self.out / "steps.jsonl", "a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(asdict(step))}\n")
            file.flush()
            os.fsync(file.fileno())


def wall_seconds(steps: Sequence[Step]) -> float:
    """Time in which at least one of the steps ran."""
    total = end = 0.0
    for step in sorted(steps, key=lambda step: step.began):
        begin = max(end, step.began)
        end = max(end, step.began + step.seconds)
        total += max(0.0, end - begin)
    return total


def untrained(name: str) -> str:
    """Name of a model's twin with first weights."""
    return f"{name}, untrained"


def measure_of(subject: str, task: str, result: Result, seed: int, amount: float | None = None) -> Measure:
    """The accuracy of a result, in per cent."""
    accuracy: Interval = result.figures["accuracy"]
    value, low, high = (
        None if share is None else 100 * share for share in (accuracy.value, accuracy.low, accuracy.high)
    )
    assert value is not None
    return Measure(subject, task, "accuracy", seed, value, low, high, result.n, result.m, amount)


def read_curves(metrics: Path) -> dict[str, list[float]]:
    """Of a run's metrics.jsonl: `step`, and those of CURVES that it has, one value a point.

    Raises ExperimentError where it is not there or not readable.
    """
    try:
        points = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ExperimentError(
            f"{metrics}: {error}; remove the experiment's folder and begin again"
        ) from error
    points = [point for point in points if "loss" in point]
    names = [name for name in CURVES if points and name in points[0]]
    return {name: [point[name] for point in points] for name in ("step", *names)}


def write_whole(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
