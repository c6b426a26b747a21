"""Does a probe's memory grow with the number of clips? Peak of anonymous memory of whole probes.

    python bench/probe_memory.py
    python bench/probe_memory.py --clips 1000 100000 --kinds linear --width 768

Every probe runs in a process of its own, from the feature file to the result with its intervals. Counted is
RssAnon of /proc/self/status, which a thread reads every 5 ms: pages of the mapped feature file are not in it,
because the kernel takes them back when it needs the room.

    linear, attentive   peak_anon_mib: at its highest; start_anon_mib: when all is imported
    features            mib: of the columns that the probe reads, to compare with
"""

from __future__ import annotations

import multiprocessing
import re
import sys
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from harness import RESULTS, Row, print_machine, report, row
from probe_throughput import Options as FileOptions
from probe_throughput import make
from surgrec.configs.probe import ProbeConfig

from surgrec.evaluation.manifest import write_manifest
from surgrec.evaluation.probing import probe

SECONDS = 0.005
"""Between two looks at the memory."""

Kind = Literal["linear", "attentive"]


@dataclass(frozen=True)
class Options:
    """Peak memory of probes on cached features."""

    clips: tuple[int, ...] = (1_000, 10_000, 50_000)
    """Clips of a feature file; three of five are train."""
    kinds: tuple[Kind, ...] = ("linear", "attentive")
    """Probes."""
    width: int = 384
    """Of pooled features, for linear probes."""
    tokens: int = 16
    """Tokens of a clip, for attentive probes."""
    token_width: int = 64
    """Of a token."""
    steps: int = 100
    """Steps of training, of a grid of twenty heads and 128 clips a step."""
    save: bool = True
    """Write a file in `out`."""
    out: Path = RESULTS
    """Where the result goes."""


def anonymous_mib() -> float:
    """Of this process, in memory now."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError("/proc/self/status has no RssAnon: this script needs Linux")
    return int(found.group(1)) / 1024


def peak_of(kind: Kind, features: Path, manifest: Path, steps: int) -> tuple[float, float]:
    """MiB of anonymous memory before and at the peak of a probe."""
    torch.set_num_threads(1)
    start = peak = anonymous_mib()
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(SECONDS):
            peak = max(peak, anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        probe(ProbeConfig(features, manifest, kind=kind, steps=steps, device="cpu"))
    finally:
        ended.set()
        watcher.join()
    return start, peak


def measure(options: Options, folder: Path) -> list[Row]:
    """Rows of all probes."""
    rows = []
    for kind in options.kinds:
        attentive = kind == "attentive"
        width = options.token_width if attentive else options.width
        for clips in options.clips:
            features, manifest = make(
                folder, clips, FileOptions(width=width, tokens=options.tokens), attentive
            )
            split = folder / "split.json"
            write_manifest(split, manifest)
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, context) as pool:
                start, peak = pool.submit(peak_of, kind, features, split, options.steps).result()
            corpus = f"{clips}x{options.tokens}x{width}" if attentive else f"{clips}x{width}"
            size = clips * width * 2 * (options.tokens if attentive else 1) / 2**20
            rows.append(row(kind, corpus, "peak_anon_mib", [peak], steps=options.steps))
            rows.append(row(kind, corpus, "start_anon_mib", [start]))
            rows.append(row("features", corpus, "mib", [size]))
            features.unlink()
    return rows


def main(options: Options) -> int:
    """Measure, print and write."""
    print_machine()
    with tempfile.TemporaryDirectory(prefix="surgrec-probe-memory-") as name:
        rows = measure(options, Path(name))
    return report(__file__, options, rows)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
