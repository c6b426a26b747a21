"""What a model sees of a clip: frames of its span, decoded by the loader, in their own shape."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from surgrec.configs.vlm import LookConfig
from surgrec.evaluation.extraction_plan import seconds_of, span_of
from surgrec.evaluation.manifest import Row
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.crop import display_sar
from surgrec.loaders.engines.base import DecodedClip, Outcome
from surgrec.loaders.engines.cpu import CpuEngine
from surgrec.loaders.packet_index import PacketIndex
from surgrec.vision_language.records import Shown

GREY: Final = 128
"""Value of each channel of the picture without content."""
AHEAD: Final = 4
"""Clips that are decoded before they are asked for."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """pixels: uint8 [T, H, W, 3], RGB."""

    shown: Shown
    pixels: NDArray[np.uint8]


def choose_frames(look: LookConfig, index: PacketIndex, video: int, start: int, end: int) -> tuple[int, ...]:
    """Display positions, strictly ascending, within [start, end): the middles of equal shares of it."""
    count = 1 if look.kind == "middle" else look.frames
    if look.kind == "video":
        seconds = seconds_of(index, video)
        gaps = seconds[start + 1 : end] - seconds[start : end - 1]
        # The last frame is shown as long as the others are on average.
        length = float(gaps.sum() + gaps.mean()) if len(gaps) else 0.0
        count = min(count, max(2, round(length * look.fps)))  # one is no video to some models
    count = min(count, end - start)
    # In whole numbers, as 1.5 / 11 x 22 is less than 3 in floating point.
    return tuple(start + (2 * k + 1) * (end - start) // (2 * count) for k in range(count))


def fitted(height: int, width: int, aspect: float, look: LookConfig) -> tuple[int, int]:
    """Height and width in pixels of a picture within the bounds of look. aspect: width to height of a
    pixel."""
    tall, wide = (float(height), width * aspect) if aspect >= 1 else (height / aspect, float(width))
    scale = min(1.0, look.long_side / max(tall, wide))
    if look.short_side is not None:
        scale = min(scale, look.short_side / min(tall, wide))
    return max(1, round(tall * scale)), max(1, round(wide * scale))


def size_of(index: PacketIndex, video: int, look: LookConfig) -> tuple[int, int]:
    """Height and width in pixels of the pictures of a video, without decoding it."""
    videos = index.videos
    height, width = int(videos.height[video]), int(videos.width[video])
    turned = int(videos.rotation[video])
    if turned % 180:
        height, width = width, height
    aspect = display_sar((int(videos.sar_num[video]), int(videos.sar_den[video])), turned)
    return fitted(height, width, aspect, look)


def grey_pictures(look: LookConfig) -> Pictures:
    """As many grey pictures as a clip shows at most, four to three."""
    height, width = fitted(3 * look.long_side, 4 * look.long_side, 1.0, look)
    count = 1 if look.kind == "middle" else look.frames
    pixels = np.full((count, height, width, 3), GREY, np.uint8)
    return Pictures(Shown((), (), count, height, width, _digest(pixels)), pixels)


def read_pictures(
    index: PacketIndex, rows: Sequence[tuple[int, Row]], look: LookConfig, threads: int
) -> Iterator[Pictures | str]:
    """For each (video of the index, row), in their order: its pictures, or why it cannot be read."""
    waiting: deque[tuple[Future[Outcome], int] | str] = deque()
    upcoming = iter(enumerate(rows))
    with CpuEngine(index, threads) as engine:
        for _ in rows:
            while len(waiting) <= AHEAD and (following := next(upcoming, None)) is not None:
                number, (video, row) = following
                span = span_of(index, video, row)
                if isinstance(span, str):
                    waiting.append(span)
                    continue
                frames = choose_frames(look, index, video, *span)
                waiting.append((engine.submit(ClipRequest(number, video, frames)), video))
            first = waiting.popleft()
            yield first if isinstance(first, str) else _taken(index, look, first[0].result(), first[1])


def _taken(index: PacketIndex, look: LookConfig, outcome: Outcome, video: int) -> Pictures | str:
    if not isinstance(outcome, DecodedClip):
        return outcome.reason
    assert isinstance(outcome.frames, np.ndarray)
    videos = index.videos
    sar = int(videos.sar_num[video]), int(videos.sar_den[video])
    aspect = display_sar(sar, int(videos.rotation[video]))
    height, width = fitted(outcome.height, outcome.width, aspect, look)
    pixels = np.stack([_resized(frame, height, width) for frame in outcome.frames])
    frames = outcome.request.frames
    seconds = tuple(round(float(each), 6) for each in seconds_of(index, video)[list(frames)])
    return Pictures(Shown(frames, seconds, len(frames), height, width, _digest(pixels)), pixels)


def _resized(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def _digest(pixels: NDArray[np.uint8]) -> str:
    state = xxhash.xxh3_128(repr(pixels.shape).encode())
    state.update(np.ascontiguousarray(pixels).data)
    return state.hexdigest()
