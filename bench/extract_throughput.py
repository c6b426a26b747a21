"""How near does extraction come to the loader's rate? Features against the same clips without a network.

    python bench/extract_throughput.py --models random:mae-vitb --corpora 480g250 proxy16s4

Rows of `seconds` each are cut from the corpora of bench/corpora.py, one after the other, until there are
`clips`. Both contestants decode and crop the same clips by loaders/clip_stream.py, in the same groups:

    loader    the clips alone, on the device
    extract   surgrec.extract's library with a model of random weights, pooled features, to a feature file

clips_per_s counts from the first group to the last, so that starting decoders, loading weights and writing
the file at the end are not in it; seconds is all of an extraction, with them. `share` is extract over loader.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent))

from corpora import CORPORA, RATE, make_corpora
from harness import RESULTS, Row, print_machine, report, row

if TYPE_CHECKING:
    from surgrec.configs.extract import ExtractConfig
    from surgrec.loaders.clip_plan import ClipRequest
    from surgrec.loaders.packet_index import PacketIndex

    from surgrec.evaluation.manifest import Row as ClipRow

# What indexes videos are processes that import this file: nothing heavy up here.


@dataclass(frozen=True)
class Options:
    """What is extracted."""

    models: tuple[str, ...] = ("random:mae-vitb",)
    """Models, as surgrec.extract takes them."""
    corpora: tuple[str, ...] = ("480g250",)
    """Corpora of loader_throughput.py."""
    clips: int = 2048
    """Clips of a run."""
    seconds: float = 10.0
    """Length of a row."""
    batch: int = 16
    """Clips that the network sees at a time."""
    runs: int = 3
    """Measured runs; one more warms up."""
    workers: int = 0
    """As surgrec.extract's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network computes."""
    cache: Path = Path(tempfile.gettempdir()) / "surgrec-bench"
    """Where generated videos are kept."""
    save: bool = True
    """Write a file in `out`."""
    out: Path = RESULTS
    """Where the result goes."""


