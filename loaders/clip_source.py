"""What clip a sample number stands for: sampler, clip shape and crop, bound to one index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TypedDict

import numpy as np
from surgrec.configs.data import DataConfig
from surgrec.loaders.clip_plan import ClipRequest, clip_frames
from surgrec.loaders.crop import CropWindows, RandomCrop, display_sar
from surgrec.loaders.engines.base import DecodedClip
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.sampler import ClipSampler
from surgrec.loaders.segments import Unusable, cut_segments

_NOT_IN_DIGEST = ("index", "engine", "threads", "prefetch", "drop_disposable", "max_failures")
"""Fields of DataConfig that change where the work is done, not what comes out."""


class _Shape(TypedDict):
    frames: int
    stride: int | None
    fps: float | None


class ClipSource:
    """Pure functions of (index, data configuration, seed) and a sample number."""

    def __init__(self, index: PacketIndex, data: DataConfig, seed: int) -> None:
        """Raises ValueError where no video of the index gives a clip, or a field of `data` makes no sense."""
        self.index = index
        self.data = data
        self.seed = seed
        self._shape: _Shape = {
            "frames": data.frames,
            "stride": None if data.fps is not None else data.stride,
            "fps": data.fps,
        }
        self.unusable: list[Unusable]
        self.segments, self.unusable = cut_segments(
            index, data.segment_seconds, allow_sequential=data.sequential, **self._shape
        )
        self.sampler = ClipSampler(
            self.segments, index.videos.domain, index.videos.dataset, data.balance, seed
        )
        self.crop = RandomCrop(seed, data.crop_scale, data.crop_aspect, data.flip)

    def requests(self, first: int, count: int) -> list[ClipRequest]:
        """One request for each of the samples first, ..., first + count - 1."""
        segments, positions = self.sampler.draw_many(first, count)
        return [
            self._request(first + k, segment, position)
            for k, (segment, position) in enumerate(zip(segments.tolist(), positions.tolist(), strict=True))
        ]

    def substitute(self, sample: int, attempt: int) -> ClipRequest:
        """The request that takes the place of a sample whose clip, or whose earlier substitute, failed."""
        return self._request(sample, *self.sampler.substitute(sample, attempt))

    def windows(self, clips: Sequence[DecodedClip]) -> CropWindows:
        """The crop window of each clip. A substitute has the random numbers of its sample."""
        videos = self.index.videos
        sar = [
            display_sar((int(videos.sar_num[v]), int(videos.sar_den[v])), int(videos.rotation[v]))
            for v in (clip.request.video for clip in clips)
        ]
        return self.crop.windows(
            np.array([clip.request.sample for clip in clips], np.int64),
            [clip.frames.shape[2] for clip in clips],
            [clip.frames.shape[1] for clip in clips],
            sar,
        )

    def digest(self) -> str:
        """Changes whenever some sample number could stand for another clip or crop."""
        fields = {name: value for name, value in asdict(self.data).items() if name not in _NOT_IN_DIGEST}
        content = [self.index.digest, self.seed, len(self.segments), fields]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def _request(self, sample: int, segment: int, position: float) -> ClipRequest:
        video = int(self.segments.video[segment])
        start, end = int(self.segments.start[segment]), int(self.segments.end[segment])
        return ClipRequest(sample, video, clip_frames(self.index, video, start, end, position, **self._shape))
