"""What would 64 and 512 GPUs do, if what was measured on one machine went on as a simple model says?

    python bench/projection.py bench/results/scaling-nvidia-h100-80gb-hbm3-20261128.json --gpus 64 512

Reads a result of bench/scaling.py and prints a table: for each case and each way of sharing the work, from
the largest number of ranks that was measured. Nothing is measured here. What the machine cannot tell is
assumed, and may be changed: the network, the latency of a hop, the bandwidth of the storage. docs/scaling.md
has the formulas.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import tyro

BUCKET_BYTES: Final = 25 * 2**20
"""Of gradients that DDP sums at once."""
BACKWARD_SHARE: Final = 2 / 3
"""Of a step's time: the backward pass does twice the work of the forward pass."""
HEADER: Final = (
    "case",
    "input",
    "parallel",
    "GPUs",
    "clips/s",
    "speedup",
    "efficiency",
    "communication",
    "stragglers",
    "read GB/s",
    "limit",
)


@dataclass(frozen=True)
class Args:
    """The measurement, and what is assumed."""

    result: Annotated[Path, tyro.conf.Positional]
    """JSON file of bench/scaling.py."""
    gpus: tuple[int, ...] = (64, 512)
    """Numbers of GPUs."""
    node: int = 8
    """GPUs of a machine."""
    nic_gb_s: float = 50.0
    """GB/s of the network for each GPU, in one direction: 50 is one port of 400 Gb/s."""
    hop_us: float = 10.0
    """Microseconds from one machine to the next."""
    inner_hop_us: float = 2.0
    """Microseconds from one GPU to the next in a machine."""
    storage_gb_s: float = 40.0
    """GB/s that the storage of the videos gives to all machines together."""


@dataclass(frozen=True)
class Feeding:
    """Clips from proxies. loader: clips a second of the slowest rank's; read: bytes of a clip.

    share: of the speed from clips on the device that is reached. one: clips a second of one rank, end to end.
    """

    loader: float
    read: float
    share: float
    one: float


@dataclass(frozen=True)
class Measured:
    """A case on `ranks` ranks of one machine. Seconds are those of a step; bus: bytes a second.

    one: clips a second of one rank. spread: standard deviation of ranks' own speed, as a share of it.
    units: pieces in which FSDP2 gathers weights. feeding: None where no proxies were read.
    """

    case: str
    parallel: str
    ranks: int
    batch: int
    step: float
    alone: float
    bus: float
    one: float
    spread: float
    gradient_bytes: int
    weight_bytes: int
    units: int
    feeding: Feeding | None = None


@dataclass(frozen=True)
class Projection:
    """step, exposed, stragglers: seconds. rate: clips a second of all GPUs from clips on the device.

    fed: the same from proxies; limit: what keeps it from being more; None, "" where none were measured.
    """

    step: float
    exposed: float
    stragglers: float
    rate: float
    fed: float | None
    limit: str


def communication(found: Measured, gpus: int, args: Args) -> float:
    """Seconds of a step's communication by itself: bytes over the slowest link, and latencies."""
    ring = (gpus - 1) / gpus
    nodes = math.ceil(gpus / args.node)
    bus = found.bus if nodes == 1 else min(found.bus, args.node * args.nic_gb_s * 1e9)
    inside = (min(gpus, args.node) - 1) * args.inner_hop_us
    if found.parallel == "ddp":  # All-reduces, over a tree between machines.
        sent = 2 * ring * found.gradient_bytes
        hops = 2 * (math.ceil(math.log2(nodes)) * args.hop_us + inside)
        pieces = math.ceil(found.gradient_bytes / BUCKET_BYTES)
    else:  # Weights gathered and gradients scattered once, around a ring.
        sent = ring * (found.weight_bytes + found.gradient_bytes)
        hops = (nodes - 1) * args.hop_us + (gpus - nodes) * args.inner_hop_us
        pieces = 2 * found.units
    return sent / bus + pieces * hops / 1e6


def largest_of(ranks: int) -> float:
    """Expected largest of as many standard normal numbers, about: sqrt(2 ln n)."""
    return math.sqrt(2 * math.log(ranks))


def project(found: Measured, gpus: int, args: Args) -> Projection:
    """The model. For as many GPUs as were measured it gives the measured step."""
    before, after = communication(found, found.ranks, args), communication(found, gpus, args)
    lost = max(0.0, found.step - found.alone)
    shown = min(lost, before)
    # What hides is at most as long as the backward pass, or as what was seen to hide.
    hides = max(BACKWARD_SHARE * found.alone, before - shown)
    exposed = max(shown / before * after, after - hides) + lost - shown
    stragglers = found.alone * found.spread * (largest_of(gpus) - largest_of(found.ranks))
    step = found.alone + exposed + stragglers
    rate = gpus * found.batch / step
    fed = found.feeding
    if fed is None:
        return Projection(step, exposed, stragglers, rate, None, "")
    limits = {
        "GPU": rate * fed.share,
        "loader": gpus * fed.loader,
        "storage": args.storage_gb_s * 1e9 / fed.read,
    }
    limit = min(limits, key=lambda name: limits[name])
    return Projection(step, exposed, stragglers, rate, limits[limit], limit)


