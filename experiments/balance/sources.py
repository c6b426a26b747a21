"""A corpus of eight sources at 1 : 200, with junk in it, and a labelled set of its four rarest.

The four rare sources are moving digits, each before a ground of its own; the four common ones are a camera
that moves over tissue of one colour, with nothing in it to learn digits from. A fifth of every common video
is junk: black, white, or a picture that stands still.

    source    0    1    2    3      4     5     6     7
    frames    1    2    5   10     21    44    94   200   times those of source 0
              digits               tissue
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from surgrec.kernels.counter_rng import stream_key

from surgrec.demo_data.digit_set import Clip, manifest_of, plan_clips
from surgrec.demo_data.encode import write_h264
from surgrec.demo_data.handwriting import Handwriting, sklearn_digits
from surgrec.demo_data.moving_digit import FPS, FRAMES, MOTIONS, SIDE, ink, place, poses
from surgrec.demo_data.texture import Colour, Picture, colourise, fractal, relief
from surgrec.demo_data.worker import start_process
from surgrec.evaluation.manifest import Row, Split, SplitManifest, write_manifest

SOURCES: Final = 8
RARE: Final = 4
"""The first of them."""
IMBALANCE: Final = 200.0
PIECE: Final = 128
"""Frames for which one digit moves one way in the corpus."""
LONGEST: Final = 1500
"""Frames of a video of the corpus."""
JUNK: Final = 300
"""Frames of junk in a whole common video: a fifth."""
GROUNDS: Final[tuple[tuple[Colour, Colour], ...]] = (
    ((12, 30, 60), (30, 70, 110)),
    ((20, 48, 22), (60, 100, 50)),
    ((170, 160, 150), (220, 215, 205)),
    ((40, 40, 44), (84, 84, 90)),
    ((120, 40, 40), (190, 100, 90)),
    ((150, 110, 60), (210, 170, 110)),
    ((90, 30, 60), (150, 80, 120)),
    ((130, 70, 50), (220, 150, 120)),
)
"""Colours of each source, from the valleys of its texture to the heights."""
INKS: Final[tuple[Colour, ...]] = ((240, 200, 60), (240, 240, 240), (40, 20, 60), (240, 90, 60))
"""Of the digits of the rare sources."""


@dataclass(frozen=True)
class Job:
    """A video to draw. key: of its stream. sample, motion: of a labelled clip; None for a video of the
    corpus."""

    path: Path
    source: int
    frames: int
    key: int
    sample: int | None = None
    motion: str = ""


def lengths(rarest: int) -> list[int]:
    """Frames of each source, where source 0 has `rarest`."""
    return [round(rarest * IMBALANCE ** (source / (SOURCES - 1))) for source in range(SOURCES)]


def ground(source: int, rng: np.random.Generator, side: int) -> Picture:
    """A texture in the colours of a source: uint8 [side, side, 3]."""
    field = fractal(rng, side, 8, 4, 0.6)
    return relief(colourise(field, list(GROUNDS[source])), field, 0.4)


def moving_digit(source: int, image: Picture, motion: str, key: int, count: int) -> Iterator[Picture]:
    """A digit before the ground of a rare source, at the speed of the labelled set however long it lasts:
    `count` frames, uint8 [64, 64, 3]."""
    behind = ground(source, np.random.default_rng([key, 1]), 2 * SIDE)[:SIDE, :SIDE]
    picture, first = ink(image), poses(motion, key, FRAMES)
    step = (first[1] - first[0] + 0.5) % 1.0 - 0.5
    colour = np.array(INKS[source], np.float32)
    for number in range(count):
        alpha = place(picture, (first[0] + number * step) % 1.0)[..., None]
        yield np.round(behind * (1 - alpha) + colour * alpha).astype(np.uint8)


def tissue(source: int, key: int, count: int) -> Iterator[Picture]:
    """A camera over tissue, and junk in the middle: `count` frames, uint8 [64, 64, 3]."""
    rng = np.random.default_rng([key, 2])
    wide = ground(source, rng, 8 * SIDE)
    wide = np.concatenate([wide, wide[:SIDE]])
    wide = np.concatenate([wide, wide[:, :SIDE]], axis=1)
    phase, speed = rng.uniform(0, 2 * np.pi, (2, 2)), rng.uniform(0.002, 0.02, (2, 2))
    junk = JUNK * count // LONGEST
    kind, begin = int(rng.integers(3)), (count - junk) // 2
    held = np.zeros((SIDE, SIDE, 3), np.uint8)
    for number in range(count):
        where = (np.sin(phase + speed * number).sum(0) / 4 + 0.5) * (8 * SIDE - 1)
        left, top = int(where[0]), int(where[1])
        picture = wide[top : top + SIDE, left : left + SIDE]
        if not begin <= number < begin + junk:
            held = picture
            yield picture
        else:
            yield (np.zeros_like(held), np.full_like(held, 255), held)[kind]


def draw(job: Job, images: Picture) -> None:
    """The work of one process. images: uint8 [n, s, s], handwriting that may be shown."""
    cv2.setNumThreads(1)
    if job.sample is not None:
        write_h264(
            job.path, moving_digit(job.source, images[job.sample], job.motion, job.key, job.frames), FPS
        )
    elif job.source >= RARE:
        write_h264(job.path, tissue(job.source, job.key, job.frames), FPS)
    else:
        write_h264(job.path, _digits(job, images), FPS)


def _digits(job: Job, images: Picture) -> Iterator[Picture]:
    rng = np.random.default_rng([job.key, 3])
    for number, first in enumerate(range(0, job.frames, PIECE)):
        motion = list(MOTIONS)[int(rng.integers(len(MOTIONS)))]
        image = images[int(rng.integers(len(images)))]
        key = stream_key(job.key, f"piece/{number}")
        yield from moving_digit(job.source, image, motion, key, min(PIECE, job.frames - first))


def corpus_jobs(folder: Path, rarest: int, seed: int) -> list[Job]:
    """Videos of all sources, of LONGEST frames at most. Streams "experiments.balance/SOURCE/NUMBER"."""
    jobs = []
    for source, frames in enumerate(lengths(rarest)):
        for number, first in enumerate(range(0, frames, LONGEST)):
            key = stream_key(seed, f"experiments.balance/{source}/{number}")
            path = folder / f"source{source}" / f"{number:04}.mp4"
            jobs.append(Job(path, source, min(LONGEST, frames - first), key))
    return jobs


def make(out: Path, rarest: int, samples: dict[Split, int], seed: int, workers: int) -> list[Path]:
    """Draws what is missing: OUT/corpus and OUT/rare with digit.json and motion.json; returns the manifests.

    samples: of each digit for each pair of motions and each rare source. Handwriting of val and test is in
    no video of the corpus.
    """
    material = sklearn_digits()
    clips = plan_clips(material, samples, seed)
    shown = np.array(sorted({clip.sample for clip in clips if clip.split == "train"}))
    corpus = corpus_jobs(out / "corpus", rarest, seed)
    labelled = [
        Job(out / "rare" / f"source{source}" / clip.path, source, FRAMES, clip.key, clip.sample, clip.motion)
        for source in range(RARE)
        for clip in clips
    ]
    _draw_all(corpus, material.images[shown], workers)
    _draw_all(labelled, material.images, workers)
    return [_manifest(out, material, clips, label) for label in ("digit", "motion")]


def _draw_all(jobs: list[Job], images: Picture, workers: int) -> None:
    missing = [job for job in jobs if not job.path.exists()]
    if not missing:
        return
    print(f"drawing {len(missing)} videos", flush=True)
    for folder in {job.path.parent for job in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, get_context("spawn"), start_process) as pool:
        for done in [pool.submit(draw, job, images) for job in missing]:
            done.result()


def _manifest(out: Path, material: Handwriting, clips: tuple[Clip, ...], label: str) -> Path:
    whole = manifest_of(
        clips, label, (f"Material: {material.source}.", "Before the grounds of rare sources.")
    )
    rows = tuple(
        Row(f"source{source}/{row.path}", row.label, row.split, row.group)
        for source in range(RARE)
        for row in whole.rows
    )
    path = out / "rare" / f"{label}.json"
    write_manifest(path, SplitManifest(f"rare-sources-{label}", whole.classes, rows, whole.rules))
    return path