def rows_of(index: PacketIndex, options: Options) -> tuple[ClipRow, ...]:
    """Rows of the videos, video by video in turn; no two the same: a tenth of a second later where they start
    again from the beginning."""
    from surgrec.evaluation.manifest import Row as ClipRow

    lengths = [len(index.frames(video)) / RATE for video in range(len(index))]
    fit = [int(length // options.seconds) for length in lengths]
    places = [(video, at) for at in range(max(fit)) for video in range(len(index)) if at < fit[video]]
    if not places:
        raise ValueError(f"--seconds {options.seconds:g}: no video is as long; give less")
    rows = []
    for number in range(options.clips):
        video, at = places[number % len(places)]
        start = round(at * options.seconds + 0.1 * (number // len(places)), 3)
        if start >= lengths[video]:
            raise ValueError(f"--clips {options.clips}: the videos do not hold as many; give fewer")
        name = Path(index.videos.path[video]).name
        rows.append(ClipRow(name, 0, "train", f"{video}", start, start + options.seconds))
    return tuple(rows)


def clips_of(index: PacketIndex, rows: tuple[ClipRow, ...], name: str) -> list[ClipRequest]:
    """The clips that extraction takes of the rows."""
    from surgrec.loaders.clip_plan import ClipRequest

    from surgrec.evaluation.extraction_plan import span_of
    from surgrec.evaluation.feature_models import feature_model

    model = feature_model(name, None, 0)
    videos = {Path(path).name: video for video, path in enumerate(index.videos.path)}
    requests = []
    for number, entry in enumerate(rows):
        video = videos[entry.path]
        span = span_of(index, video, entry)
        assert not isinstance(span, str)
        requests.append(ClipRequest(number, video, model.choose(index, video, *span, 0, 1)))
    return requests


def loaded(index: PacketIndex, requests: list[ClipRequest], size: int, options: Options) -> float:
    """Clips per second of the loader alone, from its first group to its last."""
    import torch
    from surgrec.configs.data import DataConfig
    from surgrec.loaders.clip_stream import ClipStream
    from surgrec.loaders.engines.cpu import count_threads

    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    groups = [requests[at : at + options.batch] for at in range(0, len(requests), options.batch)]
    begin, count = 0.0, 0
    with ClipStream(index, DataConfig(size=size), device, count_threads(options.workers)) as stream:
        for number, group in enumerate(stream.read(groups)):
            assert not group.failures, group.failures[0]
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number == 0:
                begin = time.perf_counter()
            else:
                count += len(group.requests)
    return count / (time.perf_counter() - begin)


def extracted(config: ExtractConfig) -> tuple[float, float]:
    """Clips per second of an extraction, from its first group to its last; and all of its seconds."""
    from surgrec.loaders.engines.cpu import count_threads

    from surgrec.evaluation.extraction import extract

    told: list[tuple[int, float]] = []
    started = time.perf_counter()
    found = extract(
        config, count_threads(config.workers), lambda done, _: told.append((done, time.perf_counter()))
    )
    whole = time.perf_counter() - started
    assert found is not None
    assert not found.missing, found.missing[0]
    (first, begin), (last, end) = next(entry for entry in told if entry[0]), told[-1]
    return (last - first) / (end - begin), whole


def measure(model: str, corpus: str, folder: Path, options: Options) -> list[Row]:
    """Both contestants in turn, so that what else the machine does meets both."""
    import torch
    from surgrec.configs.extract import ExtractConfig
    from surgrec.loaders.packet_index import PacketIndex

    from surgrec.corpus.build import build_index
    from surgrec.corpus.discovery import Entry
    from surgrec.evaluation.feature_models import feature_model
    from surgrec.evaluation.manifest import SplitManifest, write_manifest

    paths = make_corpora([corpus], options.cache)[corpus]
    build_index([Entry(str(path), corpus) for path in paths], folder / "corpus.h5", 2)
    index = PacketIndex.open(folder / "corpus.h5")
    rows = rows_of(index, options)
    manifest = folder / "split.json"
    write_manifest(manifest, SplitManifest(corpus, ("clip",), rows))

    def config(number: int) -> ExtractConfig:
        return ExtractConfig(
            manifest,
            options.cache,
            model,
            folder / f"{number}.h5",
            batch=options.batch,
            workers=options.workers,
            device=options.device,
        )

    requests = clips_of(index, rows, model)
    size = feature_model(model, None, 0).load(torch.device("cpu")).size
    alone, rates, seconds = [], [], []
    for number in range(options.runs + 1):
        alone.append(loaded(index, requests, size, options))
        speed, whole = extracted(config(number))
        rates.append(speed)
        seconds.append(whole)
        print(f"{model} on {corpus}: loader {alone[-1]:.1f}, extract {speed:.1f} clips/s", flush=True)
    about = {"model": model, "clips": options.clips, "batch": options.batch}
    return [
        row("loader", corpus, "clips_per_s", alone[1:], **about),
        row("extract", corpus, "clips_per_s", rates[1:], **about),
        row("extract", corpus, "share", [x / y for x, y in zip(rates[1:], alone[1:], strict=True)], **about),
        row("extract", corpus, "seconds", seconds[1:], **about),
    ]


def main(options: Options) -> int:
    """Measure, print and write; 1 where an option makes no sense."""
    import torch

    unknown = [name for name in options.corpora if name not in CORPORA]
    if unknown:
        print(f"unknown corpora {unknown}; there are {list(CORPORA)}", file=sys.stderr)
        return 1
    if options.clips <= options.batch or options.runs < 1:
        print("--clips must be more than --batch, and --runs at least 1", file=sys.stderr)
        return 1
    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device is cuda, but torch finds no GPU", file=sys.stderr)
        return 1
    print_machine()
    rows = []
    for model in options.models:
        for corpus in options.corpora:
            with tempfile.TemporaryDirectory(prefix="surgrec-extract-throughput-") as name:
                try:
                    rows += measure(model, corpus, Path(name), options)
                except ValueError as error:  # rows that do not fit, FeatureError
                    print(f"{model} on {corpus}: {error}", file=sys.stderr)
                    return 1
    return report(__file__, options, rows)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
