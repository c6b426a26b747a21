"""A classifier slid over a whole video: windows through the loader and the network, in resumable parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgrec.configs.data import DataConfig
from surgrec.configs.predict import PredictConfig
from surgrec.corpus.build import build_index
from surgrec.corpus.discovery import Entry
from surgrec.curation.records import CurationError, VideoRecords, key_of
from surgrec.evaluation.clip_classifier import Ask, ClipClassifier
from surgrec.evaluation.features import FeatureError
from surgrec.evaluation.sliding import WindowBatch, read_windows
from surgrec.evaluation.window_plan import Window, WindowPlan, plan_windows
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.packet_index import ERROR, REMOVED, PacketIndex

VERSION: Final = 1
BLOCK: Final = 64
"""Windows of a record: what a killed run loses at most, but for those that the device is at."""

Progress = Callable[[int, int], None]
Floats = NDArray[np.float64]


class VideoError(ValueError):
    """A video that no prediction can be made of; the message names it, the cause and the remedy."""


class WindowRecords(VideoRecords):
    """Probabilities of blocks of windows, until all are there."""

    def busy(self) -> RuntimeError:
        """What `open` raises while another run has them."""
        return CurationError(
            f"{self.folder}: another run is predicting into it; wait for it, or choose another --out"
        )


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of a video. key: differs where the probabilities would. xxh3: of the video.
    shares: float64 [n, C] of the plan's n windows, 0 for those that are missing, number -> reason."""

    key: str
    xxh3: str
    plan: WindowPlan
    shares: Floats
    missing: dict[int, str]

    @property
    def present(self) -> NDArray[np.bool_]:
        """bool [n]."""
        return ~np.isin(np.arange(len(self.plan.windows)), list(self.missing))


@dataclass
class Network:
    """The classifier on a device, loaded when a window first needs it."""

    classifier: ClipClassifier
    device: torch.device
    _loaded: tuple[int, Ask] | None = field(default=None, init=False)

    def get(self) -> tuple[int, Ask]:
        """Size of its frames, and the network."""
        if self._loaded is None:
            self._loaded = self.classifier.load(self.device)
        return self._loaded


def predict(
    config: PredictConfig,
    network: Network,
    video: Path,
    work: Path,
    threads: int,
    known: Callable[[str], Prediction | None],
    store: Callable[[Prediction], None],
    progress: Progress = lambda done, of: None,
) -> Prediction:
    """Slides a classifier over a video, from where an earlier run was stopped; progress(done, of): windows.

    work: folder for the index of the video and what is computed, which goes when `store` has written the
    prediction. known(key): one that is there already, or None.

    Raises VideoError, FeatureError, CurationError, BuildError, OSError; store's and known's errors, too.
    """
    records = WindowRecords(work)
    records.open()
    over = False
    try:
        found = _predicted(config, network, video, records, threads, known, progress)
        store(found)
        over = True
    except VideoError:
        # What another run has computed there is not lost by one that is refused.
        over = not any(work.glob("*.npz"))
        raise
    finally:
        records.close(remove=over)
    return found


def _predicted(
    config: PredictConfig,
    network: Network,
    video: Path,
    records: WindowRecords,
    threads: int,
    known: Callable[[str], Prediction | None],
    progress: Progress,
) -> Prediction:
    index = _index(video, records.folder / "video.h5", threads, config.verify)
    classifier = network.classifier
    plan = plan_windows(index, 0, classifier.geometry, classifier.choose, config.every, config.window)
    windows = plan.windows
    xxh3 = index.videos.xxh3[0]
    key = key_of(
        VERSION,
        classifier.digest,
        classifier.identity,
        classifier.geometry,
        network.device.type,
        config.verify,
        xxh3,
        [[each.frames, each.start, each.end] for each in windows],
    )
    found = known(key)
    if found is not None:
        return found
    blocks = _Blocks(records, key, len(windows), video)
    progress(blocks.done, len(windows))
    _compute(config, network, index, windows, blocks, threads, progress)
    shares, missing = blocks.joined()
    if len(missing) == len(windows):
        blocks.forget()  # so that the next run tries again
        raise VideoError(
            f"{video}: none of its {len(windows)} windows could be read, the first one because: {missing[0]}"
        )
    return Prediction(key, xxh3, plan, shares, missing)


def _index(video: Path, out: Path, threads: int, verify: bool) -> PacketIndex:
    """The packet index of a video. Raises VideoError where nothing can be decoded."""
    # Damage is looked for anew: a file that was mended meanwhile may have kept its size and time.
    out.unlink(missing_ok=True)
    build_index([Entry(str(video.absolute()), "predict")], out, threads, verify=verify)
    index = PacketIndex.open(out)
    if index.videos.status[0] in (ERROR, REMOVED):
        raise VideoError(f"{video}: {index.videos.reason[0] or 'the video is gone'}")
    if not int(index.videos.frame_count[0]):
        raise VideoError(f"{video}: the video has no frame")
    return index


