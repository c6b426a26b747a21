"""What a run came to, in a few lines."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgrec.training.run_folder import RunFolder
from surgrec.training.run_record import read_record
from surgrec.transcoding.proxies import describe_proxies


@dataclass(frozen=True)
class Summary:
    """First and last point of metrics.jsonl, and the rates between. collapsed: the first step at which the
    features had collapsed; None where they have not."""

    first_step: int
    last_step: int
    first_loss: float
    last_loss: float
    clips_per_second: float
    data_wait: float
    ledger: int
    collapsed: int | None = None


def summarise(run: RunFolder) -> Summary | None:
    """Of all points of the run, those before a resume included; None where there is none.

    clips_per_second and data_wait are means over the points but the first, which has the start-up in it.
    """
    if not run.metrics.exists():
        return None
    points: list[dict[str, Any]] = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    points = [point for point in points if "loss" in point]
    if not points:
        return None
    rated = points[1:] or points
    return Summary(
        points[0]["step"],
        points[-1]["step"],
        points[0]["loss"],
        points[-1]["loss"],
        sum(point["speed/clips_per_second"] for point in rated) / len(rated),
        sum(point["speed/data_wait"] for point in rated) / len(rated),
        int(points[-1]["data/ledger"]),
        next((point["step"] for point in points if point.get("monitor/collapsed")), None),
    )


def proxies_text(run: RunFolder) -> str:
    """Which of the videos of the newest start are training proxies, in a line; empty where none is."""
    starts = read_record(run)["starts"]
    found = starts[-1].get("proxies") if starts else None
    return describe_proxies(found) if found else ""


def summary_text(run: RunFolder, checkpoint: Path | None) -> str:
    """Loss at start and end, rates, ledger, last checkpoint, and how to look at it all."""
    lines = []
    found = summarise(run)
    if found is not None:
        lines = [
            f"loss: {found.first_loss:.4f} at step {found.first_step}, "
            f"{found.last_loss:.4f} at step {found.last_step}",
            f"clips/s: {found.clips_per_second:.1f}; "
            f"waiting for data: {100 * found.data_wait:.0f}% of the time",
            f"clips that could not be decoded: {found.ledger}"
            + (f" (reasons in {run.ledger})" if found.ledger else ""),
        ]
        if found.collapsed is not None:
            lines.append(
                f"COLLAPSE at step {found.collapsed}: features were nearly the same whatever was seen"
            )
    proxies = proxies_text(run)
    if proxies:
        lines.append(proxies)
    if checkpoint is not None:
        lines.append(f"checkpoint: {checkpoint}")
    if run.reconstruction.exists():
        lines.append(f"reconstruction: {run.reconstruction}")
    lines.append(f"look at it: tensorboard --logdir {shlex.quote(str(run.path))}")
    return "\n".join(lines)
