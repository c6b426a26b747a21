"""From the numbers in decoded planes to red, green and blue.

Formulas and constants are ITU-T H.273's (08/2021, clause 8.3): E'Y = KR E'R + KG E'G + KB E'B,
E'PB = (E'B - E'Y) / (2 (1 - KB)), E'PR = (E'R - E'Y) / (2 (1 - KR)), quantised to limited or full range.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Colour:
    """What the numbers in the planes mean.

    matrix: "bt601", "bt709", "fcc", "smpte240m" or "bt2020" for luma and two colour differences, "rgb" for
    red, green and blue. full_range: luma from 0 to the largest value, not 16..235 of 255. depth: bits of a
    value. shift: bits by which the values lie too high in their uint16, 6 for 10 bits as NVDEC stores them.
    """

    matrix: str
    full_range: bool
    depth: int = 8
    shift: int = 0


LUMA_WEIGHTS = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "fcc": (0.30, 0.11),
    "smpte240m": (0.212, 0.087),
    "bt2020": (0.2627, 0.0593),
}
"""KR and KB of each matrix (H.273, table 4); bt2020 is the one of non-constant luminance."""

MATRICES = (*LUMA_WEIGHTS, "rgb")


@functools.lru_cache(maxsize=256)
def colour_matrix(colour: Colour) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix [3, 3] and bias [3]: RGB in 0..255 = matrix @ values + bias, before clamping. Read-only.

    The values are those of the three planes after `>> colour.shift`. Planes of "rgb" always use the full
    range, as FFmpeg takes them.

    Raises:
        ValueError: the matrix is unknown, or the depth is not within 8..16, or the shift leaves 16 bits.
    """
    if colour.matrix not in MATRICES:
        raise ValueError(f"colour matrix {colour.matrix!r} is not known; known are {', '.join(MATRICES)}")
    if not 8 <= colour.depth <= 16 or not 0 <= colour.shift <= 16 - colour.depth:
        raise ValueError(
            f"values of {colour.depth} bits shifted by {colour.shift}: depths of 8 to 16 bits that lie "
            f"within 16 bits can be converted"
        )
    peak, step = 2.0**colour.depth - 1, 2.0 ** (colour.depth - 8)
    if colour.matrix == "rgb":
        return _read_only(np.eye(3) * (255 / peak), np.zeros(3))
    red, blue = LUMA_WEIGHTS[colour.matrix]
    green = 1 - red - blue
    to_rgb = np.array(
        [
            [1, 0, 2 * (1 - red)],
            [1, -2 * (1 - blue) * blue / green, -2 * (1 - red) * red / green],
            [1, 2 * (1 - blue), 0],
        ]
    )
    if colour.full_range:
        scale, zero = np.full(3, 255 / peak), np.array([0, 128 * step, 128 * step])
    else:
        scale = np.array([255 / 219, 255 / 224, 255 / 224]) / step
        zero = np.array([16, 128, 128]) * step
    matrix = to_rgb * scale
    return _read_only(matrix, -matrix @ zero)


def _read_only(matrix: NDArray[np.float64], bias: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    matrix.setflags(write=False)  # they are shared through the cache
    bias.setflags(write=False)
    return matrix, bias