class _Blocks:
    """Which windows are computed, and what came of them; whole blocks of BLOCK are on the disk."""

    def __init__(self, records: WindowRecords, key: str, count: int, video: Path) -> None:
        self._records, self._key, self._count, self._video = records, key, count, video
        self._open: dict[int, dict[int, NDArray[np.float32] | str]] = {}
        self.left = [
            number
            for first in range(0, count, BLOCK)
            if records.get(self._name(first // BLOCK)) is None
            for number in range(first, min(first + BLOCK, count))
        ]

    @property
    def done(self) -> int:
        """Windows that an earlier run computed."""
        return self._count - len(self.left)

    def _name(self, block: int) -> str:
        return f"{self._key}/{block}"

    def add(self, number: int, value: NDArray[np.float32] | str) -> None:
        """Probabilities [C] of a window, or why there are none."""
        block = number // BLOCK
        own = self._open.setdefault(block, {})
        own[number - block * BLOCK] = value
        size = min(BLOCK, self._count - block * BLOCK)
        if len(own) < size:
            return
        lost = sorted(at for at, each in own.items() if isinstance(each, str))
        arrays = {
            "missing": np.array(lost, np.int64),
            "reasons": np.array([own[at] for at in lost], np.str_),
            "at": np.array(sorted(set(own) - set(lost)), np.int64),
            "shares": np.array([own[at] for at in sorted(set(own) - set(lost))], np.float32),
        }
        self._records.put(self._name(block), arrays)
        del self._open[block]

    def forget(self) -> None:
        """Removes the records."""
        for block in range(-(-self._count // BLOCK)):
            self._records.record_path(self._name(block).encode()).unlink(missing_ok=True)

    def joined(self) -> tuple[Floats, dict[int, str]]:
        """All shares, float64 [n, C], and what is missing. Raises VideoError where a record was torn."""
        shares: Floats | None = None
        missing: dict[int, str] = {}
        for first in range(0, self._count, BLOCK):
            found = self._records.get(self._name(first // BLOCK))
            if found is None:
                raise VideoError(
                    f"{self._video}: a record in {self._records.folder} was torn; run the same command again"
                )
            missing |= {
                first + at: reason
                for at, reason in zip(found["missing"].tolist(), found["reasons"].tolist(), strict=True)
            }
            if len(found["at"]):
                if shares is None:
                    shares = np.zeros((self._count, found["shares"].shape[1]))
                shares[first + found["at"]] = found["shares"]
        return np.zeros((self._count, 0)) if shares is None else shares, missing


def _compute(
    config: PredictConfig,
    network: Network,
    index: PacketIndex,
    windows: list[Window],
    blocks: _Blocks,
    threads: int,
    progress: Progress,
) -> None:
    """Asks the network about the windows that are left."""
    if not blocks.left:
        return
    size, ask = network.get()
    data = DataConfig(size=size, picture_mib=config.memory_mib)
    done = blocks.done
    try:
        with ClipStream(index, data, network.device, threads, chunk=1) as stream:
            queued: tuple[WindowBatch, Tensor | None] | None = None
            left = {number: windows[number] for number in blocks.left}
            most = config.memory_mib * (1 << 20) // 4
            for batch in read_windows(stream, index, 0, left, config.batch, most):
                asked = ask(batch.frames) if batch.numbers else None
                # A GPU computes what was queued last while the batch before is taken from it.
                if queued is not None:
                    done += _take(blocks, index, windows, *queued)
                    progress(done, len(windows))
                queued = batch, asked
            assert queued is not None
            _take(blocks, index, windows, *queued)
            progress(len(windows), len(windows))
    except torch.OutOfMemoryError as error:
        raise FeatureError(
            f"the GPU has no memory left for {config.batch} windows at a time. What is computed is kept: run"
            " the same command again with a smaller --batch or --memory-mib"
        ) from error


def _take(
    blocks: _Blocks, index: PacketIndex, windows: list[Window], batch: WindowBatch, asked: Tensor | None
) -> int:
    """Takes a batch from the device; how many windows it was."""
    shares = np.empty((0, 0), np.float32) if asked is None else asked.cpu().numpy()
    for number, own in zip(batch.numbers, shares, strict=True):
        if not np.isfinite(own).all():
            frames = windows[number].frames
            raise FeatureError(
                f"{index.videos.path[0]}: the network gives values that are not finite for frames {frames[0]}"
                f" to {frames[-1]}: its weights, or those of the head, are no good"
            )
        blocks.add(number, own)
    for number, reason in batch.missing.items():
        blocks.add(number, reason)
    return len(batch.numbers) + len(batch.missing)
