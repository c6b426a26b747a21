"""From what the ranks of bench/scaling.py found to rows of results."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, TypeVar

from harness import Row, row
from scaling_work import SYNTHETIC, Bus, Curve, Found, Loaded, Speed, Stored, Work

Kept = dict[Work, list[Found]]
F = TypeVar("F", Bus, Curve, Loaded, Speed, Stored)


@dataclass(frozen=True)
class Reference:
    """Of a case. one: clips a second of one rank by input. curves: of one rank, by number of ranks.

    alone: seconds of a run of steps without communication, by number of ranks and way of sharing.
    """

    one: dict[str | None, float]
    curves: dict[int, list[Curve]]
    alone: dict[tuple[int, str | None], float]


def rows_of(kept: Kept, blocks: str, steps: int) -> list[Row]:
    """All rows. steps: of one measured run."""
    rows: list[Row] = []
    for work, found in kept.items():
        reference = reference_of(work.case, kept, steps)
        same = {"parallel": work.parallel or "none", "batch": work.batch, "blocks": blocks}
        for speed in of_kind(Speed, found):
            rows += speed_rows(work, speed, reference, steps, same)
        for curve in of_kind(Curve, found) if work.ranks > 1 else []:
            rows += curve_rows(work, curve, reference, same)
        for bus in of_kind(Bus, found):
            sizes = {name: getattr(bus, name) for name in ("gradient_bytes", "weight_bytes", "units")}
            traffic = 2 * (work.ranks - 1) / work.ranks * bus.gradient_bytes / 1e9
            rates = [traffic / seconds for seconds in bus.seconds]
            alone = same | {"parallel": "none"}
            rows.append(row(work.case, str(work.ranks), "bus_gb_s", rates, **alone, **sizes))
        for loaded in of_kind(Loaded, found):
            name, corpus = work.case, str(work.ranks)
            rows.append(row(name, corpus, "loader_clips_per_s", loaded.rates, **same))
            rows.append(row(name, corpus, "read_mib_per_clip", [loaded.read_bytes / 2**20], **same))
        for stored in of_kind(Stored, found):
            for metric, values in (
                ("save_s", stored.save),
                ("save_held_s", stored.held),
                ("load_s", stored.load),
            ):
                size = round(stored.bytes / 2**30, 3)
                rows.append(row(work.case, str(work.ranks), metric, values, **same, checkpoint_gib=size))
    return rows


def told(work: Work, found: Found, steps: int) -> str:
    """One line on what was found."""
    if isinstance(found, Speed):
        rate = statistics.median(rates_of(work, found, steps))
        text = f"{found.source or 'without communication'}: {rate:.1f} clips/s"
    elif isinstance(found, Curve):
        text = f"losses of {found.ranks} x {work.batch}: {', '.join(f'{loss:.5g}' for loss in found.losses)}"
    elif isinstance(found, Bus):
        milliseconds = 1e3 * statistics.median(found.seconds)
        text = f"all-reduce of {found.gradient_bytes / 2**20:.0f} MiB: {milliseconds:.2f} ms"
    elif isinstance(found, Stored):
        text = f"checkpoint: saved in {found.save[-1]:.1f} s, loaded in {found.load[-1]:.1f} s"
    else:
        text = f"loader: {statistics.median(found.rates):.1f} clips/s of a rank"
    return f"{work}, {text}"


def of_kind(kind: type[F], found: list[Found]) -> list[F]:
    """What is of one kind."""
    return [entry for entry in found if isinstance(entry, kind)]


def reference_of(case: str, kept: Kept, steps: int) -> Reference:
    """What the rows of a case are compared with."""
    one: dict[str | None, float] = {}
    curves: dict[int, list[Curve]] = {}
    alone: dict[tuple[int, str | None], float] = {}
    for work, found in kept.items():
        if work.case != case:
            continue
        for speed in of_kind(Speed, found):
            if speed.source is None:
                alone[work.ranks, work.parallel] = statistics.median(map(max, speed.seconds))
            elif work.ranks == 1:
                one[speed.source] = statistics.median(rates_of(work, speed, steps))
        for curve in of_kind(Curve, found) if work.ranks == 1 else []:
            curves.setdefault(curve.ranks, []).append(curve)
    return Reference(one, curves, alone)


def rates_of(work: Work, speed: Speed, steps: int) -> list[float]:
    """Clips a second of all ranks, of each run; a run lasts until the last rank is done."""
    return [steps * work.batch * work.ranks / max(seconds) for seconds in speed.seconds]


def speed_rows(work: Work, speed: Speed, reference: Reference, steps: int, same: dict[str, Any]) -> list[Row]:
    """The rows of one input, or of steps without communication."""
    rates = rates_of(work, speed, steps)
    values: dict[str, list[float]] = {}
    if speed.source is None:
        same = same | {"input": SYNTHETIC}
        values["alone_clips_per_s"] = rates
        values["rank_spread"] = [
            statistics.pstdev(seconds) / statistics.fmean(seconds) for seconds in speed.seconds
        ]
    else:
        same = same | {"input": speed.source}
        values["clips_per_s"] = rates
        if speed.source in reference.one:
            values["speedup"] = [rate / reference.one[speed.source] for rate in rates]
        values["data_wait"] = [
            sum(waits) / sum(seconds) for waits, seconds in zip(speed.waits, speed.seconds, strict=True)
        ]
        alone = reference.alone.get((work.ranks, work.parallel))
        if speed.source == SYNTHETIC and alone is not None:
            values["communication"] = [max(0.0, 1 - alone / max(seconds)) for seconds in speed.seconds]
    return [row(work.case, str(work.ranks), metric, found, **same) for metric, found in values.items()]


def curve_rows(work: Work, curve: Curve, reference: Reference, same: dict[str, Any]) -> list[Row]:
    """How far the first steps are from one rank's; none where that was not measured."""
    expected = reference.curves.get(work.ranks)
    if not expected:
        return []
    repeated = next((found for found in reference.curves.values() if len(found) > 1), [])
    rows = []
    for metric, kind in (("loss_difference", "losses"), ("norm_difference", "norms")):
        value = difference(getattr(curve, kind), getattr(expected[0], kind))
        noise = difference(*(getattr(found, kind) for found in repeated[:2])) if repeated else None
        points = {"points": getattr(curve, kind), "points_of_one": getattr(expected[0], kind)}
        extra: dict[str, Any] = {**same, "input": SYNTHETIC, "run_to_run": noise, **points}
        rows.append(row(work.case, str(work.ranks), metric, [value], **extra))
    return rows


def difference(values: list[float], expected: list[float]) -> float:
    """The largest relative difference, step by step."""
    return max(abs(a - b) / abs(b) for a, b in zip(values, expected, strict=True))
