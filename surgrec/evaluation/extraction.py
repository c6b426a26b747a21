"""From a manifest to a feature file: clips of its rows through the loader and a frozen network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgrec.configs.data import DataConfig
from surgrec.configs.extract import ExtractConfig
from surgrec.corpus.build import build_index
from surgrec.corpus.discovery import Entry
from surgrec.curation.records import CurationError, VideoRecords, key_of
from surgrec.evaluation.device import device_of
from surgrec.evaluation.feature_models import FeatureModel, FeatureNetwork, feature_model
from surgrec.evaluation.features import About, Chunk, FeatureError, open_features, write_features
from surgrec.evaluation.manifest import Row, SplitManifest, read_manifest, resolve
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream, Group
from surgrec.loaders.packet_index import ERROR, REMOVED, PacketIndex

VERSION: Final = 1
SLACK: Final = 1e-3
"""Seconds by which a frame may be early: bounds are written with three digits."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Report:
    """What a run did. missing: (path, reason) of rows that have no features."""

    rows: int
    missing: list[tuple[str, str]]
    digest: str
    reused: bool


class ChunkRecords(VideoRecords):
    """Features of chunks of rows, until the file is whole."""

    def busy(self) -> RuntimeError:
        """What `open` raises while another run has them."""
        return CurationError(
            f"{self.folder}: another run is extracting into it; wait for it, or choose another --out"
        )


def extract(config: ExtractConfig, threads: int, progress: Progress = lambda done, of: None) -> Report:
    """Extracts what config asks for, from where an earlier run was stopped. progress(done, of): rows.

    Raises ManifestError, FeatureError, CurationError (weights), BuildError (the index of the videos),
    OSError.
    """
    for name in ("clips", "batch"):
        if getattr(config, name) < 1:
            raise FeatureError(f"--{name} is {getattr(config, name)}; it is at least 1")
    if not config.views or len(set(config.views)) < len(config.views):
        raise FeatureError(f"--views are {' '.join(config.views) or 'empty'}; name each once, at least one")
    manifest = read_manifest(config.manifest)
    paths = [str(resolve(config.data_root, row)) for row in manifest.rows]
    if not config.data_root.is_dir():
        raise FeatureError(f"{config.data_root}: no such folder; check --data-root")
    model = feature_model(config.model, config.pictures, config.seed)
    about = About(
        manifest.dataset,
        manifest.digest,
        config.model,
        model.identity,
        model.geometry,
        config.clips,
        config.views,
    )
    before = _finished(config, about)
    if before is not None:
        return before
    device = device_of(config.device)
    records = ChunkRecords(config.out.with_name(f"{config.out.name}.work"))
    records.open()
    finished = False
    try:
        index = index_of(manifest, paths, records.folder / "videos.h5", threads)
        chunks = _plan(config, manifest, paths, index, model, device)
        _compute(config, model, index, chunks, records, device, threads, progress)
        stored = (_stored(records, chunk) for chunk in chunks)
        digest = write_features(config.out, about, len(manifest.rows), stored, config.tokens)
        finished = True
    finally:
        records.close(remove=finished)
    return _report(config.out, manifest, digest, reused=False)


def _finished(config: ExtractConfig, about: About) -> Report | None:
    """Of a file that holds the features already. Raises FeatureError where it holds others."""
    if not config.out.exists():
        return None
    found = open_features(config.out)
    tokens = found.token_shape is not None
    differs = [
        name for name, value in vars(about).items() if name != "model" and value != getattr(found.about, name)
    ]
    if differs or tokens != config.tokens:
        raise FeatureError(
            f"{config.out}: holds other features, {', '.join(differs) or 'tokens'} differ (they are of"
            f" {found.about.model}, split {found.about.manifest_digest}); choose another --out, or remove it"
        )
    return _report(config.out, read_manifest(config.manifest), found.digest, reused=True)


def _report(out: Path, manifest: SplitManifest, digest: str, reused: bool) -> Report:
    missing = [(manifest.rows[row].path, reason) for row, reason in open_features(out).missing.items()]
    return Report(len(manifest.rows), missing, digest, reused)


def index_of(manifest: SplitManifest, paths: list[str], out: Path, threads: int) -> PacketIndex:
    """The packet index of the videos. One that is not there has a row that says so."""
    entries = {path: Entry(path, manifest.dataset) for path in paths}
    build_index(list(entries.values()), out, threads)
    return PacketIndex.open(out)


@dataclass(frozen=True)
class _Planned:
    """Rows that are computed together: their requests, S / views for each that can be read, by number of
    clip in the chunk; and why others cannot."""

    key: str
    count: int
    requests: list[ClipRequest]
    missing: dict[int, str]


