"""From which number on a segment of video is called black, frozen, blurred ..., and which of these count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Flag = Literal[
    "black",
    "white",
    "frozen",
    "blurred",
    "overexposed",
    "underexposed",
    "interlaced",
    "split_screen",
    "text",
    "title_card",
    "out_of_body",
    "undecodable",
]


@dataclass(frozen=True)
class QualityThresholds:
    """When a segment is flagged, and which flags take it out of training. Nothing is deleted."""

    black: float = 0.97
    """Black: at least this share of the pixels is darker than 24 of 255."""
    white: float = 0.9
    """White: at least this share of the pixels is lighter than 247 of 255."""
    overexposed: float = 0.2
    """Overexposed: at least this share of the pixels is lighter than 247, and the segment is not white."""
    underexposed: float = 0.9
    """Underexposed: at least this share of the pixels is darker than 48, and the segment is not black."""
    frozen: float = 1.5
    """Frozen: the most changed tenth of the picture changes by less than this many levels of 255."""
    blurred: float = 0.25
    """Blurred: the steepest edges take less than this share of their contrast from pixel to pixel."""
    interlaced: float = 0.05
    """Interlaced: at least this share of the pixels is combed in one of the pictures."""
    split_screen: float = 0.52
    """Split screen, picture-in-picture: at least this share of the sides of a pane is a seam. Still
    segments are not judged."""
    text: float = 0.0013
    """Burned-in text: at least this share of the picture is lettering. Still segments are
    not judged, but for title cards."""
    title_flat: float = 0.5
    """Title card: text, nothing that moves, and at least this share of the picture without structure."""
    out_of_body: float = 0.1
    """Out of body: a fifth of the pixels or more has a hue, and less than this share of them a warm one. 0
    flags none."""
    zero: tuple[Flag, ...] = (
        "black",
        "white",
        "frozen",
        "blurred",
        "overexposed",
        "underexposed",
        "split_screen",
        "title_card",
        "undecodable",
    )
    """Flags that give a segment weight zero. Interlacing and a line of text leave a segment of use, and out
    of body is a guess by hue that does not hold for all domains: name them here to leave those out, too."""
