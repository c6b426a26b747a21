"""What does a probe cost? Seconds of training on cached features, of many heads in one pass and one by one.

    python bench/probe_throughput.py                  # a machine without a GPU, features of ViT-S
    python bench/probe_throughput.py --device cuda --width 768 --tokens 1568 --token-clips 10000 --whole

Features are drawn and written to a feature file, from which every contestant reads, so that reading counts.
Token features are the same again after a hundred clips: drawing them would take longer than all probes.

    attentive-1         one attentive head, ms_per_step
    attentive-20        a grid of twenty in one pass, ms_per_step
    attentive-20-alone  twenty, one after the other: ms_per_step of all together
                        with --whole also the seconds of attentive-20 as the command trains it: its own steps
                        and batch, over all token_clips, and choosing on val
    linear-20           a whole linear probe of `clips` clips: standardising, training, choosing on val;
    seconds linear-1            the same with one head
    knn                 k nearest neighbours, all k; seconds
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from harness import RESULTS, Row, print_machine, repeat, report, row
from surgrec.configs.probe import RATES, ProbeConfig

from surgrec.evaluation import manifest as splits
from surgrec.evaluation.features import About, Chunk, open_features, write_features
from surgrec.evaluation.head_training import Candidate, train_heads
from surgrec.evaluation.heads import AttentiveHeads
from surgrec.evaluation.probe_data import Reader, parts_of
from surgrec.evaluation.probing import choose

CLASSES = 10
WARM_STEPS = 2
AT_ONCE = 100  # clips that are drawn and written


@dataclass(frozen=True)
class Options:
    """Seconds of probes on cached features."""

    clips: int = 10_000
    """Clips with pooled features, for the linear and the k-NN probe; six of ten are train."""
    width: int = 384
    """Of the features: 384 is ViT-S, 768 ViT-B, 1024 ViT-L."""
    tokens: int = 392
    """Tokens of a clip: 1568 for 16 frames of 224 pixels, 392 for 16 of 112."""
    token_clips: int = 300
    """Clips with token features, for the attentive probe."""
    batch: int = ProbeConfig.batch
    """Clips of a step of the attentive probe; the command's default."""
    steps: int = 4
    """Steps of an attentive run that is timed."""
    linear_steps: int = 1000
    """Steps of the linear probe: the command's default."""
    heads: int = 20
    """Heads of the attentive grid, 1 to 20."""
    whole: bool = False
    """Also a whole attentive probe, once."""
    threads: int = 0
    """Threads of torch; 0 leaves it to torch."""
    runs: int = 3
    """Measured runs; one more warms up."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where heads are trained."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products."""
    save: bool = True
    """Write a file in `out`."""
    out: Path = RESULTS
    """Where the result goes."""


def make(folder: Path, clips: int, options: Options, tokens: bool) -> tuple[Path, splits.SplitManifest]:
    """A manifest and a feature file of normal noise, written part by part."""
    generator = np.random.default_rng(0)
    kinds: tuple[splits.Split, ...] = ("train", "train", "train", "val", "test")
    rows = tuple(
        splits.Row(f"{n}.mp4", int(generator.integers(CLASSES)), kinds[n % 5], f"g{n}") for n in range(clips)
    )
    manifest = splits.SplitManifest("bench", tuple(str(label) for label in range(CLASSES)), rows)

    shape = (min(clips, AT_ONCE), options.tokens, options.width)
    values = generator.standard_normal(shape, np.float32).astype(np.float16) if tokens else None

    def chunks() -> Iterator[Chunk]:
        for first in range(0, clips, AT_ONCE):
            count = min(AT_ONCE, clips - first)
            pooled = generator.standard_normal((count, options.width), np.float32).astype(np.float16)
            yield Chunk(count, pooled, None if values is None else values[:count], {})

    about = About("bench", manifest.digest, "noise", "noise", {}, 1, ("centre",))
    path = folder / f"{'tokens' if tokens else 'pooled'}.h5"
    write_features(path, about, clips, chunks(), tokens)
    return path, manifest


def grid(count: int) -> list[Candidate]:
    """`count` heads, 20 at most, in the order of the command's own grid."""
    rates = RATES["attentive"]
    return [Candidate(lr, decay, seed) for seed in (0, 1) for decay in (0.01, 0.1) for lr in rates][:count]


