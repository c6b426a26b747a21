"""Split screen and picture-in-picture: a pane whose straight edges stay at one place in all pictures.

A seam between two contents is, in most lines that cross it, by far the largest step within a few pixels, in
every picture, at exactly one column. Edges of things in the scene lean, bend or move. The panes that are
tried are all rectangles between candidate columns and rows; a side that is the picture's own edge needs no
seam:

    +------+------+   one seam: split screen     +-----------+
    |      |      |                              |    +------+   two: picture-in-picture in a corner
    +------+------+                              +----+------+
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

REACH: Final = 8
"""Pixels on each side within which a seam's step must be the largest."""
STEP: Final = 8
"""Levels of a step, at least, in one of red, green and blue."""
MOVES: Final = 3
"""Levels that pixels beside a line change by from picture to picture, on average, where something moves."""
STILL: Final = 0.3
"""What a line is worth where nothing does."""
CANDIDATES: Final = 12
"""Columns, and rows, between which panes are tried."""
LEAST_SIDE: Final = 0.2
"""Shortest side of a pane, as a share of the picture's."""


def seam_support(detail: NDArray[np.uint8]) -> float:
    """How well the best pane is supported, 0 to 1: the share of the lines across its sides with a step there.

    detail: RGB uint8 [T, h, w, 3], longest side about 640, cut to the content area. The value is the mean of
    that share over all sides and that of the weakest one. A step counts by the share of pictures that have
    it, and in full where something moves beside it: an edge of a scene that stands still is weak
    evidence. Texture without any pane gives 0.3 to 0.5. Panes of like content, those with
    soft, rounded or leaning edges, and those of under a fifth of the picture's height or width are not found.
    """
    _, height, width, _ = detail.shape
    if min(height, width) < 6 * REACH:
        return 0.0
    upright, moves_across = _steps(detail)
    level, moves_along = _steps(np.ascontiguousarray(detail.transpose(0, 2, 1, 3)))
    upright, level = _either(upright), _either(level)
    columns = _candidates(upright * moves_across, int(LEAST_SIDE * height))
    rows = _candidates(level * moves_along, int(LEAST_SIDE * width))
    across = _sums(upright * moves_across), _sums(moves_across)
    along = _sums(level * moves_along), _sums(moves_along)
    return float(_best_pane(across[0], across[1], along[0], along[1], columns, rows))


def _either(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """The larger of each column's and its neighbours' steps: a seam may fall between two pixels."""
    wide = steps.copy()
    wide[:, 1:] = np.maximum(wide[:, 1:], steps[:, :-1])
    wide[:, :-1] = np.maximum(wide[:, :-1], steps[:, 1:])
    return wide


def _sums(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [h + 1, w]: sums of the lines above each."""
    return np.pad(np.cumsum(steps, 0, dtype=np.float32), ((1, 0), (0, 0)))


@njit(cache=True, nogil=True)
def _steps(detail):
    """float32 [h, w]: the share of pictures in which column x's step to x + 1 stands out from those around.

    And float32 [h, w]: how much the line is worth there, 1 where it moves, else STILL.
    """
    count, height, width, _ = detail.shape
    found = np.zeros((height, width), np.float32)
    worth = np.full((height, width), np.float32(STILL))
    steps = np.empty(width, np.int64)
    change = np.empty(width + 1, np.int64)
    change[0] = 0
    for y in range(height):
        for picture in range(1, count):
            for x in range(width):
                moved = abs(np.int64(detail[picture, y, x, 1]) - np.int64(detail[picture - 1, y, x, 1]))
                change[x + 1] = change[x] + moved
            for x in range(REACH, width - REACH - 1):
                if change[x + REACH + 1] - change[x - REACH + 1] >= 2 * REACH * MOVES:
                    worth[y, x] = 1
        for picture in range(count):
            for x in range(width - 1):
                steps[x] = 0
                for channel in range(3):
                    here = np.int64(detail[picture, y, x, channel])
                    steps[x] = max(steps[x], abs(np.int64(detail[picture, y, x + 1, channel]) - here))
            for x in range(REACH, width - REACH - 1):
                here = steps[x]
                if here < STEP:
                    continue
                stands_out = True
                for near in range(x - REACH, x + REACH + 1):
                    # The step may be spread over two pixels.
                    if steps[near] > here or (abs(near - x) > 1 and 10 * steps[near] > 9 * here):
                        stands_out = False
                        break
                if stands_out:
                    found[y, x] += np.float32(1.0 / count)
    return found, worth


def _candidates(steps: NDArray[np.float32], least: int) -> NDArray[np.int64]:
    """The columns whose best run of `least` lines has most steps, and -1 and w for the picture's edges."""
    total = _sums(steps)
    best = (total[least:] - total[:-least]).max(0)
    order = np.argsort(best, kind="stable")[::-1]
    chosen: list[int] = []
    for column in order.tolist():
        if all(abs(column - other) > 2 for other in chosen):
            chosen.append(column)
        if len(chosen) == CANDIDATES:
            break
    return np.array([-1, *sorted(chosen), steps.shape[1] - 1], np.int64)


@njit(cache=True, nogil=True)
def _support(steps, worth, line, start, end):
    """Of the lines (start, end] the share that has a step at column `line`, by worth."""
    total = worth[end + 1, line] - worth[start + 1, line]
    # Few lines of worth are no evidence of a whole side.
    return (steps[end + 1, line] - steps[start + 1, line]) / max(total, 0.4 * (end - start))


@njit(cache=True, nogil=True)
def _best_pane(upright, upright_worth, level, level_worth, columns, rows):
    """The support of the best rectangle between columns and rows, from sums of steps and of their worth."""
    height, width = upright.shape[0] - 1, level.shape[0] - 1
    best = 0.0
    for a in range(len(columns) - 1):
        for b in range(a + 1, len(columns)):
            left, right = columns[a], columns[b]
            if right - left < LEAST_SIDE * width:
                continue
            for c in range(len(rows) - 1):
                for d in range(c + 1, len(rows)):
                    top, bottom = rows[c], rows[d]
                    if bottom - top < LEAST_SIDE * height:
                        continue
                    weakest, total, length = 1.0, 0.0, 0
                    for side in (left, right):
                        if 0 <= side < width - 1:
                            share = _support(upright, upright_worth, side, top, bottom)
                            weakest = min(weakest, share)
                            total += share * (bottom - top)
                            length += bottom - top
                    for side in (top, bottom):
                        if 0 <= side < height - 1:
                            share = _support(level, level_worth, side, left, right)
                            weakest = min(weakest, share)
                            total += share * (right - left)
                            length += right - left
                    if length:
                        best = max(best, (weakest + total / length) / 2)
    return best
