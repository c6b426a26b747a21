"""Which frames of a span are a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from surgrec.configs.data import DataConfig
from surgrec.curation.checkpoint_embedder import clip_within
from surgrec.loaders.packet_index import PacketIndex
from surgrec.weights.layout import ClipForm
from surgrec.weights.video_model import rate_of


@dataclass(frozen=True)
class ClipCut:
    """data: frames, size, and stride or frames per second of a clip; without a rate where `spread`: then its
    frames are spread evenly over a span."""

    data: DataConfig
    spread: bool = False

    def choose(
        self, index: PacketIndex, video: int, start: int, end: int, clip: int, clips: int
    ) -> tuple[int, ...]:
        """Display positions of the frames of clip `clip` of `clips`: in the middles of equal shares of the
        span [start, end), or the middles of equal pieces of the clip's share."""
        if not self.spread:
            return clip_within(index, video, start, end, (clip + 0.5) / clips, self.data)
        count = self.data.frames
        return _at((clip + (np.arange(count) + 0.5) / count) / clips, start, end)

    def at(self, index: PacketIndex, video: int, start: int, end: int, position: float) -> tuple[int, ...]:
        """As choose, of the clip that starts at `position` in [0, 1) of where it may; spread frames lie there
        in equal pieces of the span (segments of Wang et al. 2016, arXiv 1608.00859, all at one place)."""
        if not self.spread:
            return clip_within(index, video, start, end, position, self.data)
        return _at((np.arange(self.data.frames) + position) / self.data.frames, start, end)


def cut_of(clip: ClipForm) -> ClipCut:
    """How clips are cut for a model."""
    return ClipCut(clip.data(), not rate_of(clip))


def clip_geometry(clip: ClipForm) -> dict[str, Any]:
    """Frames, stride or frames per second, and size of a clip, as JSON; of frames that are spread evenly over
    a span, their number. With the pooling of a model that leaves a choice."""
    rate = rate_of(clip)
    pooling = {} if clip.pooling is None else {"pooling": clip.pooling}
    if not rate:
        return {"pictures": clip.frames, "spread": "even", **pooling}
    return {"frames": clip.frames, **rate, "size": clip.size, **pooling}


def cut_from(geometry: dict[str, Any], frames: int, size: int) -> ClipCut:
    """How clips are cut for a network of these frames and size, by what its file says. Raises ValueError."""
    if "pictures" in geometry:
        if geometry["pictures"] != frames:
            raise ValueError(f"`geometry` is {geometry}; the encoder sees {frames} frames")
        return ClipCut(DataConfig(frames=frames, size=size), spread=True)
    stride, fps = geometry.get("stride"), geometry.get("fps")
    if (geometry.get("frames"), geometry.get("size")) != (frames, size):
        raise ValueError(f"`geometry` is {geometry}; the encoder sees {frames} frames of {size} pixels")
    rates = [rate for rate in (stride, fps) if isinstance(rate, int | float) and rate > 0]
    if len(rates) != 1 or not (fps is None or stride is None):
        raise ValueError(f"`geometry` is {geometry}; it has a stride or frames per second")
    if fps is not None:
        return ClipCut(DataConfig(frames=frames, fps=float(fps), size=size))
    return ClipCut(DataConfig(frames=frames, stride=int(rates[0]), size=size))


def _at(shares: np.ndarray, start: int, end: int) -> tuple[int, ...]:
    return tuple((start + np.floor(shares * (end - start)).astype(int)).tolist())
