"""How fast are quality numbers measured? Seconds of video per second, of one thread, from a warm cache.

    python bench/quality_speed.py                # videos made by bench/corpora.py
    python bench/quality_speed.py --videos a.mp4 # your own

`quality` is all that a segment costs: plan, reads, decoding of the pictures that are looked at, scaling, and
all numbers. `pictures` is the same without the numbers, and `content_area` what a video's content area costs,
once. `decode` is FFmpeg over every frame by one thread, what a tool would cost that looks at all of them.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import av
import numba
import tyro
from corpora import make_corpora
from harness import Row, print_machine, print_table, rate, repeat, row, write_results
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable, cut_segments

from surgrec.corpus.build import build_index
from surgrec.corpus.discovery import Entry
from surgrec.curation.content_area import content_areas
from surgrec.curation.pictures import NoPictures, PictureReader
from surgrec.curation.quality import measure_segments

CORPUS = "480g250"


@dataclass(frozen=True)
class Options:
    """Times real time of quality numbers, on one core."""

    videos: tuple[Path, ...] = ()
    """Your own videos instead of those that the script makes."""
    cache: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / "surgrec-bench")
    """Where the videos that it makes are kept."""
    segment_seconds: float = 10.0
    """Length of a segment."""
    segments: int = 60
    """Segments that are measured, at most."""
    decode: bool = True
    """Measure the decoding of every frame, too."""
    runs: int = 5
    """Measured runs; one more warms the cache."""
    write: bool = True
    """Write bench/results/."""


def measure(index: PacketIndex, corpus: str, options: Options) -> list[Row]:
    """Rows of one corpus; ValueError where a segment cannot be decoded."""
    whole, _ = cut_segments(index, options.segment_seconds, 1, stride=1)
    count = min(len(whole), options.segments)
    segments = SegmentTable(whole.video[:count], whole.start[:count], whole.end[:count])
    seconds = sum(
        (segments.end[k] - segments.start[k]) / float(index.videos.rate[segments.video[k]])
        for k in range(count)
    )
    areas, _ = content_areas(index, segments)
    _, missing = measure_segments(index, segments, areas)
    if missing:
        first = next(iter(missing.values()))
        raise ValueError(f"{first.path}: {first.reason}")
    fed, looked_at = read_all(index, segments)
    extra = {
        "segments": count,
        "segment_seconds": options.segment_seconds,
        "pictures": looked_at / count,
        "packets": fed / count,
    }
    work = {
        "quality": lambda: measure_segments(index, segments, areas),
        "pictures": lambda: read_all(index, segments),
        "content_area": lambda: content_areas(index, segments, sorted(set(segments.video.tolist()))),
    }
    rows = [
        row(name, corpus, "times_real_time", repeat(rate(done, seconds), 1, options.runs), **extra)
        for name, done in work.items()
    ]
    if options.decode:
        paths = [Path(index.videos.path[video]) for video in sorted(set(segments.video.tolist()))]
        length = sum(float(index.videos.duration[video]) for video in set(segments.video.tolist()))
        values = repeat(rate(lambda: decode_all(paths), length), 0, 1)
        rows.append(row("decode", corpus, "times_real_time", values))
    return rows


def read_all(index: PacketIndex, segments: SegmentTable) -> tuple[int, int]:
    """Decodes what is looked at; packets that were fed, and pictures that came out."""
    reader = PictureReader(index)
    fed, pictures = 0, 0
    for video, start, end in zip(segments.video, segments.start, segments.end, strict=True):
        found = reader.segment(int(video), int(start), int(end))
        if not isinstance(found, NoPictures):
            fed += found.fed_packets
            pictures += len(found.frames)
    reader.close()
    return fed, pictures


def decode_all(paths: list[Path]) -> int:
    """Decodes every frame of the videos in one thread; how many there were."""
    count = 0
    for path in paths:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            count += sum(1 for _ in container.decode(video=0))
    return count


def main(options: Options) -> None:
    """Measure, print and write."""
    numba.set_num_threads(1)
    print_machine()
    paths = list(options.videos) or make_corpora([CORPUS], options.cache)[CORPUS]
    corpus = "own" if options.videos else CORPUS
    with tempfile.TemporaryDirectory(prefix="surgrec-quality-speed-") as folder:
        out = Path(folder) / "corpus.h5"
        build_index([Entry(str(path.absolute()), "bench", "bench") for path in paths], out, workers=1)
        rows = measure(PacketIndex.open(out), corpus, options)
    print_table(rows)
    if options.write:
        print(write_results(__file__, options, rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
