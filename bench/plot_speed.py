"""Draws docs/speed.png, the chart of the README, from the newest results in bench/results/.

    python bench/plot_speed.py

A panel each for loading, training, sampling and indexing, each of one machine: of those on which most others
were measured beside this project, one with a GPU, and the newest. Loading and training show what was measured
beside others; of several ways to use one library the fastest. Nothing is drawn that was not measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
OURS = ("nvdec", "dali", "hybrid", "cpu", "cpu-keep", "surgrec")
"""Names of rows that SurgRec's own code gave."""
METRICS = {
    "loader_throughput": ("clips_per_s", "clips per second"),
    "train_throughput": ("clips_per_s", "clips per second, forward, backward and optimizer"),
    "sampler_speed": ("draws_per_s", "million draws per second, one core"),
    "index_speed": ("packets_per_s", "thousand packets per second, one core"),
}
COMPARED = ("loader_throughput", "train_throughput")
"""Benchmarks of which only what was measured beside others is drawn."""
SCALE = {"sampler_speed": 1e-6, "index_speed": 1e-3}
BLUE, GREY, INK = "#1f6fb4", "#b9bec6", "#22262b"


@dataclass(frozen=True)
class Args:
    """Draw the README's chart of speed from measured results."""

    results: Path = ROOT / "bench" / "results"
    """Folder of JSON files that the benchmarks wrote."""
    out: Path = ROOT / "docs" / "speed.png"
    """The picture."""


@dataclass(frozen=True)
class Panel:
    """What one panel shows: bars of (corpus, name, value, low, high)."""

    bench: str
    title: str
    label: str
    bars: tuple[tuple[str, str, float, float, float], ...]


def newest(paths: Iterable[Path]) -> dict[tuple[str, str], dict[str, Any]]:
    """The latest results of each benchmark on each device: (bench, device) -> content.

    That is the latest file's, with the rows of earlier ones for corpora and presets that it does not have.
    """
    found: dict[tuple[str, str], list[tuple[tuple[str, int, str], dict[str, Any]]]] = {}
    for path in paths:
        content = json.loads(path.read_text())
        # Of two results of one day the one with the higher number at the end of its name is later.
        tail = path.stem.rpartition("-")[2]
        age = (content["date"], int(tail) if tail.isdigit() and len(tail) < 8 else 1, path.name)
        found.setdefault((content["bench"], content["device"]), []).append((age, content))
    return {
        key: _merged([content for _, content in sorted(files, key=lambda file: file[0])])
        for key, files in found.items()
    }


def number(value: float) -> str:
    """A value with three digits, or all of a larger one."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _merged(contents: list[dict[str, Any]]) -> dict[str, Any]:
    """The last content, with all rows of each corpus (and preset) from the last that has it."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for content in contents:
        own: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in content["rows"]:
            own.setdefault((row["corpus"], row.get("case", "")), []).append(row)
        rows |= own
    return contents[-1] | {"rows": [row for corpus in rows.values() for row in corpus]}


def panels(results: dict[tuple[str, str], dict[str, Any]]) -> list[Panel]:
    """The panels that the results allow, in the order of METRICS."""
    made = []
    for bench, (metric, label) in METRICS.items():
        scale = SCALE.get(bench, 1.0)
        candidates: list[tuple[tuple[int, bool, str], Panel]] = []
        for (name, device), content in sorted(results.items()):
            rows = [row for row in content["rows"] if row["metric"] == metric] if name == bench else []
            # One number of cores a machine, the smallest: the chart compares loaders, not core counts.
            fewest = min((row["cores"] for row in rows if "cores" in row), default=None)
            rows = [row for row in rows if row.get("cores") == fewest]
            if bench in COMPARED:
                rows = beside_others(fastest_ways(rows))
            if not rows:
                continue
            bars = tuple(
                (case(row), shown(row), *(scale * row[part] for part in ("value", "low", "high")))
                for row in rows
            )
            cores = f"{content['cpus']} core{'s' if content['cpus'] > 1 else ''}"
            title = f"{bench.replace('_', ' ')}: {device}, {cores}"
            others = len({bar[1] for bar in bars if bar[1] not in OURS})
            rank = others, device.startswith("NVIDIA"), content["date"]
            candidates.append((rank, Panel(bench, title, label, bars)))
        if candidates:
            made.append(max(candidates, key=lambda candidate: candidate[0])[1])
    return made