def _plan(
    config: ExtractConfig,
    manifest: SplitManifest,
    paths: list[str],
    index: PacketIndex,
    model: FeatureModel,
    device: torch.device,
) -> list[_Planned]:
    numbers = {path: number for number, path in enumerate(index.videos.path)}
    size = max(1, config.batch // config.clips)
    chunks = []
    for first in range(0, len(manifest.rows), size):
        rows = manifest.rows[first : first + size]
        requests: list[ClipRequest] = []
        missing: dict[int, str] = {}
        about = []
        for number, row in enumerate(rows):
            video = numbers[paths[first + number]]
            about.append([row.path, row.start, row.end, index.videos.xxh3[video]])
            span = span_of(index, video, row)
            if isinstance(span, str):
                missing[number] = span
                continue
            for clip in range(config.clips):
                frames = model.choose(index, video, *span, clip, config.clips)
                requests.append(ClipRequest(number * config.clips + clip, video, frames))
        key = key_of(
            VERSION,
            model.identity,
            model.geometry,
            config.clips,
            config.views,
            config.tokens,
            device.type,
            about,
        )
        chunks.append(_Planned(key, len(rows), requests, missing))
    return chunks


def span_of(index: PacketIndex, video: int, row: Row) -> tuple[int, int] | str:
    """Display positions [start, end) of a row's time, counted in seconds from the first frame on; or why
    there are none."""
    table = index.videos
    if table.status[video] in (ERROR, REMOVED):
        return table.reason[video] or "the video is gone"
    seconds = seconds_of(index, video)
    if not len(seconds):
        return "the video has no frame"
    start = 0 if row.start is None else int(np.searchsorted(seconds, row.start - SLACK))
    end = len(seconds) if row.end is None else int(np.searchsorted(seconds, row.end - SLACK))
    if start >= len(seconds):
        return (
            f"seconds {row.start:g} to {row.end or np.inf:g} begin behind the last frame, at {seconds[-1]:g}"
        )
    return start, max(end, start + 1)


def seconds_of(index: PacketIndex, video: int) -> NDArray[np.float64]:
    """float64 [F]: when each frame of a video is shown, counted from the first one on; never decreasing."""
    times = index.frame_pts(video)
    num, den = int(index.videos.time_base_num[video]), int(index.videos.time_base_den[video])
    first = times[0] if len(times) else 0
    return np.maximum.accumulate((times - first) * (num / den))


def _compute(
    config: ExtractConfig,
    model: FeatureModel,
    index: PacketIndex,
    chunks: list[_Planned],
    records: ChunkRecords,
    device: torch.device,
    threads: int,
    progress: Progress,
) -> None:
    """Makes the records of the chunks that have none."""
    left = [
        chunk for chunk in chunks if chunk.requests and not records.record_path(chunk.key.encode()).exists()
    ]
    done = sum(chunk.count for chunk in chunks) - sum(chunk.count for chunk in left)
    total = sum(chunk.count for chunk in chunks)
    progress(done, total)
    if not left:
        return
    try:
        network = model.load(device)
        data = DataConfig(size=network.size)
        with ClipStream(index, data, device, threads) as stream:
            queued: tuple[_Planned, Group, list[Tensor]] | None = None
            for chunk, group in zip(left, stream.read(chunk.requests for chunk in left), strict=True):
                computed = _encode(config, network, group)
                # A GPU computes what was queued last while the one before is taken from it.
                if queued is not None:
                    _store(config, index, records, *queued)
                    done += queued[0].count
                    progress(done, total)
                queued = chunk, group, computed
            assert queued is not None
            _store(config, index, records, *queued)
            progress(total, total)
    except torch.OutOfMemoryError as error:
        raise FeatureError(
            f"{config.out}: the GPU has no memory left for {config.batch} clips at a time. What is computed"
            " is"
            " kept: run the same command again with a smaller --batch"
        ) from error


def _encode(config: ExtractConfig, network: FeatureNetwork, group: Group) -> list[Tensor]:
    """Pooled [b, views, D] and, where they are wanted, tokens [b, views, N, D'], float16."""
    if not group.requests:
        return []
    views = []
    for view in config.views:
        batches = []
        for frames in group.frames.split(config.batch):
            pooled, tokens = network.encode(frames.flip(3) if view == "mirror" else frames)
            batches.append((pooled.half(), tokens.half()) if config.tokens else (pooled.half(),))
        views.append([torch.cat(column) for column in zip(*batches, strict=True)])
    return [torch.stack(column, 1) for column in zip(*views, strict=True)]


def _store(
    config: ExtractConfig,
    index: PacketIndex,
    records: ChunkRecords,
    chunk: _Planned,
    group: Group,
    computed: list[Tensor],
) -> None:
    """Takes a chunk from the device. A row of which a clip is missing is missing."""
    missing = dict(chunk.missing)
    for failure in group.failures:
        missing.setdefault(failure.request.sample // config.clips, failure.reason)
    arrays: dict[str, NDArray[Any]] = {}
    for name, tensor in zip(("pooled", "tokens"), computed, strict=False):
        values = tensor.cpu().numpy()
        finite = np.isfinite(values).reshape(len(values), -1).all(1)
        if not finite.all():
            request = group.requests[int(np.argmin(finite))]
            raise FeatureError(
                f"{index.videos.path[request.video]}: the network gives values that are not finite, or beyond"
                f" those of float16, for frames {request.frames[0]} to {request.frames[-1]}: its weights"
                " are no"
                " good"
            )
        column = np.zeros((chunk.count * config.clips, *values.shape[1:]), np.float16)
        column[[request.sample for request in group.requests]] = values
        column = column.reshape(chunk.count, -1, *values.shape[2:])
        column[list(missing)] = 0
        arrays[name] = column.reshape(-1, *values.shape[2:])
    order = sorted(missing)
    arrays["missing"] = np.array(order, np.int64)
    arrays["reasons"] = np.array([missing[number] for number in order], np.str_)
    records.put(chunk.key, arrays)


def _stored(records: ChunkRecords, chunk: _Planned) -> Chunk:
    if not chunk.requests:
        return Chunk(chunk.count, None, None, chunk.missing)
    found = records.get(chunk.key)
    if found is None:
        path = records.record_path(chunk.key.encode())
        path.unlink(missing_ok=True)
        raise FeatureError(f"{path}: a record was torn and is removed; run the same command again")
    missing = dict(zip(found["missing"].tolist(), found["reasons"].tolist(), strict=True))
    return Chunk(chunk.count, found.get("pooled"), found.get("tokens"), missing)
