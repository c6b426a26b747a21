"""Does curation end in the same plan wherever it is killed? Twenty runs, each killed once and started again.

    python bench/curation_kills.py

Each run of `surgrec.curate all` begins with nothing, is killed with all its processes (SIGKILL) at a moment
drawn evenly over the time that an undisturbed run takes, and is started again with the same line. `same_plan`
is 1 where the plan then has the bytes of the undisturbed one's, `same_report` where the page has; `low` is
the least of all runs. `tables` counts how many stages were finished when runs were killed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro
from corpora import VideoSpec, write_video
from harness import RESULTS, Row, print_machine, print_table, row, write_results

from surgrec.corpus.build import build_index
from surgrec.corpus.discovery import Entry


@dataclass(frozen=True)
class Args:
    """How often, and on what."""

    kills: int = 20
    """Runs that are killed."""
    videos: int = 6
    """Small videos of 12 s that are curated."""
    seed: int = 0
    """Of the moments."""
    out: Path = RESULTS
    """Folder of the JSON file."""
    save: bool = True
    """Write the JSON file."""


def main() -> int:
    args = tyro.cli(Args, prog="bench/curation_kills.py", description=__doc__)
    print_machine()
    with tempfile.TemporaryDirectory(prefix="surgrec-curation-kills-") as folder:
        rows = measure(args, Path(folder))
    print_table(rows)
    if args.save:
        print(f"written: {write_results(__file__, args, rows, args.out)}")
    return 0 if all(each.low == 1 for each in rows if each.metric == "share") else 1


def measure(args: Args, folder: Path) -> list[Row]:
    """Rows of the runs that were killed. Raises CalledProcessError where one fails that was not."""
    index = make_corpus(args, folder)
    begin = time.monotonic()
    run(index, folder / "whole" / "plan.h5")
    seconds = time.monotonic() - begin
    expected = contents(folder / "whole" / "plan.h5")
    chance = random.Random(args.seed)
    same: list[list[float]] = [[], []]
    tables: Counter[int] = Counter()
    while len(same[0]) < args.kills:
        out = folder / f"killed{len(same[0])}" / "plan.h5"
        if not kill(index, out, chance.uniform(0, seconds)):
            shutil.rmtree(out.parent)  # it was finished: another moment
            continue
        tables[len(list(out.with_name("plan.h5.work").glob("*.h5")))] += 1
        run(index, out)
        for found, one, other in zip(same, contents(out), expected, strict=True):
            found.append(float(one == other))
        print(f"{len(same[0])} of {args.kills}: {'the same' if same[0][-1] else 'ANOTHER PLAN'}", flush=True)
    extra = {"tables": {str(count): tables[count] for count in sorted(tables)}, "whole_seconds": seconds}
    corpus = f"{args.videos} made"
    return [
        row(name, corpus, "share", values, **extra)
        for name, values in zip(("same_plan", "same_report"), same, strict=True)
    ]


def make_corpus(args: Args, folder: Path) -> Path:
    """The index of the videos."""
    entries = []
    for number in range(args.videos):
        path = folder / f"{number}.mp4"
        write_video(VideoSpec(320, 240, 50, 150, 2, seed=number), path)
        entries.append(Entry(str(path), "made", "laparoscopy"))
    build_index(entries, folder / "corpus.h5", workers=1)
    return folder / "corpus.h5"


def line(index: Path, out: Path) -> list[str]:
    """The command, with its paths as they are seen from the folder of OUT: the page names them."""
    command = [sys.executable, "-m", "surgrec.curate", "all", "--index", str(index), "--out", out.name]
    command += ["--segments.seconds", "2", "--segments.least-seconds", "1", "--segments.detector", "content"]
    return [*command, "--quality.zero", "undecodable", "--workers", "2"]  # made pictures look like defects


def run(index: Path, out: Path) -> None:
    """A run that is not killed."""
    out.parent.mkdir(exist_ok=True)
    subprocess.run(line(index, out), cwd=out.parent, check=True, capture_output=True)


def kill(index: Path, out: Path, seconds: float) -> bool:
    """Starts a run and kills it after so many seconds; False where it was finished by then."""
    out.parent.mkdir(exist_ok=True)
    process = subprocess.Popen(
        line(index, out),
        cwd=out.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def contents(out: Path) -> tuple[bytes, bytes]:
    """Of the plan and of the page."""
    return out.read_bytes(), out.with_suffix(".html").read_bytes()


if __name__ == "__main__":
    sys.exit(main())
