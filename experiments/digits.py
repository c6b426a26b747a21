"""Moving digits for experiments: the labelled set of `surgrec.demo dataset`, and videos to pretrain on."""

from __future__ import annotations

import csv
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from surgrec.kernels.counter_rng import stream_key

from experiments.lab import Lab
from surgrec.demo_data.digit_set import Clip, plan_clips
from surgrec.demo_data.handwriting import Handwriting, sklearn_digits
from surgrec.demo_data.moving_digit import MOTIONS, write_clip
from surgrec.demo_data.worker import start_process
from surgrec.evaluation.manifest import Split, SplitManifest, read_manifest, write_manifest
from surgrec.evaluation.parts import parts_among
from surgrec.evaluation.probe_data import few_shot

SET_SEED = 0
"""Of the videos. The seeds of an experiment are those of weights, clips and masks."""


def labelled_set(lab: Lab, samples: dict[Split, int]) -> Path:
    """OUT/digits, with digit.json and motion.json."""
    out = lab.out / "digits"
    counts = [word for split, count in samples.items() for word in (f"--{split}", str(count))]
    made = ["-m", "surgrec.demo", "dataset", "--out", out, *counts, "--seed", str(SET_SEED)]
    lab.run("digits", [*made, "--workers", str(lab.workers)])
    return out


def unlabelled_index(lab: Lab, digits: Path, samples: dict[Split, int], more: int) -> Path:
    """An index of the train videos of a labelled set, and of `more` further ones of each train sample in each
    motion, which have no label. Handwriting of val and test is in none of them."""
    material = sklearn_digits()
    clips = [clip for clip in plan_clips(material, samples, SET_SEED) if clip.split == "train"]
    paths = [digits / clip.path for clip in clips]
    wanted = sorted({clip.sample for clip in clips}) if more else []
    paths += _draw(lab, material, clips, wanted, more)
    table = lab.out / "unlabelled.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["path", "dataset", "domain"])
        rows.writerows([path, "moving-digits", "digits"] for path in paths)
    index = lab.out / "unlabelled.h5"
    lab.run("index", ["-m", "surgrec.index", "--manifest", table, "--out", index, "--workers", lab.workers])
    return index


def _draw(lab: Lab, material: Handwriting, clips: list[Clip], wanted: list[int], more: int) -> list[Path]:
    """Streams of SET_SEED: "experiments.digits/MOTION/SAMPLE/NUMBER"."""
    todo = []
    paths = []
    for sample in wanted:
        for motion in MOTIONS:
            for number in range(more):
                path = lab.out / "unlabelled" / motion / f"sample{sample:04}-{number}.mp4"
                key = stream_key(SET_SEED, f"experiments.digits/{motion}/{sample}/{number}")
                paths.append(path)
                if not path.exists():
                    todo.append((path, material.images[sample], motion, key))
    for path in {path.parent for path in paths}:
        path.mkdir(parents=True, exist_ok=True)
    if todo:
        print(f"drawing {len(todo)} unlabelled videos", flush=True)
        with ProcessPoolExecutor(lab.workers, get_context("spawn"), start_process) as pool:
            for done in [pool.submit(write_clip, *each) for each in todo]:
                done.result()
    return paths


def few_labels(manifest: Path, shots: int, draw: int, seed: int, out: Path) -> Path:
    """A manifest with `shots` rows of each class of train, and all of val and test: the rows that a probe
    with this seed takes in its draw of that number."""
    whole = read_manifest(manifest)
    train = parts_among(np.ones(len(whole.rows), bool), whole, str(manifest))["train"]
    kept = set(few_shot(train, shots, draw, seed).rows.tolist())
    rows = tuple(row for number, row in enumerate(whole.rows) if row.split != "train" or number in kept)
    rules = (*whole.rules, f"Train: {shots} clips of each class, draw {draw} of seed {seed}.")
    write_manifest(out, SplitManifest(f"{whole.dataset}-{shots}-shots-{draw}", whole.classes, rows, rules))
    return out


def shots_of(manifest: Path, per_cent: float) -> int:
    """Clips of each class that are so many per cent of train, at least one."""
    whole = read_manifest(manifest)
    return max(1, round(len(whole.of("train")) * per_cent / 100 / len(whole.classes)))
