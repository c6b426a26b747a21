"""A timeline as a picture: a ribbon of classes, the confidence below it, time in h:mm:ss, and a legend."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from surgrec.curation.readable import readable
from surgrec.evaluation.timeline_files import Timeline
from surgrec.loaders.whole_file import replacing

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

WIDTH: Final = 1800
LEFT: Final = 110
RIGHT: Final = 40
RIBBON: Final = (116, 206)
"""First and last line of the ribbon, pixels."""
CONFIDENCE: Final = (226, 346)
MOST_TICKS: Final = 12
STEPS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
"""Seconds between ticks of the axis."""
FIRST_COLOURS: Final[tuple[Colour, ...]] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)
"""Those of Okabe and Ito (Color Universal Design, 2008), which colour-blind people can tell apart."""
INK: Final = (30, 30, 30)
PALE: Final = (205, 205, 205)
GAP: Final = "cannot be read"
UNSEEN: Final = "no window there"


def colours(count: int) -> list[Colour]:
    """A colour for each class; beyond FIRST_COLOURS hues a golden angle apart, of two lightnesses in turn."""
    found = list(FIRST_COLOURS[:count])
    for number in range(len(found), count):
        lightness = 0.35 if number % 2 else 0.68
        parts = colorsys.hls_to_rgb(number * 0.381966 % 1, lightness, 0.65)
        found.append((round(255 * parts[0]), round(255 * parts[1]), round(255 * parts[2])))
    return found


def clock(seconds: float, step: float = 1.0) -> str:
    """`h:mm:ss`; with a tenth where steps are shorter than a second."""
    tenths = round(10 * seconds) if step < 1 else 10 * round(seconds)
    whole, rest = divmod(tenths, 10)
    text = f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{text}.{rest}" if step < 1 else text


def write_plot(path: Path, timeline: Timeline, title: str, subtitle: str) -> None:
    """Draws a timeline as PNG. Raises OSError."""
    picture = draw(timeline, title, subtitle)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def draw(timeline: Timeline, title: str, subtitle: str) -> Image.Image:
    """The picture, RGB, WIDTH wide."""
    palette = colours(len(timeline.classes))
    entries = _legend(timeline, palette)
    small, large = ImageFont.load_default(20), ImageFont.load_default(30)
    columns, height = _legend_shape(entries, small)
    picture = Image.new("RGB", (WIDTH, CONFIDENCE[1] + 84 + height), "white")
    canvas = ImageDraw.Draw(picture)
    canvas.text((LEFT, 22), _fitted(title, large), INK, large)
    canvas.text((LEFT, 68), _fitted(subtitle, small), INK, small)
    _ribbon(canvas, timeline, palette)
    _confidence(canvas, timeline, small)
    _axis(canvas, timeline.prediction.plan.seconds, small)
    for number, (text, colour) in enumerate(entries):
        x = LEFT + (number % columns) * ((WIDTH - LEFT - RIGHT) // columns)
        y = CONFIDENCE[1] + 66 + 34 * (number // columns)
        _box(canvas, (x, y, x + 24, y + 24), colour)
        canvas.text((x + 34, y), text, INK, small)
    return picture


def _x(timeline: Timeline, seconds: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * seconds / timeline.prediction.plan.seconds


def _ribbon(canvas: ImageDraw.ImageDraw, timeline: Timeline, palette: list[Colour]) -> None:
    top, bottom = RIBBON
    # Gaps last and at least two pixels wide, so that a short one is seen.
    for each in sorted(timeline.stretches, key=lambda stretch: stretch.label is None):
        low, high = _x(timeline, each.start), _x(timeline, each.end)
        if each.label is None:
            _box(canvas, (low, top, max(high, low + 2), bottom), None)
        else:
            canvas.rectangle((low, top, max(high, low + 1) - 1, bottom), palette[each.label])
    canvas.rectangle((LEFT, top, WIDTH - RIGHT - 1, bottom), outline=PALE)


def _confidence(canvas: ImageDraw.ImageDraw, timeline: Timeline, font: Font) -> None:
    """The probability of the class that is shown, as steps."""
    top, bottom = CONFIDENCE
    for share in (0.0, 0.5, 1.0):
        y = bottom - (bottom - top) * share
        canvas.line((LEFT, y, WIDTH - RIGHT, y), PALE)
        canvas.text((LEFT - 12, y), f"{100 * share:.0f} %", INK, font, anchor="rm")
    present = timeline.prediction.present
    before: tuple[float, float] | None = None
    for number, (low, high) in enumerate(timeline.cells.tolist()):
        if not present[number] or high <= low:
            before = None
            continue
        y = bottom - (bottom - top) * float(timeline.shares[number].max())
        x0, x1 = _x(timeline, low), _x(timeline, high)
        if before is not None and abs(before[0] - x0) < 0.5:
            canvas.line((x0, before[1], x0, y), INK, 2)
        canvas.line((x0, y, x1, y), INK, 2)
        before = x1, y
    for each in timeline.stretches:
        if each.label is None:
            low, high = _x(timeline, each.start), _x(timeline, each.end)
            _box(canvas, (low, top, max(high, low + 2), bottom), None)


def _axis(canvas: ImageDraw.ImageDraw, seconds: float, font: Font) -> None:
    step = next((step for step in STEPS if seconds / step <= MOST_TICKS), STEPS[-1] * np.ceil(seconds / 1e5))
    for tick in np.arange(0, seconds + 1e-9, step).tolist():
        x = LEFT + (WIDTH - LEFT - RIGHT) * tick / seconds
        canvas.line((x, CONFIDENCE[1], x, CONFIDENCE[1] + 8), INK)
        canvas.text((x, CONFIDENCE[1] + 16), clock(tick, step), INK, font, anchor="mt")


def _box(canvas: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: Colour | None) -> None:
    """Filled; hatched where there is no colour."""
    x0, y0, x1, y1 = (round(value) for value in box)
    canvas.rectangle((x0, y0, x1 - 1, y1), colour or "white")
    if colour is None:
        for x in range(x0, x1):
            for y in range(y0 + (x - y0) % 8, y1 + 1, 8):
                canvas.rectangle((x, y, x, min(y + 2, y1)), (90, 90, 90))


def _legend(timeline: Timeline, palette: list[Colour]) -> list[tuple[str, Colour | None]]:
    """Names with the time that each class is shown."""
    shown = dict.fromkeys(range(len(timeline.classes)), 0.0)
    gaps = 0.0
    for each in timeline.stretches:
        if each.label is None:
            gaps += each.end - each.start
        else:
            shown[each.label] += each.end - each.start
    found: list[tuple[str, Colour | None]] = [
        (f"{_short(timeline.classes[label])}  {clock(seconds)}", palette[label])
        for label, seconds in shown.items()
    ]
    unseen = timeline.prediction.plan.seconds - gaps - sum(shown.values())
    if gaps > 0:
        found.append((f"{GAP}  {clock(gaps)}", None))
    if unseen > 1:
        found.append((f"{UNSEEN}  {clock(unseen)}", (255, 255, 255)))
    return found


def _short(name: str) -> str:
    text = readable(name)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _legend_shape(entries: list[tuple[str, Colour | None]], font: Font) -> tuple[int, int]:
    """Columns, and height in pixels."""
    widest = max(font.getlength(text) for text, _ in entries) + 34 + 30
    columns = max(1, min(len(entries), int((WIDTH - LEFT - RIGHT) // widest)))
    return columns, 34 * -(-len(entries) // columns)


def _fitted(text: str, font: Font) -> str:
    shown = readable(text)
    while font.getlength(shown) > WIDTH - LEFT - RIGHT:
        shown = f"{shown[:-6]}…"
    return shown
