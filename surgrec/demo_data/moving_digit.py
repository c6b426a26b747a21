"""A handwritten digit that moves: frames from which the motion can be told, while no single one tells it.

A pose is four numbers of 0..1 without ends: place across and down, turn, and size. A motion moves one of
them, and beyond 1 it begins at 0 again: from the right a digit goes on at the left, from 60 degrees at -60,
and from the largest size at the smallest. Each clip begins at a pose drawn uniformly, so that at every time
every pose is as likely under every motion, and a single frame holds nothing of it.

    0 ---- .3 ---- .6 ---- .9 -> 0 ---- .2
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from surgrec.demo_data.encode import write_h264
from surgrec.demo_data.texture import Colour, Field, Picture, colourise, fractal, relief

SIDE = 64
"""Height and width of a clip, pixels."""
FRAMES = 32
"""Enough for 8 frames, 4 apart."""
FPS = 25
X, Y, TURN, SIZE = range(4)
MOTIONS = {
    "left": (X, -1),
    "right": (X, 1),
    "up": (Y, -1),
    "down": (Y, 1),
    "clockwise": (TURN, 1),
    "anticlockwise": (TURN, -1),
    "growing": (SIZE, 1),
    "shrinking": (SIZE, -1),
}
"""Which number of the pose a motion moves, and where to."""
TRAVEL = (0.7, 0.9)
"""Least and greatest way over a clip, of the whole range."""
MOST_TURN = 60.0
"""Degrees from upright. Less than 90, so that a 6 never looks like a 9."""
REACH = 18.0
"""Pixels from the middle of the picture, across and down."""
SIZES = (20.0, 44.0)
"""Side of the square that a digit is written in, pixels; between them uniform by the logarithm."""
GROUND: list[Colour] = [(34, 14, 16), (78, 40, 38)]
"""Colours of the texture, from its valleys to its heights."""
WHITE = 240.0
"""Of ink."""
_INK = 48
"""Side of a digit's picture before it is placed, pixels."""


def ink(image: NDArray[np.uint8]) -> Field:
    """A sample, uint8 [s, s], enlarged and with firm edges: float32 [48, 48] over 0..1."""
    smooth = cv2.resize(image.astype(np.float32) / 255, (_INK, _INK), interpolation=cv2.INTER_CUBIC)
    return np.clip((smooth - 0.25) / 0.35, 0, 1).astype(np.float32)


def poses(motion: str, key: int, frames: int = FRAMES) -> NDArray[np.float64]:
    """Float64 [frames, 4] in [0, 1): place across, place down, turn, size. key: of the clip's stream."""
    rng = np.random.default_rng([key, 0])
    pose = np.tile(rng.random(4), (frames, 1))
    axis, direction = MOTIONS[motion]
    pose[:, axis] += direction * rng.uniform(*TRAVEL) * np.arange(frames) / (frames - 1)
    return pose % 1.0


def place(picture: Field, pose: NDArray[np.float64]) -> Field:
    """Where ink is in a frame: float32 [64, 64] over 0..1. picture: as `ink` gives it. pose: [4]."""
    angle = MOST_TURN * (2 * pose[TURN] - 1)
    size = SIZES[0] * (SIZES[1] / SIZES[0]) ** pose[SIZE]
    middle = (_INK - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), -angle, size / _INK)  # cv2 turns anticlockwise
    for row, axis in enumerate((X, Y)):
        matrix[row, 2] += (SIDE - 1) / 2 - middle + REACH * (2 * pose[axis] - 1)
    return cv2.warpAffine(picture, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)


def frames(image: NDArray[np.uint8], motion: str, key: int, count: int = FRAMES) -> Iterator[Picture]:
    """A clip: `count` frames, uint8 RGB [64, 64, 3]. The same key draws the same pictures."""
    rng = np.random.default_rng([key, 1])
    field = fractal(rng, 2 * SIDE, 8, 4, 0.6)[:SIDE, :SIDE]
    ground = relief(colourise(field, GROUND), field, 0.4)
    picture = ink(image)
    for pose in poses(motion, key, count):
        alpha = place(picture, pose)[..., None]
        yield np.round(ground * (1 - alpha) + WHITE * alpha).astype(np.uint8)


def write_clip(path: Path, image: NDArray[np.uint8], motion: str, key: int) -> None:
    """Draws and encodes a clip: the work of one process. The file appears under its name when it is whole."""
    cv2.setNumThreads(1)
    write_h264(path, frames(image, motion, key), FPS)
