"""How fast are weighted draws? SurgRec's sampler against torch and NumPy, on one core.

    python bench/sampler_speed.py [--segments 858000] [--runs 7]

A draw of `surgrec` is a segment and a position within it, from the whole hierarchy; the others draw a segment
number alone, with replacement, from the same probabilities. Each contestant's draws are first compared with
the probabilities by a chi-square test; one that fails it ends the benchmark.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from surgrec.configs.data import BalanceConfig
    from surgrec.loaders.sampler import ClipSampler

sys.path.insert(0, str(Path(__file__).resolve().parent))


@dataclass(frozen=True)
class Args:
    segments: int = 858_000
    """Segments of the synthetic corpus; 214.5 M frames in pieces of ten seconds are 858,000."""
    draws: int = 4_000_000
    """Draws of one run of `surgrec`; the others make a quarter as many."""
    runs: int = 7
    """Measured runs of each contestant."""
    seed: int = 0
    core: int | None = None
    """The core to run on; by default the last one that this process may use."""
    out: Path | None = None
    """Folder of the JSON file; bench/results by default."""


def main(args: Args) -> int:
    core = max(os.sched_getaffinity(0)) if args.core is None else args.core
    os.sched_setaffinity(0, {core})  # before torch starts its threads
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = "1"

    import harness
    import numpy as np
    import torch
    from surgrec.configs.data import BalanceConfig

    torch.set_num_threads(1)
    sampler = corpus(args.segments, BalanceConfig(), args.seed)
    probabilities = sampler.probabilities
    weights = torch.from_numpy(probabilities)
    generator = np.random.default_rng(args.seed)
    few = max(1, args.draws // 4)
    block = 1 << 16  # segments and positions of a block stay in the cache
    place = 0

    def surgrec(count: int) -> NDArray[np.int64]:
        nonlocal place
        drawn = np.empty(count, np.int64)
        for start in range(0, count, block):
            segments, _ = sampler.draw_many(place + start, min(block, count - start))
            drawn[start : start + block] = segments
        place += count
        return drawn

    def weighted_random_sampler(count: int) -> NDArray[np.int64]:
        # It draws all its samples at once and gives them out one by one, as a Python list.
        made = torch.utils.data.WeightedRandomSampler(weights, count)  # type: ignore[arg-type]  # takes tensors
        return np.fromiter(made, np.int64, count)

    def multinomial(count: int) -> NDArray[np.int64]:
        return torch.multinomial(weights, count, replacement=True).numpy()

    def choice(count: int) -> NDArray[np.int64]:
        return generator.choice(len(probabilities), count, p=probabilities)

    contestants: list[tuple[str, Callable[[int], NDArray[np.int64]], int]] = [
        ("surgrec", surgrec, args.draws),
        ("torch WeightedRandomSampler", weighted_random_sampler, few),
        ("torch.multinomial", multinomial, few),
        ("numpy Generator.choice", choice, few),
    ]
    harness.print_machine()
    rows = []
    for name, draw, count in contestants:
        excess = chi_square(np.bincount(draw(args.draws), minlength=len(probabilities)), probabilities)
        if not abs(excess) < 6:
            print(f"{name} does not follow the probabilities: chi-square is {excess:.1f} deviations off")
            return 1
        values = harness.repeat(harness.rate(partial(draw, count), count), warmup=1, runs=args.runs)
        rows.append(
            harness.row(
                name,
                str(args.segments),
                "draws_per_s",
                values,
                draws=count,
                core=core,
                chi_square_deviations=round(excess, 3),
            )
        )
    harness.print_table(rows)
    print(f"surgrec / WeightedRandomSampler: {rows[0].value / rows[1].value:.1f}")
    folder = harness.RESULTS if args.out is None else args.out
    print(harness.write_results(__file__, args, rows, folder))
    return 0


def corpus(segments: int, balance: BalanceConfig, seed: int) -> ClipSampler:
    """A sampler over videos of log-normal length, in four domains and forty data sets of unequal size."""
    import numpy as np
    from surgrec.loaders.sampler import ClipSampler
    from surgrec.loaders.segments import SegmentTable

    random = np.random.default_rng(seed)
    videos = max(1, segments // 81)  # as many segments a video as 858,000 over 10,535 videos
    lengths = np.maximum(1, random.lognormal(0.0, 1.0, videos))
    pieces = np.maximum(1, np.floor(lengths / lengths.sum() * segments)).astype(np.int64)
    pieces[0] = max(1, pieces[0] + segments - pieces.sum())
    datasets = np.minimum(39, np.floor(40 * random.random(videos) ** 2)).astype(int)
    video = np.repeat(np.arange(videos, dtype=np.int32), pieces)
    frames = random.integers(125, 375, len(video))
    first = np.concatenate(([0], np.cumsum(frames)[:-1]))
    start = first - np.repeat(first[np.concatenate(([0], np.cumsum(pieces)[:-1]))], pieces)
    table = SegmentTable(video, start, start + frames)
    names = [f"set{number}" for number in datasets]
    return ClipSampler(table, [f"domain{number % 4}" for number in datasets], names, balance, seed)


def chi_square(counts: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Standard deviations between the chi-square statistic and its mean; rare items are put together."""
    import numpy as np

    expected = probabilities * counts.sum()
    order = np.argsort(expected)
    # Cells of an expected count of at least 5, as the chi-square distribution needs.
    cell = np.minimum(np.floor(np.cumsum(expected[order]) / 5), expected.sum() // 5 - 1).astype(np.int64)
    drawn = np.bincount(cell, weights=counts[order])
    wanted = np.bincount(cell, weights=expected[order])
    filled = wanted > 0
    degrees = int(filled.sum()) - 1
    statistic = float(((drawn - wanted)[filled] ** 2 / wanted[filled]).sum())
    return (statistic - degrees) / math.sqrt(2 * degrees)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
