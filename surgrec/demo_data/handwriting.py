"""Handwritten digits that come inside packages: scikit-learn's, or OpenCV's where they are at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHEET = (1000, 2000)
"""Height and width of OpenCV's digits.png: 50 rows of 100 digits, five rows of each from 0 to 9."""
CELL = 20


class HandwritingError(ValueError):
    """A file of digits that cannot be used."""


@dataclass(frozen=True)
class Handwriting:
    """Samples of handwriting. images: uint8 [n, s, s], 255 is ink. labels: int64 [n], 0 to 9. source: where
    they come from, for people.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    source: str


def sklearn_digits() -> Handwriting:
    """The 1,797 digits of 8 x 8 inside scikit-learn (UCI "Optical Recognition of Handwritten Digits", test
    part, CC BY 4.0). Raises ModuleNotFoundError where it is not installed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    return Handwriting(
        images, found.target.astype(np.int64), "handwritten digits of 8 x 8 pixels in scikit-learn"
    )


def opencv_digits(path: Path) -> Handwriting:
    """The 5,000 digits of 20 x 20 in OpenCV's samples/data/digits.png.

    Debian's package opencv-doc has it at /usr/share/doc/opencv-doc/examples/data/digits.png. Raises
    FileNotFoundError, and HandwritingError where it is not that picture.
    """
    import cv2

    content = np.frombuffer(path.read_bytes(), np.uint8)
    sheet = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) if len(content) else None
    if sheet is None or sheet.shape != SHEET:
        size = "no picture" if sheet is None else f"a picture of {sheet.shape[1]} x {sheet.shape[0]}"
        raise HandwritingError(
            f"{path}: {size}, where OpenCV's digits.png is {SHEET[1]} x {SHEET[0]}; without --digits,"
            f" scikit-learn's digits are taken"
        )
    rows, columns = SHEET[0] // CELL, SHEET[1] // CELL
    images = sheet.reshape(rows, CELL, columns, CELL).swapaxes(1, 2).reshape(-1, CELL, CELL)
    labels = np.repeat(np.arange(10), rows // 10 * columns)
    return Handwriting(
        np.ascontiguousarray(images),
        labels.astype(np.int64),
        "handwritten digits of 20 x 20 pixels in OpenCV's digits.png",
    )
