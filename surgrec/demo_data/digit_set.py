"""A small labelled benchmark of real handwriting in motion: its clips, its videos, and its manifests.

Each sample of handwriting moves in the two ways of one pair (left and right, up and down, clockwise and
anticlockwise, growing and shrinking), and both clips are in the same split. Each split has as many samples of
each digit for each pair: motions, digits and their pairs are all balanced.

    OUT/videos/left/digit3-sample0142.mp4      motion.json   label = motion, which takes time to tell
    OUT/videos/right/digit3-sample0142.mp4     digit.json    label = digit, which one frame can show
                                               both.json     label = motion and digit
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
import torch

from surgrec.demo_data.handwriting import Handwriting
from surgrec.demo_data.moving_digit import MOTIONS, write_clip
from surgrec.demo_data.worker import start_process
from surgrec.evaluation.manifest import SPLITS, Row, Split, SplitManifest, write_manifest
from surgrec.kernels.counter_rng import random_u64, stream_key
from surgrec.loaders.whole_file import replacing

RECIPE: Final = "recipe.json"
VIDEOS: Final = "videos"
LABELS: Final = ("motion", "digit", "both")
"""What a manifest's label may be; manifests are called so."""
DIGITS: Final = tuple(str(digit) for digit in range(10))
DRAWS: Final = ("digit_set", "encode", "moving_digit", "texture")
"""Modules that the videos follow from."""
PAIRS: Final = len(MOTIONS) // 2


class DigitSetError(ValueError):
    """A set that cannot be made as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Clip:
    """A clip of the set. sample: number of its handwriting in the material. key: of its random stream."""

    motion: str
    digit: int
    sample: int
    split: Split
    key: int

    @property
    def path(self) -> str:
        """Relative to the set's folder."""
        return f"{VIDEOS}/{self.motion}/digit{self.digit}-sample{self.sample:04}.mp4"

    @property
    def group(self) -> str:
        """What may not be split: the sample."""
        return f"sample{self.sample:04}"


def plan_clips(material: Handwriting, samples: dict[Split, int], seed: int) -> tuple[Clip, ...]:
    """Which sample moves how, in which split. samples: of each digit for each pair of motions.

    Streams of `seed`: "demo.digits.choice/DIGIT", "demo.digits.clip/MOTION/SAMPLE". Raises DigitSetError
    where a split would be empty or a digit has too few samples.
    """
    for split in SPLITS:
        if samples[split] < 1:
            raise DigitSetError(f"--{split} {samples[split]}: each split needs one sample or more")
    wanted = PAIRS * sum(samples.values())
    least = int(np.bincount(material.labels, minlength=len(DIGITS)).min())
    if wanted > least:
        raise DigitSetError(
            f"--train, --val and --test add up to {sum(samples.values())} samples for each of {PAIRS} pairs"
            f" of motions, {wanted} of each digit, and one has {least}: they may add up to {least // PAIRS}"
        )
    clips = []
    motions = list(MOTIONS)
    for digit in range(len(DIGITS)):
        of_digit = np.flatnonzero(material.labels == digit)
        key = stream_key(seed, f"demo.digits.choice/{digit}")
        draws = random_u64(key, torch.arange(len(of_digit))).numpy().view(np.uint64)
        chosen = iter(of_digit[np.argsort(draws, kind="stable")].tolist())
        for split in SPLITS:
            for pair in range(PAIRS):
                for _ in range(samples[split]):
                    sample = next(chosen)
                    for motion in motions[2 * pair : 2 * pair + 2]:
                        draw = stream_key(seed, f"demo.digits.clip/{motion}/{sample}")
                        clips.append(Clip(motion, digit, sample, split, draw))
    return tuple(sorted(clips, key=lambda clip: (SPLITS.index(clip.split), motions.index(clip.motion))))


