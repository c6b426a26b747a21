"""What clip a sample number stands for: sampler, clip shape, shared decodes and crop, bound to one index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from surgrec.configs.data import DataConfig
from surgrec.kernels.counter_rng import mix64, stream_key, to_unit
from surgrec.loaders.clip_plan import ClipRequest, clip_frames
from surgrec.loaders.corpus_plan import CorpusPlan, usable_segments
from surgrec.loaders.crop import CropWindows, RandomCrop, display_sar
from surgrec.loaders.engines.base import DecodedClip
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.sampler import ClipSampler
from surgrec.loaders.segments import Unusable, cut_segments
from surgrec.loaders.shared_decode import SharedDecode, further_starts, share
from surgrec.loaders.sharing import make_sharing

_NOT_IN_DIGEST = (
    "index",
    "plan",
    "engine",
    "threads",
    "sessions",
    "session_mib",
    "decoder_timeout",
    "crop",
    "picture_mib",
    "prefetch",
    "drop_disposable",
    "max_failures",
)
"""Fields of DataConfig that change where the work is done, not what comes out. The two ways of `crop` differ
by two or three levels in a pixel, as a GPU's crop does from a CPU's."""
_LAST_POSITION = 1.0 - 2.0**-53
"""The largest number below 1."""
_SHARING = ("clips_per_decode", "repeats", "shuffle_mib")
"""Without effect where each decode gives one clip: left out of the digest then."""


class _Shape(TypedDict):
    frames: int
    stride: int | None
    fps: float | None


class ClipSource:
    """Pure functions of (index, data configuration, seed, global batch) and a sample number.

    The global batch matters only where decodes are shared and mixed (loaders/sharing.py).

    Further streams of `seed`: "sampler.share" for the further clips of a decode.
    """

    def __init__(
        self,
        index: PacketIndex,
        data: DataConfig,
        seed: int,
        global_batch: int = 1,
        content_area: ArrayLike | None = None,
    ) -> None:
        """content_area: for each video of the index the rectangle that holds its content, int32 [V, 4]: top,
        left, height, width in stored pixels of the upright picture; all 0 where it is not known. Crops are
        drawn inside of it; by default, inside those of data.plan, where there is one.

        With data.plan the segments and their weights are the plan's, and every frame of a clip lies within
        its segment.

        Raises ValueError where no video of the index gives a clip, a field of `data` makes no sense, the plan
        cannot be used, or a rectangle does not lie within its picture.
        """
        self.index = index
        self.data = data
        self.seed = seed
        self._shape: _Shape = {
            "frames": data.frames,
            "stride": None if data.fps is not None else data.stride,
            "fps": data.fps,
        }
        self.plan = None if data.plan is None else _open_plan(index, data)
        self.unusable: list[Unusable]
        weights = None
        if self.plan is None:
            self.segments, self.unusable = cut_segments(
                index, data.segment_seconds, allow_sequential=data.sequential, **self._shape
            )
        else:
            self.segments, weights, self.unusable = usable_segments(
                index, self.plan, allow_sequential=data.sequential, **self._shape
            )
            if content_area is None and self.plan.content_area.any():
                content_area = self.plan.content_area
        self.sampler = ClipSampler(
            self.segments, index.videos.domain, index.videos.dataset, data.balance, seed, weights
        )
        self.crop = RandomCrop(seed, data.crop_scale, data.crop_aspect, data.flip)
        self.sharing = make_sharing(data, global_batch)
        self.content_area = None if content_area is None else check_areas(index, content_area)
        self._share_key = np.uint64(stream_key(seed, "sampler.share"))

    def requests(self, first: int, count: int) -> list[ClipRequest]:
        """The clip of each of the samples first, ..., first + count - 1."""
        samples = range(first, first + count)
        return [self.decode(self.sharing.unit(sample)[0], [sample]).clips[0][0] for sample in samples]

    def decode(self, unit: int, samples: Sequence[int], attempt: int = 0) -> SharedDecode:
        """The decode of a unit that gives the clips of `samples`, members of it.

        attempt: 0, or 1, 2, ... for the substitute of a unit that failed, or whose earlier substitute did.
        """
        if attempt:
            segment, position = self.sampler.substitute(unit, attempt)
        else:
            segment, position = self.sampler.draw(unit)
        video = int(self.segments.video[segment])
        start, end = int(self.segments.start[segment]), int(self.segments.end[segment])
        at_key = self.data.start == "key"
        within = self.plan is not None
        shown = [
            clip_frames(self.index, video, start, end, position, **self._shape, at_key=at_key, within=within)
        ]
        further = self.sharing.clips - 1
        if further:
            count = int(self.index.videos.frame_count[video])
            key = np.uint64(mix64(self._share_key, np.uint64(unit)))
            numbers = np.arange(attempt * further, (attempt + 1) * further, dtype=np.uint64)
            draws = [float(to_unit(np.uint64(mix64(key, number)))) for number in numbers]
            latest = (start, end, _LAST_POSITION) if within else (count - 1, count, 0.0)
            last = clip_frames(self.index, video, *latest, **self._shape, within=within)[0]
            for at in further_starts(self.index, video, (start, end), shown[0], last, draws, within):
                shown.append(clip_frames(self.index, video, at, at + 1, 0.0, **self._shape))
        wanted = [(sample, self.sharing.clip(self.sharing.unit(sample)[1])) for sample in samples]
        return share(unit, video, shown, wanted)

    def windows(self, clips: Sequence[DecodedClip]) -> CropWindows:
        """The crop window of each clip. A substitute has the random numbers of its sample."""
        areas, sar = content_of(self.index, self.content_area, clips)
        samples = np.array([clip.request.sample for clip in clips], np.int64)
        inside = self.crop.windows(samples, areas[:, 3], areas[:, 2], sar)
        return CropWindows(
            inside.top + areas[:, 0], inside.left + areas[:, 1], inside.height, inside.width, inside.flip
        )

    def count_datasets(self, first: int, count: int) -> NDArray[np.int64]:
        """int64 [data sets]: how often samples first, ..., first + count - 1 show each data set."""
        counts = self.sampler.count_datasets(0, 0)
        for unit, units in self.sharing.units(first, count):
            counts += self.sampler.count_datasets(unit, units)
        return counts

    def digest(self) -> str:
        """Changes whenever some sample number could stand for another clip or crop."""
        unused = _SHARING if self.sharing.members == 1 else ()
        if self.data.start == "any":
            unused = (*unused, "start")
        fields = {
            name: value
            for name, value in asdict(self.data).items()
            if name not in _NOT_IN_DIGEST and name not in unused
        }
        content = [self.index.digest, self.seed, len(self.segments), fields]
        if self.plan is not None:
            content.append(self.plan.digest)
        if self.content_area is not None:
            content.append(hashlib.blake2b(self.content_area.tobytes(), digest_size=16).hexdigest())
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def content_of(
    index: PacketIndex, content_area: NDArray[np.int32] | None, clips: Sequence[DecodedClip]
) -> tuple[NDArray[np.int32], list[float]]:
    """Of each clip the rectangle in which its window lies, int32 [B, 4] (top, left, height, width), and the
    aspect of its pixels as displayed. content_area: as in ClipSource, checked by check_areas."""
    videos = index.videos
    areas = np.array([(0, 0, clip.height, clip.width) for clip in clips], np.int32).reshape(-1, 4)
    sar = []
    for row, clip in enumerate(clips):
        v = clip.request.video
        turned = int(videos.rotation[v])
        sar.append(display_sar((int(videos.sar_num[v]), int(videos.sar_den[v])), turned))
        known = content_area is not None and content_area[v, 2] > 0
        if known and (clip.height, clip.width) == _upright_size(index, v):
            assert content_area is not None
            areas[row] = content_area[v]
    return areas, sar


def _open_plan(index: PacketIndex, data: DataConfig) -> CorpusPlan:
    """Raises ValueError where the plan cannot be used, or `data` says what is the plan's to say."""
    assert data.plan is not None
    plain = DataConfig()
    for name in ("balance", "segment_seconds"):
        if getattr(data, name) != getattr(plain, name):
            raise ValueError(
                f"data.{name} has no effect with data.plan, whose segments have weights of their own: leave"
                f" it out, or curate anew"
            )
    return CorpusPlan.open(data.plan, index)


def _upright_size(index: PacketIndex, video: int) -> tuple[int, int]:
    """Height and width."""
    height, width = int(index.videos.height[video]), int(index.videos.width[video])
    return (width, height) if int(index.videos.rotation[video]) % 180 else (height, width)


def check_areas(index: PacketIndex, content_area: ArrayLike) -> NDArray[np.int32]:
    """Content areas as int32 [V, 4]. Raises ValueError for one that does not lie within its picture."""
    areas = np.ascontiguousarray(content_area, np.int32)
    if areas.shape != (len(index), 4):
        raise ValueError(f"content areas are {areas.shape}; the index asks for {(len(index), 4)}")
    for video in np.flatnonzero(areas.any(axis=1)).tolist():
        top, left, height, width = areas[video].tolist()
        rows, columns = _upright_size(index, video)
        if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
            raise ValueError(
                f"{index.videos.path[video]}: content area of {height} x {width} at row {top}, column {left} "
                f"is not within its picture of {rows} x {columns}"
            )
    return areas
