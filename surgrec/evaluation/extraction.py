"""From a manifest to a feature file: clips of its rows through the loader and a frozen network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgrec.configs.data import DataConfig
from surgrec.configs.extract import ExtractConfig
from surgrec.corpus.build import build_index
from surgrec.corpus.discovery import Entry
from surgrec.curation.ranks import Progress, Ranks, one_rank
from surgrec.curation.records import CurationError, VideoRecords
from surgrec.evaluation.extraction_plan import PlannedChunk, plan_chunks
from surgrec.evaluation.feature_models import FeatureModel, FeatureNetwork, feature_model
from surgrec.evaluation.features import About, Chunk, FeatureError, open_features, write_features
from surgrec.evaluation.manifest import SplitManifest, read_manifest, resolve
from surgrec.loaders.clip_stream import ClipStream, Group
from surgrec.loaders.packet_index import PacketIndex


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


def extract(
    config: ExtractConfig,
    threads: int,
    progress: Progress = lambda done, of: None,
    ranks: Ranks | None = None,
) -> Report | None:
    """Extracts what config asks for, from where an earlier run was stopped; None on ranks other than 0.

    threads: of this machine, its ranks together. progress(done, of): rows. ranks: share the work, and give
    the file that one process gives, byte for byte, where torch has as many threads; by default this process
    does it by itself. Raises ManifestError, FeatureError, CurationError (weights; a rank that fails or is
    lost), BuildError (the index of the videos), UserError (a device that is not there), OSError.
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
    ranks = one_rank(config.device) if ranks is None else ranks
    device, here = ranks.world.device, max(1, threads // ranks.on_this_machine)
    records = ChunkRecords(config.out.with_name(f"{config.out.name}.work"))
    videos = records.folder / "videos.h5"

    def compute(chunks: Sequence[PlannedChunk], tell: Progress) -> None:
        if chunks:
            _compute(config, model, PacketIndex.open(videos), chunks, records, device, here, tell)

    how = f"{model.identity} on {device.type}"
    if not ranks.world.first:

        def share(own: Sequence[PlannedChunk]) -> None:
            compute(own, lambda done, of: None)

        ranks.follow(how, share, records)
        return None
    try:
        return _lead(config, manifest, paths, model, threads, ranks, how, compute, records, progress)
    finally:
        ranks.dismiss()


def _lead(
    config: ExtractConfig,
    manifest: SplitManifest,
    paths: list[str],
    model: FeatureModel,
    threads: int,
    ranks: Ranks,
    how: str,
    compute: Callable[[Sequence[PlannedChunk], Progress], None],
    records: ChunkRecords,
    progress: Progress,
) -> Report:
    """What rank 0 does, or the only process."""
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
    records.open()
    finished = False
    try:
        index = index_of(manifest, paths, records.folder / "videos.h5", threads)
        chunks = plan_chunks(config, manifest, paths, index, model, ranks.world.device)
        left = [chunk for chunk in chunks if chunk.requests and not records.has(chunk.key)]
        rows = sum(chunk.count for chunk in left)
        progress(len(manifest.rows) - rows, len(manifest.rows))
        tell = ranks.as_if_alike(len(manifest.rows) - rows, rows, progress)
        ranks.lead(left, how, lambda own: compute(own, tell), records)
        if ranks.world.size > 1:
            progress(len(manifest.rows), len(manifest.rows))  # shares are not quite of one size
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
    try:
        found = open_features(config.out)
    except FeatureError as error:
        raise FeatureError(f"{error}, when it is removed; or choose another --out") from error
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


def _compute(
    config: ExtractConfig,
    model: FeatureModel,
    index: PacketIndex,
    chunks: Sequence[PlannedChunk],
    records: ChunkRecords,
    device: torch.device,
    threads: int,
    progress: Progress,
) -> None:
    """Makes the records of chunks, of which there is at least one. progress(done, of): their rows."""
    done, total = 0, sum(chunk.count for chunk in chunks)
    try:
        network = model.load(device)
        data = DataConfig(size=network.size)
        with ClipStream(index, data, device, threads) as stream:
            queued: tuple[PlannedChunk, Group, list[Tensor]] | None = None
            for chunk, group in zip(chunks, stream.read(chunk.requests for chunk in chunks), strict=True):
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
    chunk: PlannedChunk,
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


def _stored(records: ChunkRecords, chunk: PlannedChunk) -> Chunk:
    if not chunk.requests:
        return Chunk(chunk.count, None, None, chunk.missing)
    found = records.get(chunk.key)
    if found is None:
        path = records.record_path(chunk.key.encode())
        path.unlink(missing_ok=True)
        raise FeatureError(f"{path}: a record was torn and is removed; run the same command again")
    missing = dict(zip(found["missing"].tolist(), found["reasons"].tolist(), strict=True))
    return Chunk(chunk.count, found.get("pooled"), found.get("tokens"), missing)
