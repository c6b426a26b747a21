"""Burned-in text: dense thin strokes of high contrast, at the same place in all pictures, in lines of text.

A stroke is a run of a few pixels along a line that is lighter (or darker) than what lies on both sides of
it. Lettering is denser in strokes than nearly anything else, over several lines, and above and below it
they end; texture of the scene goes on in all directions, and moves.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from surgrec.curation.measures import luma_of

CONTRAST: Final = 40
"""Levels by which a stroke differs from both sides."""
WIDEST: Final = 9
"""Pixels of the widest stroke."""
CELL: Final = 8
"""Side in pixels of the cells that are lettering or not."""
REACH: Final = 16
"""Half the width in pixels of the stretch of a line in which strokes are counted."""
LINES: Final = 8
"""Lines in which they are counted."""
STROKES: Final = 48
"""Light and dark strokes in that stretch of those lines."""
TALLEST: Final = 48
"""Pixels from a cell of lettering to where, above it and below it, strokes end."""


def text_share(detail: NDArray[np.uint8], inside: NDArray[np.bool_]) -> float:
    """The share of the area covered by lettering, 0 to 1, in cells of 8 x 8 pixels.

    detail: RGB uint8 [T, h, w, 3], longest side 320 to 640; inside: bool [h, w]. It is sought in the largest
    of red, green and blue, where letters of any colour stand out from what is dark, and in luma. Letters of
    under 8 pixels there, of strokes wider than 9, of little contrast, and text that runs down are not found;
    and printed matter in a scene that stands still cannot be told from text that was burned in.
    """
    most = np.maximum(np.maximum(detail[..., 0], detail[..., 1]), detail[..., 2])
    return float(max(_text_share(most, inside), _text_share(luma_of(detail), inside)))


@njit(cache=True, nogil=True)
def _strokes(detail, sign):
    """bool [h, w]: where a stroke lighter (sign 1) or darker (-1) than both sides begins, in all pictures."""
    count, height, width = detail.shape
    found = np.zeros((height, width), np.bool_)
    for y in range(height):
        x = 2
        while x < width - 1:
            everywhere = True
            for picture in range(count):
                line = detail[picture, y]
                # A rise of two pixels at most, and a fall within the widest stroke.
                top = max(sign * np.int64(line[x]), sign * np.int64(line[x + 1]))
                if top - sign * np.int64(line[x - 2]) < CONTRAST:
                    everywhere = False
                    break
                falls = False
                for end in range(x + 1, min(width, x + WIDEST + 2)):
                    if top - sign * np.int64(line[end]) >= CONTRAST:
                        falls = True
                        break
                if not falls:
                    everywhere = False
                    break
            if everywhere:
                found[y, x] = True
                x += 3
            else:
                x += 1
    return found


@njit(cache=True, nogil=True)
def _ends(counts, y, by):
    """Whether, going from line y up (by -1) or down (1), strokes end within TALLEST lines."""
    few = 0
    dense = max(2, counts[y])
    for step in range(1, TALLEST + 1):
        at = y + by * step
        if at < 0 or at >= len(counts):
            return True
        few = few + 1 if 3 * counts[at] <= dense else 0
        if few == 2:
            return True
    return False


@njit(cache=True, nogil=True)
def _text_share(detail, inside):
    _, height, width = detail.shape
    rows, columns = height // CELL, width // CELL
    lettered = np.zeros((rows, columns), np.bool_)
    counts = np.zeros(height, np.int64)
    light, dark = _strokes(detail, 1), _strokes(detail, -1)
    for column in range(columns):
        middle = column * CELL + CELL // 2
        left, right = max(0, middle - REACH), min(width, middle + REACH)
        for y in range(height):
            counts[y] = 0
            for x in range(left, right):
                counts[y] += light[y, x] + dark[y, x]
        for top in range(0, height - LINES + 1, 2):
            number, lines, most = 0, 0, top
            for y in range(top, top + LINES):
                number += counts[y]
                lines += counts[y] >= 2
                if counts[y] > counts[most]:
                    most = y
            if number < STROKES or lines < LINES - 2:
                continue
            if not (_ends(counts, most, -1) and _ends(counts, most, 1)):
                continue
            lettered[min(rows - 1, (top + LINES // 2) // CELL), column] = True
    # A lone cell is no word: three in a line are.
    share, cells = 0, 0
    for row in range(rows):
        run = 0
        for column in range(columns + 1):
            known = column < columns and inside[row * CELL + CELL // 2, column * CELL + CELL // 2]
            cells += known
            if known and lettered[row, column]:
                run += 1
            else:
                if run >= 3:
                    share += run
                run = 0
    return share / cells if cells else 0.0