def beside_others(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of cases on which something was measured that is not this project's; all, where there is none."""
    compared = {case(row) for row in rows if shown(row) not in OURS}
    return [row for row in rows if case(row) in compared] or rows


def shown(row: dict[str, Any]) -> str:
    """A row's name in the chart. This project's training steps are called by their preset."""
    return "surgrec" if row["name"] == row.get("case") else row["name"]


def fastest_ways(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each corpus this project's engines, and of every other library the fastest way to use it.

    The parts of a mixed corpus, `mixed/...`, are left out. A library is what its rows' names begin with:
    decord, torchcodec-cuda; DALI's own operators are dali-readers and the like, `dali` is this project's
    engine.
    """
    kept: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        name = shown(row)
        if "/" in row["corpus"]:
            continue
        way = name if name in OURS else f"{name.partition('-')[0]}-"
        if (case(row), way) not in kept or row["value"] > kept[case(row), way]["value"]:
            kept[case(row), way] = row
    return list(kept.values())


def case(row: dict[str, Any]) -> str:
    """What a row was measured on: its corpus, the preset of a training step, and the cores where the
    benchmark tries several numbers."""
    cores = row.get("cores")
    preset = f"{row['case']}, " if "case" in row else ""
    return preset + row["corpus"] + ("" if cores is None else f", {cores} core{'s' if cores > 1 else ''}")


def draw_panel(axes: Axes, panel: Panel) -> None:
    """Horizontal bars, grouped by corpus; whiskers from the lowest to the highest run."""
    place, ticks, names = 0.0, [], []
    for corpus in dict.fromkeys(bar[0] for bar in panel.bars):
        group = sorted((bar for bar in panel.bars if bar[0] == corpus), key=lambda bar: -bar[2])
        for _, name, value, low, high in group:
            axes.barh(place, value, 0.8, color=BLUE if name in OURS else GREY)
            axes.plot([low, high], [place, place], color=INK, linewidth=1)
            axes.text(max(value, high), place, f"  {number(value)}", va="center", fontsize=8, color=INK)
            ticks.append(place)
            names.append(f"{name}  [{corpus}]")
            place += 1
        place += 0.6
    axes.set_yticks(ticks, names, fontsize=8)
    axes.set_title(panel.title, loc="left", fontsize=9, color=INK)
    axes.set_xlabel(panel.label, fontsize=8)
    axes.set_ylim(place - 1, -0.6)
    axes.margins(x=0.14)
    axes.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main() -> int:
    """Draw the chart; 1 where there is nothing to draw."""
    import tyro

    args = tyro.cli(Args, prog="bench/plot_speed.py", description=__doc__)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown_panels = panels(newest(sorted(args.results.glob("*.json"))))
    if not shown_panels:
        print(f"{args.results} holds no results to draw. Run make bench first.", file=sys.stderr)
        return 1
    columns = [shown_panels[at::2] for at in (0, 1)]
    figure = pyplot.figure(figsize=(13, 6.5), layout="constrained")
    parts: Any = figure.subfigures(1, 2) if columns[1] else [figure]
    for part, column in zip(parts, columns, strict=False):
        heights = [2 + len(panel.bars) for panel in column]
        axes = part.subplots(len(column), 1, height_ratios=heights, squeeze=False)
        for panel, place in zip(column, axes[:, 0], strict=True):
            draw_panel(place, panel)
    figure.savefig(args.out, dpi=110, facecolor="white")
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
