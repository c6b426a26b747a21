"""What every benchmark shares: the machine, versions, repeated runs, and one JSON schema for results.

bench/results/<script>-<device>-<yyyymmdd>[-n].json
{"bench", "date", "commit", "device", "cpus", "versions": {}, "args": {},
 "rows": [{"name", "corpus", "metric", "value" (median), "low", "high", "runs", ...}]}
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PACKAGES = (
    "av",
    "decord",
    "flash-attn-4",
    "h5py",
    "numba",
    "numpy",
    "nvidia-dali-cuda130",
    "PyNvVideoCodec",
    "quack-kernels",
    "surgrec",
    "torch",
    "torchcodec",
    "transformers",
    "xformers",
)

MODULES = {"nvidia-dali-cuda130": "nvidia.dali", "quack-kernels": "quack"}
"""Modules of packages that are called otherwise."""


@dataclass(frozen=True)
class Row:
    """One measured value: the median of `runs` runs, with the lowest and the highest."""

    name: str
    """Contestant or case."""
    corpus: str
    metric: str
    """What is measured, with its unit: clips_per_s, draws_per_s, packets_per_s, peak_gib ..."""
    value: float
    low: float
    high: float
    runs: int
    extra: dict[str, Any] = field(default_factory=dict)
    """Further plain values that explain the number; merged into the row of the JSON file."""


def row(name: str, corpus: str, metric: str, values: Sequence[float], **extra: Any) -> Row:
    """The Row of several runs' values. Raises ValueError when there are none."""
    if not values:
        raise ValueError(f"{name} on {corpus}: no run to report for {metric}")
    ordered = sorted(float(value) for value in values)
    return Row(name, corpus, metric, statistics.median(ordered), ordered[0], ordered[-1], len(ordered), extra)


def repeat(run: Callable[[], float], warmup: int = 1, runs: int = 5) -> list[float]:
    """Calls `run`, which returns one measured value, `warmup` times for nothing and then `runs` times."""
    if runs < 1:
        raise ValueError(f"runs is {runs}; at least 1 is needed")
    for _ in range(warmup):
        run()
    return [run() for _ in range(runs)]


def rate(work: Callable[[], Any], amount: float) -> Callable[[], float]:
    """A function for `repeat`: does the work once and returns amount per second of wall time."""

    def measured() -> float:
        start = time.perf_counter()
        work()
        return amount / (time.perf_counter() - start)

    return measured


def timed(work: Callable[[], Any], calls: int, gpu: bool) -> Callable[[], float]:
    """A function for `repeat`: seconds of one call, the mean over `calls`, with the GPU's work done."""
    import torch

    def measured() -> float:
        if gpu:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        if gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / calls

    return measured


def device() -> str:
    """A short name of what is measured on: the GPU's, or the CPU's where there is none."""
    gpu = _first_line(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return gpu or cpu_name()


def cpu_name() -> str:
    """The CPU's model name, as Linux reports it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Where the numbers come from: device, cpu, cpus, memory_gib, os, python, load (1 minute)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "device": device(),
        "cpu": cpu_name(),
        "cpus": cpus(),
        "memory_gib": round(memory, 1),
        "os": platform.platform(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions; a package that is not installed is reported as `absent`."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = _module_version(package)
    return found


def _module_version(package: str) -> str:
    """Version that a package states which was unpacked without an installer; `absent` where there is none."""
    try:
        module = importlib.import_module(MODULES.get(package, package))
    except Exception:  # whatever keeps it from loading, it is of no use here
        return "absent"
    return str(getattr(module, "__version__", "unknown"))


def commit() -> str:
    """The commit of the checkout, with `+` where files differ from it; `unknown` outside a checkout."""
    home = str(Path(__file__).resolve().parent)
    head = _first_line(["git", "-C", home, "rev-parse", "--short=12", "HEAD"])
    if not head:
        return "unknown"
    changed = _first_line(["git", "-C", home, "status", "--porcelain", "--untracked-files=no"])
    return head + ("+" if changed else "")


def write_results(script: str, args: Any, rows: Sequence[Row], folder: Path = RESULTS) -> Path:
    """Writes rows in the schema above, and returns the path. Never overwrites an earlier result.

    script: the benchmark's name, or its `__file__`. args: a dataclass or dict of plain values and paths.
    """
    where = machine()
    today = datetime.date.today()
    name = Path(script).stem
    slug = re.sub(r"[^a-z0-9]+", "-", where["device"].lower()).strip("-")
    content = {
        "bench": name,
        "date": today.isoformat(),
        "commit": commit(),
        "device": where["device"],
        "cpus": where["cpus"],
        "machine": where,
        "versions": versions(),
        "args": _plain(args),
        "rows": [_row_dict(entry) for entry in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        suffix = "" if number == 1 else f"-{number}"
        path = folder / f"{name}-{slug}-{today:%Y%m%d}{suffix}.json"
        try:
            with path.open("x") as file:
                json.dump(content, file, indent=1)
                file.write("\n")
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{folder}: 999 results of {name} from today; remove some")


def report(script: str, args: Any, rows: Sequence[Row]) -> int:
    """Prints the table, writes the file where args.save says so, to args.out; 1 where no row was measured."""
    if not rows:
        return 1
    print_table(rows)
    if args.save:
        print(f"written: {write_results(script, args, rows, args.out)}")
    return 0


def all_known(names: Iterable[str], known: Iterable[str], what: str) -> bool:
    """Whether all names are known; what is not is printed, with what is."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"unknown {what} {unknown}; choose from {', '.join(known)}", file=sys.stderr)
    return not unknown


def print_machine(file: Any = None) -> None:
    """One line on the machine, so that a printed table stands on its own."""
    where = machine()
    print(
        f"{where['device']} | {where['cpus']} cores | {where['memory_gib']} GiB | Python {where['python']}"
        f" | load {where['load']}",
        file=file or sys.stdout,
    )


def print_table(rows: Sequence[Row], file: Any = None) -> None:
    """The rows as aligned text."""
    lines: list[tuple[str, ...]] = [("name", "corpus", "metric", "median", "low", "high", "runs")]
    for entry in rows:
        numbers = (f"{number:,.4g}" if number < 1e4 else f"{number:,.0f}" for number in _spread(entry))
        lines.append((entry.name, entry.corpus, entry.metric, *numbers, str(entry.runs)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip(), file=file or sys.stdout)


def _spread(entry: Row) -> tuple[float, float, float]:
    return entry.value, entry.low, entry.high


def _row_dict(entry: Row) -> dict[str, Any]:
    values = {name: value for name, value in vars(entry).items() if name != "extra"}
    return values | _plain(entry.extra)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):  # results are published: no folder of this machine is named in them
        path = value.absolute()
        return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""
