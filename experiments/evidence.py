"""Writes the tables of docs/evidence.md and draws its curves, from the results of the experiments.

    python experiments/evidence.py

Numbers stand in the page between marks, and are never typed: of each experiment and size the newest result
that is whole is shown in full, and every result is listed.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "evidence.md"
NAMES: Final = ("motion_digits", "balance", "real_video", "collapse")
SIZES: Final = ("gpu", "cpu", "pilot", "pilot-long")
"""pilot, pilot-long: runs by hand, by which the others were set up; nothing is claimed of them."""
PANELS: Final = {
    "loss": "loss",
    "monitor/feature_std": "feature standard deviation",
    "monitor/rankme": "RankMe",
}
"""Scalars that have a panel, and its label."""
PER_CENT: Final = ("accuracy", "points", "share of draws")
"""Figures that are in per cent."""

Document = dict[str, Any]


def documents(name: str, root: Path = ROOT) -> list[Document]:
    """All results of an experiment, the oldest first; `file` is added to each."""
    paths = sorted((root / "experiments" / name / "results").glob("*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) | {"file": path.name} for path in paths]
    return sorted(found, key=lambda each: (each["date"], len(each["file"]), each["file"]))


def shown(found: Iterable[Document], size: str) -> Document | None:
    """The newest whole result of a size."""
    whole = [each for each in found if each["size"] == size and not each["failure"]]
    return whole[-1] if whole else None


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean by Student's t; None for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def cell(measures: Sequence[Document]) -> str:
    """`84.2 [80.1, 88.0]`: the mean over seeds and its interval, of one seed that over test groups; with
    `(n of m)` where not all rows were read."""
    values = [measure["value"] for measure in measures]
    bounds = mean_interval(values)
    if bounds is None and measures[0]["low"] is not None:
        bounds = measures[0]["low"], measures[0]["high"]
    form = ".1f" if measures[0]["figure"] in PER_CENT else ".3g"
    text = f"{statistics.fmean(values):{form}}"
    if bounds is not None:
        text += f" [{bounds[0]:{form}}, {bounds[1]:{form}}]"
    read = {(measure["n"], measure["of"]) for measure in measures if measure["n"] != measure["of"]}
    return text + "".join(f" ({n} of {of})" for n, of in sorted(read))


def measures_table(document: Document) -> list[str]:
    """Subjects down, tasks across."""
    measures = document["measures"]

    def column(measure: Document) -> str:
        amount = "" if measure["amount"] is None else f", {measure['amount']:g} % of labels"
        figure = "" if measure["figure"] == "accuracy" else f", {measure['figure']}"
        return f"{measure['task']}{figure}{amount}"

    columns = list(dict.fromkeys(column(measure) for measure in measures))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for subject in dict.fromkeys(measure["subject"] for measure in measures):
        own = [measure for measure in measures if measure["subject"] == subject]
        cells = [[measure for measure in own if column(measure) == name] for name in columns]
        lines.append(f"| {subject} | {' | '.join(cell(each) if each else '' for each in cells)} |")
    return lines


def checks_table(document: Document) -> list[str]:
    """Claim, what was found, whether it holds."""
    lines = ["| claim | found | holds |", "|---|---|---|"]
    for check in document["checks"]:
        lines.append(f"| {check['claim']} | {check['found']} | {'yes' if check['holds'] else '**no**'} |")
    return lines


def runs_table(found: Sequence[Document]) -> list[str]:
    """Every result there is."""
    lines = [
        "| date | size | device | seeds | took | commit | outcome | result |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        held = [check["holds"] for check in each["checks"]]
        outcome = f"{sum(held)} of {len(held)} claims hold" if held else "nothing claimed"
        if each["failure"]:
            said = each["failure"].splitlines()
            outcome = f"failed: {' '.join(dict.fromkeys((said[0], said[-1])))}"
        seeds = " ".join(map(str, each["seeds"]))
        took, machine = f"{each['seconds'] / 60:.0f} min", each["machine"]
        lines.append(
            f"| {each['date']} | {each['size']} | {machine['device']}, {machine['cpus']} cores"
            f" | {seeds} | {took} | {each['commit']} | {outcome} | `{each['file']}` |"
        )
    return lines


def section(name: str, root: Path = ROOT) -> str:
    """What stands between the marks of an experiment."""
    found = documents(name, root)
    if not found:
        return "Not run yet."
    lines: list[str] = []
    for size in SIZES:
        document = shown(found, size)
        if document is None:
            continue
        machine = document["machine"]
        seeds = len(document["seeds"])
        lines += [
            f"**{size}** ({machine['device']}, {document['date']}, {seeds} seed{'s' * (seeds > 1)})",
            "",
        ]
        if document["checks"]:
            lines += [*checks_table(document), ""]
        lines += [*measures_table(document), ""]
        if document["curves"]:
            picture = f"evidence-{name.replace('_', '-')}-{size}.png"
            lines += [f"![Curves of {name}, {size}]({picture})", ""]
    return "\n".join([*lines, "Every run:", "", *runs_table(found)])


def rewritten(page: str, root: Path = ROOT) -> str:
    """The page with the sections of all experiments. Raises ValueError where a mark is missing."""
    for name in NAMES:
        begin, end = f"<!-- results of {name} -->", f"<!-- end of {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"{PAGE}: the marks {begin} and {end} must stand in it once")
        head, _, rest = page.partition(begin)
        page = f"{head}{begin}\n{section(name, root)}\n{end}{rest.partition(end)[2]}"
    return page


def draw(document: Document, path: Path) -> None:
    """A panel for each scalar, a line for each run."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    curves = document["curves"]
    kinds = {run: tuple(scalar in curves[run] for scalar in PANELS) for run in curves}
    # Losses of different objectives are no numbers to compare: runs with monitors have panels of their own.
    panels = [
        (scalar, [run for run in curves if kinds[run] == kind])
        for kind in dict.fromkeys(kinds.values())
        for scalar, there in zip(PANELS, kind, strict=True)
        if there
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False)
    for place, (scalar, runs) in zip(axes[0], panels, strict=True):
        _panel(place, scalar, {run: curves[run] for run in runs})
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _panel(place: Axes, scalar: str, curves: dict[str, dict[str, list[float]]]) -> None:
    for run, columns in curves.items():
        place.plot(columns["step"], columns[scalar], label=run, linewidth=1.2)
    place.set_xlabel("step")
    place.set_ylabel(PANELS[scalar])
    place.set_ylim(bottom=0)
    place.legend(fontsize=7, frameon=False)
    for side in ("top", "right"):
        place.spines[side].set_visible(False)


def main() -> int:
    """Rewrite the page and its pictures; 0, or 1 where a mark is missing."""
    try:
        text = rewritten(PAGE.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    for name in NAMES:
        for size in SIZES:
            document = shown(documents(name), size)
            if document is not None and document["curves"]:
                draw(document, PAGE.with_name(f"evidence-{name.replace('_', '-')}-{size}.png"))
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
