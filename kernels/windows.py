"""Windows of clips' pictures, as a crop wants them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Windows = tuple[NDArray, NDArray, NDArray, NDArray, NDArray]
"""Top, left, height, width and flip of B windows, each [B], in stored pixels of the upright picture."""


def check_windows(windows: Windows, pictures: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """int64 [B, 5]: the windows, of which it is sure that they lie within their pictures.

    pictures: height and width of each upright picture.

    Raises:
        ValueError: a window is empty or leaves its picture.
    """
    boxes = np.stack(windows, axis=1).astype(np.int64)
    first, extent = boxes[:, :2], boxes[:, 2:4]
    bad = ((first < 0) | (extent < 1) | (first + extent > np.array(pictures))).any(1)
    if bad.any():
        b = int(bad.argmax())
        top, left, height, width = boxes[b, :4]
        raise ValueError(
            f"window of clip {b}, rows {top}..{top + height} and columns {left}..{left + width}, is not "
            f"within its picture of {pictures[b][0]} x {pictures[b][1]}"
        )
    return boxes
