"""RUN/run.json: with what, where and on what a run was carried out; an entry for each time it was started."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from surgrec.loaders.packet_index import PacketIndex
from surgrec.training.distributed import World
from surgrec.training.errors import UserError
from surgrec.training.run_folder import RunFolder, write_atomically
from surgrec.transcoding.proxies import proxy_summary

PACKAGES = (
    "surgrec",
    "torch",
    "numpy",
    "numba",
    "av",
    "h5py",
    "safetensors",
    "xformers",
    "nvidia-dali-cuda130",
    "quack-kernels",
    "flash-attn-4",
)


@dataclass(frozen=True)
class IndexRecord:
    """The packet index of a run: where it lies, its digest, its videos."""

    path: str
    digest: str
    videos: int


@dataclass(frozen=True)
class PlanRecord:
    """The plan that a run draws by: where it lies, its digest, and how many segments it holds."""

    path: str
    digest: str
    segments: int


def now() -> str:
    """Local time with its offset, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a run; those that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path) -> dict[str, Any] | None:
    """{"commit", "dirty"} of the checkout that `folder` lies in; None without git or outside a checkout."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        dirty = bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": dirty}


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return result.stdout.strip()


def describe_device(device: torch.device) -> str:
    """Name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux; the platform's own word for it follows
    return platform.processor() or platform.machine()


def start_record(
    run: RunFolder,
    world: World,
    index: IndexRecord,
    plan: PlanRecord | None,
    resumed_from: int | None,
    changed: dict[str, tuple[Any, Any]],
    graphed: bool,
    program: str = "surgrec.pretrain",
) -> None:
    """Append this start to run.json.

    changed: entries that differ from the start before, both values. graphed: whether steps are replayed from
    a CUDA graph. program: the module that was started.
    """
    record = read_record(run)
    record["starts"].append(
        {
            "time": now(),
            "command": shlex.join([sys.executable, "-m", program, *sys.argv[1:]]),
            "folder": os.getcwd(),
            "versions": package_versions(),
            "git": git_state(Path(__file__).parent),
            "host": platform.node(),
            "device": describe_device(world.device),
            "device_type": world.device.type,
            "cpus": len(os.sched_getaffinity(0)),
            "ranks": world.size,
            "cuda_graph": graphed,
            "index": asdict(index),
            "plan": None if plan is None else asdict(plan),
            "proxies": proxy_summary(PacketIndex.open(index.path)).to_dict(),
            "resumed_from_step": resumed_from,
            "changed": {key: list(values) for key, values in changed.items()},
        }
    )
    write_atomically(run.record, json.dumps(record, indent=2) + "\n")


def end_record(run: RunFolder, values: dict[str, Any]) -> None:
    """Add how it ended ("ended": {"time", ...}) to the newest start."""
    record = read_record(run)
    record["starts"][-1]["ended"] = {"time": now()} | values
    write_atomically(run.record, json.dumps(record, indent=2) + "\n")


def read_record(run: RunFolder) -> dict[str, Any]:
    """run.json, or an empty record where there is none."""
    if not run.record.exists():
        return {"starts": []}
    try:
        record: dict[str, Any] = json.loads(run.record.read_text())
    except ValueError as error:
        raise UserError(f"{run.record} is damaged: not JSON ({error}). Give another --out.") from error
    return record
