"""The content area of a video: the circle or rectangle inside the black surround.

A pixel belongs to the content where, in the brightest of several pictures, it is lighter than the surround.
Thin things (patient data, frame marks) are taken out of that mask by an opening, holes (a dark lumen) are
filled, and to the edge of what remains a circle (by consensus of random triples of points, then least
squares) and a rectangle are fitted; the better of the two is taken. Edges are sought line by line, so that
the circle's centre and radius come out to a fraction of a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from surgrec.curation.pictures import NoPictures, PictureReader
from surgrec.loaders.packet_index import ERROR, REMOVED, PacketIndex
from surgrec.loaders.segments import SegmentTable

FULL_SHARE: Final = 0.975
"""A content area that takes this share of the picture is the whole picture."""
LEAST_SHARE: Final = 0.05
"""A smaller bright spot is no content area: nothing is known then."""
LOOKED_AT: Final = 8
"""Segments of a video whose pictures are looked at, at most."""

_BLACKEST: Final = 32  # a surround is darker than this
_LIGHTER: Final = 10  # levels by which content is lighter than the surround
_THIN: Final = 0.03  # of the shorter side: what is thinner is taken for text
_TRIPLES: Final = 400
_NEAR: Final = 0.004  # of the shorter side: points this near to a circle lie on it
_GOOD_FIT: Final = 0.9

Kind = Literal["full", "circle", "rectangle"]
Crop = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class ContentArea:
    """Where the content of a video is, in stored pixels of the upright picture of `height` x `width`.

    kind: `full` where there is no surround, or none was found. x, y, radius: centre and radius of a circle,
    from the picture's upper left corner, so that the centre of its first pixel is (0.5, 0.5); 0 for other
    kinds. crop: top, left, height, width as ClipSource takes them; all 0 for `full`. The crop of a circle is
    its bounding rectangle clipped to the picture: all content is in it, and so is some black in the corners;
    the square within the circle would have none, but would throw away a third of the content.
    """

    height: int
    width: int
    kind: Kind = "full"
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0
    crop: Crop = (0, 0, 0, 0)

    def rectangle(self) -> Crop:
        """Top, left, height, width of what holds the content: `crop`, or the whole picture."""
        return self.crop if self.crop[2] else (0, 0, self.height, self.width)

    def mask(self, height: int, width: int, inset: float = 0.0) -> NDArray[np.bool_]:
        """bool [height, width]: which pixels of the picture, at another size, lie inside.

        inset: how far from the edge of the content they must lie, as a share of the picture's shorter side;
        where the picture itself is the edge, that is not needed.
        """
        rows = ((np.arange(height) + 0.5) * self.height / height)[:, None]
        columns = ((np.arange(width) + 0.5) * self.width / width)[None, :]
        margin = inset * min(self.height, self.width)
        if self.kind == "circle":
            return (columns - self.x) ** 2 + (rows - self.y) ** 2 <= max(self.radius - margin, 0.0) ** 2
        top, left, tall, wide = self.rectangle()
        inside: list[NDArray[np.bool_]] = []
        for at, low, size, whole in ((rows, top, tall, self.height), (columns, left, wide, self.width)):
            lower = low + margin if low else 0.0
            upper = low + size - margin if low + size < whole else float(whole)
            inside.append((at >= lower) & (at <= upper))
        return inside[0] & inside[1]


def iou(one: ContentArea, other: ContentArea) -> float:
    """Intersection over union of two areas of pictures of one size, counted in pixels.

    Raises ValueError where the sizes differ.
    """
    if (one.height, one.width) != (other.height, other.width):
        raise ValueError(
            f"areas of pictures of {one.height} x {one.width} and of {other.height} x {other.width}"
            " do not compare"
        )
    a, b = one.mask(one.height, one.width), other.mask(one.height, one.width)
    return float((a & b).sum() / max(1, (a | b).sum()))


def find_area(luma: NDArray[np.uint8], seed: int = 0) -> ContentArea:
    """The content area of a video from some of its pictures, uint8 [T, H, W], 0 black to 255 white.

    More pictures, and unlike ones, help: what is dark in all of them cannot be told from the surround.
    Octagons are given as the better of circle and rectangle, other shapes (the fan of an ultrasound picture)
    as the rectangle around them. Where nothing but black is seen, the area is `full`. The same pictures give
    the same area. ValueError for arrays of another shape.
    """
    if luma.ndim != 3 or not luma.size:
        raise ValueError(f"pictures of shape {luma.shape}; T x H x W is needed, with at least one pixel")
    height, width = luma.shape[1:]
    full = ContentArea(height, width)
    bright = luma.max(axis=0)
    content = _content_mask(bright)
    share = content.mean()
    if share < LEAST_SHARE or share > FULL_SHARE:
        return full
    rectangle = _rectangle(content, 0.5)
    circle = _circle(content, seed)
    fits = [(_fit(area, content), area) for area in (rectangle, circle) if area is not None]
    best, area = max(fits, key=lambda fit: fit[0])
    if best < _GOOD_FIT:
        # Dark content eats into the mask: a circle through most of its edge and around it still stands. Of
        # other shapes, a fan say, nothing is cut off.
        holds = circle is not None and (circle.mask(height, width) & content).sum() > 0.98 * content.sum()
        stands = circle is not None and holds and _arc(circle, content) > 0.5
        area = circle if circle is not None and stands else _rectangle(content, 0.02)
    inside = area.mask(height, width).mean()
    return full if inside > FULL_SHARE else area


def content_areas(
    index: PacketIndex, segments: SegmentTable, videos: list[int] | None = None
) -> tuple[dict[int, ContentArea], list[NoPictures]]:
    """The content area of each video of the index, or of `videos`, by number; and what could not be seen.

    A video without segments, or whose segments cannot be decoded, has the area `full`.
    """
    areas: dict[int, ContentArea] = {}
    missing: list[NoPictures] = []
    reader = PictureReader(index)
    try:
        for video in range(len(index)) if videos is None else videos:
            area, failed = _area_of_video(reader, segments, video)
            areas[video] = area
            missing += failed
    finally:
        reader.close()
    return areas, missing


def _area_of_video(
    reader: PictureReader, segments: SegmentTable, video: int
) -> tuple[ContentArea, list[NoPictures]]:
    table = reader.index.videos
    size = int(table.height[video]), int(table.width[video])
    if int(table.rotation[video]) % 180:
        size = size[::-1]
    missing: list[NoPictures] = []
    bright: list[NDArray[np.uint8]] = []
    rows = np.flatnonzero(segments.video == video)
    if table.status[video] in (ERROR, REMOVED):
        return ContentArea(*size), [NoPictures(table.path[video], table.reason[video])]
    if len(rows) > LOOKED_AT:
        rows = rows[(np.arange(LOOKED_AT) * len(rows) + len(rows) // 2) // LOOKED_AT]
    for row in rows.tolist():
        found = reader.segment(video, int(segments.start[row]), int(segments.end[row]))
        if isinstance(found, NoPictures):
            missing.append(found)
        elif found.luma.shape[1:] == size:
            bright.append(found.luma.max(axis=0))
    return (find_area(np.stack(bright)) if bright else ContentArea(*size)), missing


def _content_mask(bright: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """bool [H, W]: lighter than the surround, without thin things, holes filled."""
    height, width = bright.shape
    edges = (bright[0], bright[-1], bright[:, 0], bright[:, -1])
    surround = min(float(np.median(edge)) for edge in edges)
    if surround > _BLACKEST:
        return np.ones(bright.shape, bool)
    light = bright > surround + _LIGHTER
    thin = max(3, round(_THIN * min(height, width))) | 1
    # An opening that forgives dark specks: nine tenths of the square must be light.
    kept = _box(_box(light, thin) >= 0.9 * thin * thin, thin) > 0
    rows, columns = kept & light, kept & light
    rows = np.maximum.accumulate(rows, 1) & np.maximum.accumulate(rows[:, ::-1], 1)[:, ::-1]
    columns = np.maximum.accumulate(columns, 0) & np.maximum.accumulate(columns[::-1], 0)[::-1]
    return rows & columns


def _box(mask: NDArray[np.bool_], size: int) -> NDArray[np.int32]:
    """int32 [H, W]: how many of the size x size pixels around each are set; edges go on outside."""
    half = size // 2
    total = np.pad(mask, half, mode="edge").astype(np.int32)
    for axis in (0, 1):
        total = np.cumsum(total, axis)
        ends = np.take(total, np.arange(size - 1, total.shape[axis]), axis)
        ends[(slice(1, None),) if axis == 0 else (slice(None), slice(1, None))] -= np.take(
            total, np.arange(total.shape[axis] - size), axis
        )
        total = ends
    return total


def _fit(area: ContentArea, content: NDArray[np.bool_]) -> float:
    mask = area.mask(area.height, area.width)
    return float((mask & content).sum() / max(1, (mask | content).sum()))


def _rectangle(content: NDArray[np.bool_], share: float) -> ContentArea:
    """The extent of the content: lines that have at least `share` of the content that full ones have."""
    spans = []
    for axis in (1, 0):
        filled = content.sum(axis)
        lines = np.flatnonzero(filled >= share * np.percentile(filled[filled > 0], 75))
        spans.append((int(lines[0]), int(lines[-1] - lines[0] + 1)))
    (top, tall), (left, wide) = spans
    height, width = content.shape
    return ContentArea(height, width, "rectangle", crop=(top, left, tall, wide))


def _edge_points(content: NDArray[np.bool_]) -> NDArray[np.float64]:
    """float64 [n, 2]: x, y of the content's edge, where it is not the edge of the picture."""
    height, width = content.shape
    points = []
    rows = np.flatnonzero(content.any(1))
    first, last = content.argmax(1)[rows], width - content[:, ::-1].argmax(1)[rows]
    points += [np.stack([at, rows + 0.5], 1)[(at > 1) & (at < width - 1)] for at in (first, last)]
    columns = np.flatnonzero(content.any(0))
    upper, lower = content.argmax(0)[columns], height - content[::-1].argmax(0)[columns]
    points += [np.stack([columns + 0.5, at], 1)[(at > 1) & (at < height - 1)] for at in (upper, lower)]
    return np.concatenate(points).astype(np.float64)