def measured_in(result: dict[str, Any]) -> list[Measured]:
    """Of each case and way of sharing, the largest number of ranks. KeyError that names a missing row."""
    rows = result["rows"]
    sizes: dict[tuple[str, str], int] = {}
    for row in rows:
        if row["metric"] == "clips_per_s" and row["input"] == "synthetic" and row["parallel"] != "none":
            key = row["name"], row["parallel"]
            sizes[key] = max(sizes.get(key, 0), int(row["corpus"]))
    return [_measured(rows, case, parallel, ranks) for (case, parallel), ranks in sizes.items()]


def _row(rows: list[dict[str, Any]], case: str, ranks: int, metric: str, **wanted: str) -> dict[str, Any]:
    wanted |= {"name": case, "corpus": str(ranks), "metric": metric}
    for row in rows:
        if all(row.get(key) == value for key, value in wanted.items()):
            return row
    raise KeyError(f"{case} on {ranks} GPUs has no row {metric} {' '.join(wanted.values())}")


def _measured(rows: list[dict[str, Any]], case: str, parallel: str, ranks: int) -> Measured:
    speed = _row(rows, case, ranks, "clips_per_s", parallel=parallel, input="synthetic")
    bus = _row(rows, case, ranks, "bus_gb_s")
    clips = ranks * speed["batch"]
    step = clips / speed["value"]
    return Measured(
        case,
        parallel,
        ranks,
        speed["batch"],
        step=step,
        # Noise may make them the slower ones.
        alone=min(step, clips / _row(rows, case, ranks, "alone_clips_per_s", parallel=parallel)["value"]),
        bus=bus["value"] * 1e9,
        one=_row(rows, case, 1, "clips_per_s", input="synthetic")["value"],
        spread=_row(rows, case, ranks, "rank_spread", parallel=parallel)["value"],
        gradient_bytes=bus["gradient_bytes"],
        weight_bytes=bus["weight_bytes"],
        units=bus["units"],
        feeding=_feeding(rows, case, ranks),
    )


def _feeding(rows: list[dict[str, Any]], case: str, ranks: int) -> Feeding | None:
    """As it was measured under one way of sharing; the loader does not know which that is."""
    try:
        fed = _row(rows, case, ranks, "clips_per_s", input="proxy16")
    except KeyError:
        return None
    same = _row(rows, case, ranks, "clips_per_s", input="synthetic", parallel=fed["parallel"])
    return Feeding(
        _row(rows, case, ranks, "loader_clips_per_s")["low"],
        _row(rows, case, ranks, "read_mib_per_clip")["value"] * 2**20,
        fed["value"] / same["value"],
        _row(rows, case, 1, "clips_per_s", input="proxy16")["value"],
    )


def lines_of(found: Measured, args: Args) -> list[list[str]]:
    """Cells of the table: the measured number of GPUs, then the projected ones."""
    lines = []
    for gpus in (found.ranks, *args.gpus):
        seen = project(found, gpus, args)
        parts = (f"{seen.exposed / seen.step:.1%}", f"{seen.stragglers / seen.step:.1%}")
        speeds = [("synthetic", seen.rate, found.one, "-", "GPU")]
        if found.feeding is not None and seen.fed is not None:
            read = f"{seen.fed * found.feeding.read / 1e9:.3g}"
            speeds.append(("proxy16", seen.fed, found.feeding.one, read, seen.limit))
        for source, rate, one, read, limit in speeds:
            cells = (f"{rate:,.0f}", f"{rate / one:.1f}", f"{rate / one / gpus:.1%}", *parts, read, limit)
            lines.append([found.case, source, found.parallel, str(gpus), *cells])
    return lines


def main(args: Args) -> int:
    try:
        result = json.loads(args.result.read_text())
        found = measured_in(result)
    except (OSError, ValueError, KeyError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error
        advice = "Give a result of bench/scaling.py, of 1 rank and of more, with synthetic clips."
        print(f"{args.result} cannot be projected: {reason}. {advice}", file=sys.stderr)
        return 2
    if not found:
        print(f"{args.result} holds no speed of several GPUs from synthetic clips", file=sys.stderr)
        return 2
    smallest = max(entry.ranks for entry in found)
    if min(args.gpus) < smallest:
        print(f"--gpus must be at least the {smallest} that were measured", file=sys.stderr)
        return 2
    print(f"From {args.result.name}: {result['device']}, {result['date']}. Assumed: {args.node} GPUs a")
    print(
        f"machine, {args.nic_gb_s:g} GB/s of network for each, {args.hop_us:g} us from machine to machine and"
    )
    print(f"{args.inner_hop_us:g} us within, storage of {args.storage_gb_s:g} GB/s.\n")
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    for entry in found:
        for line in lines_of(entry, args):
            print("| " + " | ".join(line) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, prog="bench/projection.py", description=__doc__)))