def manifest_of(clips: tuple[Clip, ...], label: str, rules: tuple[str, ...] = ()) -> SplitManifest:
    """The manifest of the same clips under one of LABELS."""
    motions = tuple(MOTIONS)
    classes = {
        "motion": motions,
        "digit": DIGITS,
        "both": tuple(f"{digit} {motion}" for digit in DIGITS for motion in motions),
    }[label]

    def number(clip: Clip) -> int:
        motion = motions.index(clip.motion)
        return {"motion": motion, "digit": clip.digit, "both": clip.digit * len(motions) + motion}[label]

    rows = tuple(Row(clip.path, number(clip), clip.split, clip.group) for clip in clips)
    return SplitManifest(f"moving-digits-{label}", classes, rows, rules)


def rules_of(material: Handwriting, samples: dict[Split, int], seed: int) -> tuple[str, ...]:
    """What made the manifests, in words."""
    counts = ", ".join(f"{samples[split]} {split}" for split in SPLITS)
    return (
        f"Material: {material.source}; which samples one person wrote is not known.",
        "Group: the sample of handwriting. Each moves in the two ways of one pair, in one split.",
        f"Samples of each digit for each pair of motions: {counts}; drawn by seed {seed}.",
        "Pose at the start uniform over a range without ends, so that no single frame tells the motion.",
    )


def recipe(material: Handwriting, samples: dict[Split, int], seed: int) -> str:
    """What the videos follow from: seed, counts, handwriting, and the code that draws. JSON."""
    code, images = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
    for name in DRAWS:
        code.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    images.update(material.images.tobytes() + material.labels.tobytes())
    facts = {"material": material.source, "images": images.hexdigest(), "samples": samples, "seed": seed}
    return json.dumps({**facts, "code": code.hexdigest()}, indent=1) + "\n"


def make_set(
    out: Path,
    material: Handwriting,
    samples: dict[Split, int],
    seed: int = 0,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Make what is missing of the videos, and then the manifests; returns the manifests, as LABELS.

    On one machine the same arguments give the same bytes: each file is encoded by one thread of x264, whose
    output may differ between its versions and processors. workers: processes; 0 takes the cores of this
    machine. progress hears (videos there, videos in all).

    Raises DigitSetError where `out` holds something else, or a process is killed; OSError.
    """
    clips = plan_clips(material, samples, seed)
    check_folder(out, recipe(material, samples, seed))
    for motion in MOTIONS:
        (out / VIDEOS / motion).mkdir(parents=True, exist_ok=True)
    missing = [clip for clip in clips if not (out / clip.path).exists()]
    there = len(clips) - len(missing)
    progress(there, len(clips))
    if missing:
        processes = min(workers or os.cpu_count() or 1, len(missing))
        # Fresh processes: a fork of one that has torch's threads may hang.
        pool = ProcessPoolExecutor(processes, get_context("spawn"), start_process)
        try:
            jobs = [
                pool.submit(write_clip, out / clip.path, material.images[clip.sample], clip.motion, clip.key)
                for clip in missing
            ]
            for done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                progress(there + done, len(clips))
        except BrokenProcessPool as error:
            raise DigitSetError(
                "a process was killed, perhaps because memory ran out; the same command goes on where it was,"
                " with fewer --workers if it happens again"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for partial in (out / VIDEOS).glob("*/.*.partial"):  # of runs that were killed
        partial.unlink(missing_ok=True)
    paths = [out / f"{label}.json" for label in LABELS]
    rules = rules_of(material, samples, seed)
    for label, path in zip(LABELS, paths, strict=True):
        write_manifest(path, manifest_of(clips, label, rules))
    return paths


def check_folder(out: Path, text: str) -> None:
    """Takes `out` for the set with this recipe. Raises DigitSetError where it holds another one, or videos of
    something else: they are not touched."""
    path = out / RECIPE
    if path.exists():
        if path.read_text(encoding="utf-8", errors="replace") != text:
            raise DigitSetError(
                f"{out} holds a set that was made with other options or by another version ({path}): name"
                f" another folder, or delete this one"
            )
        return
    if (out / VIDEOS).exists():
        raise DigitSetError(f"{out / VIDEOS} is there, and no set of this command: name another folder")
    out.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