def _circle(content: NDArray[np.bool_], seed: int) -> ContentArea | None:
    """The circle through most points of the edge; None where there is none of a sensible size."""
    height, width = content.shape
    points = _edge_points(content)
    near = max(1.0, _NEAR * min(height, width))
    if len(points) < 16:
        return None
    triples = points[np.random.default_rng(seed).integers(0, len(points), (_TRIPLES, 3))]
    found = _through(triples)
    least, most = 0.2 * min(height, width), 1.5 * max(height, width)
    sound = np.isfinite(found).all(1) & (found[:, 2] > least) & (found[:, 2] < most)
    if not sound.any():
        return None
    found = found[sound]
    far = np.abs(np.hypot(*(points[None] - found[:, None, :2]).transpose(2, 0, 1)) - found[:, 2:])
    best = found[(far < near).sum(1).argmax()]
    for _ in range(5):
        on = np.abs(np.hypot(*(points - best[:2]).T) - best[2]) < near
        if on.sum() < 8:
            return None
        x, y = points[on].T
        # Kasa's least squares: x^2 + y^2 = 2 a x + 2 b y + c.
        (a, b, c), *_ = np.linalg.lstsq(np.stack([2 * x, 2 * y, np.ones_like(x)], 1), x * x + y * y, None)
        best = np.array([a, b, np.sqrt(max(c + a * a + b * b, 0.0))])
    x, y, radius = (float(value) for value in best)
    top, left = max(0, int(np.floor(y - radius))), max(0, int(np.floor(x - radius)))
    bottom, right = min(height, int(np.ceil(y + radius))), min(width, int(np.ceil(x + radius)))
    if bottom <= top or right <= left:
        return None
    return ContentArea(height, width, "circle", x, y, radius, (top, left, bottom - top, right - left))


def _through(triples: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [n, 3]: x, y, radius of circles through three points each, [n, 3, 2]; not finite for lines."""
    a, b, c = triples.transpose(1, 0, 2)
    ab, ac = b - a, c - a
    with np.errstate(divide="ignore", invalid="ignore"):
        twice = 2 * (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0])
        bb, cc = (ab**2).sum(1), (ac**2).sum(1)
        x = (ac[:, 1] * bb - ab[:, 1] * cc) / twice
        y = (ab[:, 0] * cc - ac[:, 0] * bb) / twice
        return np.stack([a[:, 0] + x, a[:, 1] + y, np.hypot(x, y)], 1)


def _arc(circle: ContentArea, content: NDArray[np.bool_]) -> float:
    """The share of the content's edge points that lie on the circle."""
    points = _edge_points(content)
    near = max(1.0, _NEAR * min(content.shape))
    far = np.abs(np.hypot(points[:, 0] - circle.x, points[:, 1] - circle.y) - circle.radius)
    return float((far < near).mean()) if len(points) else 0.0