def attentive(path: Path, manifest: splits.SplitManifest, options: Options) -> list[Row]:
    """Milliseconds of a step: one head, all in one pass, all one after the other."""
    features = open_features(path, manifest)
    device = torch.device(options.device)
    reader = Reader(features, "tokens", device)
    train = parts_of(features, manifest)["train"]
    heads = AttentiveHeads(options.width, CLASSES)

    def seconds(candidates: list[Candidate]) -> float:
        """Of the steps that come after the first ones."""
        steps = WARM_STEPS + options.steps
        begin = 0.0

        def timed() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            nonlocal begin
            for step, batch in enumerate(reader.batches(train, options.batch, steps, 0)):
                if step == WARM_STEPS:
                    _wait(device)
                    begin = time.perf_counter()
                yield batch

        train_heads(heads, candidates, timed(), steps, device, options.precision == "bfloat16")
        _wait(device)
        return time.perf_counter() - begin

    every = grid(options.heads)
    contestants: dict[str, Callable[[], float]] = {
        "attentive-1": lambda: seconds(every[:1]),
        f"attentive-{len(every)}": lambda: seconds(every),
        f"attentive-{len(every)}-alone": lambda: sum(seconds([candidate]) for candidate in every),
    }
    corpus = f"{options.token_clips}x{options.tokens}x{options.width}"
    rows = []
    for name, work in contestants.items():
        values = [1000 * value / options.steps for value in repeat(work, 1, options.runs)]
        rows.append(
            row(name, corpus, "ms_per_step", values, batch=options.batch, precision=options.precision)
        )
    one, together, alone = (entry.value for entry in rows)
    rows.append(row(rows[1].name, corpus, "times_one_head", [together / one]))
    rows.append(row(rows[1].name, corpus, "times_faster_than_alone", [alone / together]))
    return rows


def whole_attentive(path: Path, manifest: splits.SplitManifest, options: Options) -> Row:
    """Seconds of the command's own grid, from the file to the answers on test."""
    config = ProbeConfig(features=path, manifest=path, kind="attentive", precision=options.precision)
    begin = time.perf_counter()
    features = open_features(path, manifest)
    choose(config, features, parts_of(features, manifest), CLASSES, torch.device(options.device))
    seconds = time.perf_counter() - begin
    corpus = f"{options.token_clips}x{options.tokens}x{options.width}"
    about = {"steps": config.steps, "batch": config.batch, "precision": config.precision}
    return row("attentive-20", corpus, "seconds", [seconds], **about)


def whole(path: Path, manifest: splits.SplitManifest, options: Options) -> list[Row]:
    """Seconds of whole linear and k-NN probes, from the file to the answers on test."""
    device = torch.device(options.device)
    common: dict[str, Any] = {"features": path, "manifest": path, "steps": options.linear_steps}
    configs = {
        "linear-20": ProbeConfig(kind="linear", **common),
        "linear-1": ProbeConfig(kind="linear", lrs=(1e-3,), weight_decays=(0.01,), seeds=(0,), **common),
        "knn": ProbeConfig(kind="knn", **common),
    }
    corpus = f"{options.clips}x{options.width}"

    def seconds(config: ProbeConfig) -> float:
        begin = time.perf_counter()
        features = open_features(path, manifest)
        choose(config, features, parts_of(features, manifest), CLASSES, device)
        return time.perf_counter() - begin

    rows = []
    for name, config in configs.items():
        values = repeat(lambda config=config: seconds(config), 1, options.runs)  # type: ignore[misc]
        steps = {} if name == "knn" else {"steps": config.steps, "batch": config.batch}
        rows.append(row(name, corpus, "seconds", values, **steps))
    return rows


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(options: Options) -> int:
    """Measure, print and write; 1 where an option makes no sense."""
    if options.heads not in range(1, 21):
        print(f"--heads is {options.heads}; 1 to 20", file=sys.stderr)
        return 1
    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device is cuda, but torch finds no GPU", file=sys.stderr)
        return 1
    if options.threads:
        torch.set_num_threads(options.threads)
    print_machine()
    with tempfile.TemporaryDirectory(prefix="surgrec-probe-throughput-") as name:
        folder = Path(name)
        tokens = make(folder, options.token_clips, options, True)
        rows = attentive(*tokens, options)
        if options.whole:
            rows.append(whole_attentive(*tokens, options))
        rows += whole(*make(folder, options.clips, options, False), options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows.append(row("process", f"{options.clips}x{options.width}", "peak_gib", [peak]))
    return report(__file__, options, rows)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
