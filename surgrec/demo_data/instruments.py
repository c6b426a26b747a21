"""Instruments: a shaft from outside the picture and a working end, with a shadow on what lies below."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from surgrec.demo_data.motion import Floats, SmoothPath, presence, smooth_path
from surgrec.demo_data.texture import Picture

SHIFT = 3  # cv2 draws with 2**-SHIFT pixels


@dataclass(frozen=True)
class Tool:
    """The look of an instrument. Lengths and widths in picture heights."""

    end: str
    """Shape of the working end: jaws, scissors, hook, tube, blade, loop or needle."""
    width: float
    shaft: tuple[int, int, int]
    tip: tuple[int, int, int]
    length: float
    """Of the working end."""
    wrist: float = 0.0
    """Length of a bending wrist; 0 for none."""


STEEL, BLACK, BLUE = (176, 180, 186), (44, 44, 50), (70, 120, 190)
TOOLS: dict[str, Tool] = {
    "grasper": Tool("jaws", 0.075, BLACK, STEEL, 0.16),
    "scissors": Tool("scissors", 0.070, BLACK, STEEL, 0.14),
    "hook": Tool("hook", 0.055, BLACK, (200, 196, 186), 0.12),
    "clipper": Tool("jaws", 0.095, STEEL, (150, 154, 160), 0.13),
    "suction": Tool("tube", 0.060, STEEL, STEEL, 0.10),
    "needle driver": Tool("jaws", 0.085, (96, 96, 104), STEEL, 0.11, wrist=0.10),
    "bipolar": Tool("jaws", 0.085, (96, 96, 104), (206, 200, 190), 0.14, wrist=0.10),
    "snare": Tool("loop", 0.060, (216, 218, 214), STEEL, 0.20),
    "biopsy forceps": Tool("jaws", 0.055, (120, 180, 120), STEEL, 0.07),
    "keratome": Tool("blade", 0.045, STEEL, (220, 222, 226), 0.16),
    "micro forceps": Tool("jaws", 0.030, (186, 182, 172), STEEL, 0.16),
    "phaco": Tool("needle", 0.080, BLUE, STEEL, 0.12),
    "spatula": Tool("needle", 0.030, STEEL, STEEL, 0.14),
    "injector": Tool("tube", 0.075, (150, 190, 214), (214, 226, 232), 0.14),
}


@dataclass(frozen=True)
class Use:
    """An instrument in use for a while: where it comes from, where its tip goes, when."""

    tool: Tool
    port: Floats
    """[2], pixels, outside the picture."""
    path: SmoothPath
    """Of the tip: [x, y] in pixels, and the opening of its jaws, 0..1."""
    start: float
    end: float

    def tip_at(self, seconds: float) -> tuple[Floats, float] | None:
        """Tip in pixels [2] and opening, or None while the instrument is out of the picture."""
        inside = presence(seconds, self.start, self.end, 1.2)
        if inside <= 0:
            return None
        x, y, opening = self.path.at(seconds)
        return self.port + inside * (np.array([x, y]) - self.port), float(np.clip(opening, 0, 1))


def use(
    rng: np.random.Generator, name: str, side: float, height: int, width: int, start: float, end: float
) -> Use:
    """A use of the named tool; `side` is the direction of its port in turns (0 right, 0.25 below)."""
    angle = 2 * np.pi * (side + float(rng.uniform(-0.03, 0.03)))
    port = np.array([width / 2 + 0.85 * width * np.cos(angle), height / 2 + 0.95 * height * np.sin(angle)])
    aim = 0.16
    centre = (width * (0.5 + aim * np.cos(angle)), height * (0.5 + aim * np.sin(angle)), 0.45)
    path = smooth_path(rng, centre, (0.20 * width, 0.20 * height, 0.7), periods=(1.4, 6.5))
    return Use(TOOLS[name], port, path, start, end)


def draw(frame: Picture, uses: list[Use], seconds: float) -> list[tuple[Use, Floats, float]]:
    """Draw all that is in the picture, in place; returns (use, tip in pixels, opening) of each."""
    height = frame.shape[0]
    present = []
    for each in uses:
        placed = each.tip_at(seconds)
        if placed is not None:
            present.append((each, *placed))
    if present:
        _shadow(frame, present)
    for each, tip, opening in present:
        _draw_tool(frame, each.tool, each.port, tip, opening, height)
    return present


def _polygon(frame: Picture, points: np.ndarray, colour: tuple[int, ...]) -> None:
    cv2.fillConvexPoly(frame, np.round(points * 2**SHIFT).astype(np.int32), colour, cv2.LINE_AA, SHIFT)


def _line(frame: Picture, points: np.ndarray, colour: tuple[int, ...], thickness: float) -> None:
    fixed = np.round(points * 2**SHIFT).astype(np.int32)
    cv2.polylines(frame, [fixed], False, colour, max(1, round(thickness)), cv2.LINE_AA, SHIFT)


def _shadow(frame: Picture, present: list[tuple[Use, Floats, float]]) -> None:
    height, width = frame.shape[:2]
    quarter = np.zeros((height // 4, width // 4), np.uint8)
    for each, tip, _ in present:
        offset = np.array([0.035, 0.055]) * height
        line = np.stack([each.port + offset, tip + offset]) / 4
        _line(quarter, line, (150,), each.tool.width * height / 4)
    dark = cv2.resize(cv2.blur(quarter, (3, 3)), (width, height))
    cv2.multiply(frame, cv2.merge([255 - dark] * 3), frame, scale=1 / 255)


def _bar(
    frame: Picture, start: Floats, end: Floats, width: float, colour: tuple[int, int, int], taper: float = 1.0
) -> None:
    """A round bar: strips side by side, lit like a cylinder. `taper` scales the width at the end."""
    along = end - start
    norm = float(np.hypot(*along))
    if norm < 1e-6:
        return
    across = np.array([-along[1], along[0]]) / norm * width / 2
    strips = 7
    for k in range(strips):
        a, b = 2 * k / strips - 1, 2 * (k + 1) / strips - 1
        middle = (a + b) / 2
        light = (
            0.45
            + 0.75 * max(0.0, 1 - (middle + 0.3) ** 2 * 1.1)
            + 0.5 * np.exp(-((middle + 0.35) ** 2) / 0.02)
        )
        shade = tuple(int(min(255, c * light)) for c in colour)
        _polygon(
            frame,
            np.stack(
                [start + a * across, start + b * across, end + b * taper * across, end + a * taper * across]
            ),
            shade,
        )


def _draw_tool(frame: Picture, tool: Tool, port: Floats, tip: Floats, opening: float, height: int) -> None:
    along = tip - port
    direction = along / max(float(np.hypot(*along)), 1e-6)
    width, length = tool.width * height, tool.length * height
    hinge = tip - direction * length
    bend = 0.0
    if tool.wrist:
        # The wrist turns the working end away from the shaft's line.
        bend = (opening - 0.5) * 1.3
        joint = hinge - direction * tool.wrist * height
        _bar(frame, port, joint, width, tool.shaft)
        _bar(frame, joint, hinge, width * 0.8, tool.tip)
        cv2.circle(frame, _pixel(joint), max(2, round(width * 0.42)), (70, 70, 76), -1, cv2.LINE_AA)
    else:
        _bar(frame, port, hinge, width, tool.shaft)
    direction = _turned(direction, bend)
    across = np.array([-direction[1], direction[0]])
    end = hinge + direction * length
    if tool.end in ("jaws", "scissors"):
        spread = (0.5 if tool.end == "jaws" else 0.75) * opening + 0.04
        for sign in (-1, 1):
            jaw = _turned(direction, sign * spread)
            thick = width * (0.5 if tool.end == "jaws" else 0.34)
            _bar(frame, hinge, hinge + jaw * length, thick, tool.tip, taper=0.45)
        cv2.circle(frame, _pixel(hinge), max(2, round(width * 0.36)), (104, 106, 112), -1, cv2.LINE_AA)
    elif tool.end == "hook":
        _bar(frame, hinge, end, width * 0.3, tool.tip)
        _bar(frame, end, end + across * length * 0.42, width * 0.26, tool.tip, taper=0.7)
    elif tool.end == "loop":
        turn = float(np.degrees(np.arctan2(direction[1], direction[0])))
        axes = (max(2, round(length / 2)), max(1, round(length * (0.08 + 0.3 * opening))))
        cv2.ellipse(
            frame, _pixel(hinge + direction * length / 2), axes, turn, 0, 360, tool.tip, 2, cv2.LINE_AA
        )
    elif tool.end == "blade":
        points = np.stack([hinge + across * width * 0.6, end, hinge - across * width * 0.6])
        _polygon(frame, points, tool.tip)
        _line(frame, np.stack([hinge, end]), (150, 152, 158), 1)
    elif tool.end == "needle":
        _bar(frame, hinge, end, width * 0.34, tool.tip, taper=0.8)
    else:
        _bar(frame, hinge, end, width * 0.8, tool.tip)
        cv2.circle(frame, _pixel(end), max(1, round(width * 0.26)), (24, 18, 18), -1, cv2.LINE_AA)


def _turned(vector: Floats, angle: float) -> Floats:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([c * vector[0] - s * vector[1], s * vector[0] + c * vector[1]])


def _pixel(point: Floats) -> tuple[int, int]:
    return int(point[0] + 0.5), int(point[1] + 0.5)
