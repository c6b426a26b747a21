"""How long does the search for near duplicates take at the paper's size: 858,000 segments, 10,535 videos?

    python bench/curation_dedup.py

Fingerprints are simulated: pieces of one long random process whose coefficients change within about a second,
each video with signs of its own, so that no two of them show the same. Into some, stretches of 10 s of others
are planted, at a lag between two samples, half of them mirrored, with noise of the same spectrum such that
they correlate by `likeness`, which is what the worst alterations leave (surgrec/curation/same_footage.py).
`seconds` is the search from fingerprints in memory to matches; what it takes to make them up is not counted,
nor is what a run takes to read them from records. recall: share of planted stretches of which half or more is
found; precision: share of matches that are planted. The most memory of the process includes the 0.2 GiB of
the random process.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from surgrec.curation.same_footage import Match

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import RESULTS, Row, print_machine, print_table, row, write_results

SEGMENT_SECONDS = 10


@dataclass(frozen=True)
class Args:
    """What is simulated."""

    videos: int = 10_535
    segments: int = 858_000
    planted: int = 2_000
    """Stretches of 10 s that are copied into another video."""
    likeness: float = 0.93
    """Correlation of a copy with what it is a copy of."""
    process: int = 1_000_000
    """Samples of the random process."""
    seed: int = 0
    out: Path = RESULTS
    """Folder of the JSON file."""
    save: bool = True
    """Write the JSON file."""


@dataclass(frozen=True)
class Plant:
    """Samples of `source` from `taken` on that are planted into `target` from `put` on."""

    source: int
    target: int
    taken: float
    put: int
    mirrored: bool


class Corpus:
    """Fingerprints by number of the video. spent: seconds that it took to make them."""

    def __init__(self, args: Args) -> None:
        import numpy as np

        from surgrec.curation.fingerprint import RATE, SIDE

        draw = np.random.default_rng(args.seed)
        self.args = args
        self.spent = 0.0
        self.length = round(args.segments / args.videos * SEGMENT_SECONDS * RATE)
        self.stretch = SEGMENT_SECONDS * RATE
        white = draw.standard_normal((args.process + RATE, SIDE * SIDE), dtype=np.float32)
        vertical, horizontal = np.mgrid[:SIDE, :SIDE]
        white *= (2.0 / np.maximum(np.hypot(vertical, horizontal), 1)).ravel().astype(np.float32)
        np.cumsum(white, 0, out=white)
        self.process = ((white[RATE:] - white[:-RATE]) / RATE**0.5).astype(np.float16)
        del white
        self.offset = draw.integers(0, args.process - self.length, args.videos)
        self.plants: dict[int, list[Plant]] = defaultdict(list)
        half = args.videos // 2  # copies lie in one half of the videos, originals in the other
        places = self.length // self.stretch
        for number in range(args.planted):
            target = half + number % (args.videos - half)
            put = number // (args.videos - half) % places * self.stretch
            taken = float(draw.uniform(0, self.length - self.stretch - 2))
            self.plants[target].append(Plant(int(draw.integers(half)), target, taken, put, bool(number % 2)))

    def samples(self, video: int) -> NDArray[np.float16]:
        """As gather and find_matches ask for them."""
        start = time.perf_counter()
        found = self._plain(video)
        for plant in self.plants[video]:
            found[plant.put : plant.put + self.stretch] = self._copied(plant)
        self.spent += time.perf_counter() - start
        return found

    def _plain(self, video: int) -> NDArray[np.float16]:
        import numpy as np

        signs = np.random.default_rng([self.args.seed, video]).integers(0, 2, self.process.shape[1])
        first = self.offset[video]
        return self.process[first : first + self.length] * (2 * signs - 1).astype(np.float16)

    def _copied(self, plant: Plant) -> NDArray[np.float32]:
        import numpy as np

        from surgrec.curation.same_footage import MIRROR

        source = self._plain(plant.source).astype(np.float32)
        first = int(plant.taken)
        part = plant.taken - first
        a, b = source[first : first + self.stretch], source[first + 1 : first + 1 + self.stretch]
        copied = (1 - part) * a + part * b
        draw = np.random.default_rng([self.args.seed, plant.target, plant.put, 1])
        at = int(draw.integers(0, len(self.process) - self.stretch))
        noise = self.process[at : at + self.stretch] * draw.choice([-1.0, 1.0], source.shape[1])
        copied = copied + noise * (1 / self.args.likeness**2 - 1) ** 0.5
        return copied * MIRROR if plant.mirrored else copied


def judge(corpus: Corpus, matches: list[Match]) -> tuple[float, float]:
    """Recall and precision."""
    by_pair = defaultdict(list)
    for match in matches:
        by_pair[match.one, match.other, match.mirrored].append(match)
    right: set[Match] = set()
    found = 0
    plants = [plant for own in corpus.plants.values() for plant in own]
    for plant in plants:
        shown = 0.0
        for match in by_pair[plant.source, plant.target, plant.mirrored]:
            begin = max(match.start + match.lag, plant.put)
            end = min(match.end + match.lag, plant.put + corpus.stretch)
            if end > begin and abs(match.lag - (plant.put - plant.taken)) < 2:
                right.add(match)
                shown = max(shown, end - begin)
        found += shown >= 0.5 * corpus.stretch
    return found / max(1, len(plants)), len(right) / max(1, len(matches))


def main() -> int:
    args = tyro.cli(Args, prog="bench/curation_dedup.py", description=__doc__)
    print_machine()
    from surgrec.curation.near_duplicates import find_matches

    find_matches(2, Corpus(Args(videos=2, segments=4, planted=1, process=1000)).samples)  # compiles
    corpus = Corpus(args)
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's own high-water mark starts anew
    start = time.perf_counter()
    matches = find_matches(args.videos, corpus.samples, seed=args.seed)
    seconds = time.perf_counter() - start
    recall, precision = judge(corpus, matches)
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(fields["VmHWM"].split()[0]) / 2**20
    size = str(args.segments)
    rows: list[Row] = [
        row("near_duplicates", size, "seconds", [seconds - corpus.spent], simulation=corpus.spent),
        row("near_duplicates", size, "peak_gib", [peak]),
        row("near_duplicates", size, "recall", [recall], planted=args.planted),
        row("near_duplicates", size, "precision", [precision], matches=len(matches)),
    ]
    print_table(rows)
    if args.save:
        print(f"written: {write_results(__file__, args, rows, args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
