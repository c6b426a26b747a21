"""Quality of segments: numbers first, flags second, by thresholds that are options.

All is measured inside the video's content area. The docstring of Quality says what each number is, and what
it cannot tell. A segment that cannot be decoded has NaN for every number, and a reason; it raises nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from surgrec.configs.curate import Flag, QualityThresholds
from surgrec.curation import measures
from surgrec.curation.content_area import ContentArea
from surgrec.curation.lettering import text_share
from surgrec.curation.pictures import NoPictures, PictureReader, Pictures
from surgrec.curation.seams import seam_support
from surgrec.loaders.engines.threads import WorkerThreads
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable

FLAGS: Final[tuple[Flag, ...]] = get_args(Flag)
BITS: Final[dict[str, int]] = {name: 1 << place for place, name in enumerate(FLAGS)}
"""Bit of each flag in the mask that `flags` gives."""

_INSET: Final = 0.015  # the rim of the content area is an edge that is not of the scene
_HUED: Final = 0.2  # fewer coloured pixels say nothing of what is seen

Column = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Quality:
    """Numbers of n segments, float32 [n] each; NaN where a segment gave no picture.

    Shares are of the pixels in the content area, 0 to 1; levels are of 0 to 255. Means over the pictures of
    the segment, unless it says otherwise.

    luma: mean level. black, dark, white: shares below 24, below 48, from 248 on.
    sharpness: 0 to 1, median over the pictures (measures.sharpness). Motion blur and defocus look alike; a
    picture without any edge is 0; lettering in a blurred picture is sharp, and so makes it.
    motion: levels, the largest between any picture and the next, and between first and last
    (measures.motion); 0 where there is one picture. What happens between the pictures is not seen: where
    there are one or two key frames, most of them lie within two seconds.
    comb: share, the largest of the pictures (measures.comb). Interlaced video of a still scene has none.
    colourfulness: measures.colour; 0 is grey. hued, warm: share that has a hue, and share of those with a hue
    from pink to yellow. Tissue is warm, drapes and walls mostly are not; skin and wood are warm, too, and a
    white room has no hue, so this finds only part of what is out of body, and nothing in grey video.
    texture: mean step between neighbouring pixels, levels. flat: share of windows without structure.
    split: 0 to 1, support of the best pane (seams.seam_support). A straight upright frame in a scene that
    stands still looks like one.
    text: share covered by lettering (lettering.text_share). A sign in a still scene looks like it.
    pictures: how many were looked at; 0 where there was none.
    """

    luma: Column
    black: Column
    dark: Column
    white: Column
    sharpness: Column
    motion: Column
    comb: Column
    colourfulness: Column
    hued: Column
    warm: Column
    texture: Column
    flat: Column
    split: Column
    text: Column
    pictures: Column

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of unequal length: {lengths}")

    def __len__(self) -> int:
        return len(self.luma)


NUMBERS: Final = tuple(field.name for field in fields(Quality))
"""Names of the numbers, in the order in which `measure` gives them."""


def measure(pictures: Pictures, area: ContentArea | None = None) -> NDArray[np.float32]:
    """float32 [len(NUMBERS)]: a segment's numbers from its pictures; no area stands for all of the picture.

    Raises ValueError where the area is of another picture size.
    """
    height, width = pictures.luma.shape[1:]
    if area is None:
        area = ContentArea(height, width)
    if (area.height, area.width) != (height, width):
        raise ValueError(
            f"the content area is one of pictures of {area.height} x {area.width}, not of {height} x {width}"
        )
    count = len(pictures.luma)
    whole = pictures.rgb
    small = whole.shape[1:3]
    inside = area.mask(small[0], small[1], _INSET)
    if not inside.any():
        inside = np.ones(small, bool)
    rows, columns = _extent(inside)
    inside = np.ascontiguousarray(inside[rows, columns])
    rgb = np.ascontiguousarray(whole[:, rows, columns])
    luma = measures.luma_of(rgb)

    light = np.array([measures.light(picture, inside) for picture in luma])
    sharp = [measures.sharpness(picture, inside) for picture in luma]
    pairs = {(k, k + 1) for k in range(count - 1)} | ({(0, count - 1)} if count > 2 else set())
    motion = max((measures.motion(luma[a], luma[b], inside) for a, b in sorted(pairs)), default=0.0)
    colour = np.array([measures.colour(picture, inside) for picture in rgb])

    # Large letters are of a letter's size in the smaller pictures.
    text = max(
        text_share(shown, area.mask(shown.shape[1], shown.shape[2], _INSET))
        for shown in (pictures.detail, whole)
    )
    top, bottom, left, right = _span(area, small, rows, columns)
    values = {
        "luma": light[:, 0].mean(),
        "black": light[:, 1].mean(),
        "dark": light[:, 2].mean(),
        "white": light[:, 3].mean(),
        "sharpness": np.median(sharp),
        "motion": motion,
        "comb": max(measures.comb(picture, (top, bottom), (left, right)) for picture in pictures.luma),
        "colourfulness": colour[:, 0].mean(),
        "hued": colour[:, 1].mean(),
        "warm": colour[:, 2].mean(),
        "texture": np.mean([measures.texture(picture, inside) for picture in luma]),
        "flat": np.mean([measures.flatness(picture, inside) for picture in luma]),
        "split": seam_support(_cut(pictures.detail, area)),
        "text": text,
        "pictures": count,
    }
    return np.array([values[name] for name in NUMBERS], np.float32)


def measure_segments(
    index: PacketIndex,
    segments: SegmentTable,
    areas: Mapping[int, ContentArea] | None = None,
    threads: int = 1,
) -> tuple[Quality, dict[int, NoPictures]]:
    """The numbers of each segment, and for those that gave no picture, by their number, the reason.

    areas: of videos, by their number (content_area.content_areas); of others, the whole picture counts. The
    result does not depend on `threads`.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}; at least 1 is needed")
    table = np.full((len(segments), len(NUMBERS)), np.nan, np.float32)
    missing: dict[int, NoPictures] = {}
    for number, found in enumerate(_measured(index, segments, areas, threads)):
        if isinstance(found, NoPictures):
            missing[number] = found
            table[number, NUMBERS.index("pictures")] = 0
        else:
            table[number] = found
    return Quality(*np.ascontiguousarray(table.T)), missing


def flags(quality: Quality, thresholds: QualityThresholds) -> NDArray[np.uint32]:
    """uint32 [n]: the bits BITS[name] of each flag that a segment has."""
    q, t = quality, thresholds
    seen = q.pictures > 0
    with np.errstate(invalid="ignore"):
        black = q.black >= t.black
        white = q.white >= t.white
        still = (q.motion < t.frozen) & (q.pictures > 1)
        # In a still picture all stays at its place, so that nothing tells an overlay from the scene.
        lettered = q.text >= t.text
        under = (q.dark >= t.underexposed) & ~black
        title = lettered & still & (q.flat >= t.title_flat)
        found = {
            "black": black & ~title,
            "white": white & ~title,
            "frozen": still,
            # What has no light has no edges; that is said already.
            "blurred": (q.sharpness < t.blurred) & ~black & ~white & ~under,
            "overexposed": (q.white >= t.overexposed) & ~white,
            "underexposed": under,
            "interlaced": q.comb >= t.interlaced,
            "split_screen": (q.split >= t.split_screen) & ~still,
            "text": lettered & (title | ~still),
            "title_card": title,
            "out_of_body": (q.hued >= _HUED) & (q.warm < t.out_of_body),
        }
    mask = np.where(seen, 0, BITS["undecodable"]).astype(np.uint32)
    for name, has in found.items():
        mask |= np.where(has & seen, BITS[name], 0).astype(np.uint32)
    return mask


def reasons(mask: NDArray[np.uint32]) -> list[str]:
    """The names of each segment's flags, joined by commas; empty where there is none."""
    return [",".join(name for name in FLAGS if value & BITS[name]) for value in mask.tolist()]


def weights(mask: NDArray[np.uint32], thresholds: QualityThresholds) -> NDArray[np.float32]:
    """float32 [n]: 0 for segments with a flag of thresholds.zero, else 1."""
    zero = sum(BITS[name] for name in set(thresholds.zero))
    return np.where(mask & np.uint32(zero), 0, 1).astype(np.float32)


class _Measurer:
    """What one thread keeps."""

    def __init__(
        self, index: PacketIndex, segments: SegmentTable, areas: Mapping[int, ContentArea] | None
    ) -> None:
        self._reader = PictureReader(index)
        self._segments = segments
        self._areas = areas or {}

    def run(self, number: int) -> NDArray[np.float32] | NoPictures:
        video = int(self._segments.video[number])
        found = self._reader.segment(
            video, int(self._segments.start[number]), int(self._segments.end[number])
        )
        if isinstance(found, NoPictures):
            return found
        area = self._areas.get(video)
        # A file whose pictures are not of the size that the index says has no area that holds for it.
        if area is not None and (area.height, area.width) != found.luma.shape[1:]:
            area = None
        return measure(found, area)

    def close(self) -> None:
        self._reader.close()


def _measured(
    index: PacketIndex, segments: SegmentTable, areas: Mapping[int, ContentArea] | None, threads: int
) -> Iterator[NDArray[np.float32] | NoPictures]:
    """For each segment in order."""
    if threads == 1:
        measurer = _Measurer(index, segments, areas)
        try:
            yield from map(measurer.run, range(len(segments)))
        finally:
            measurer.close()
        return
    pool: WorkerThreads[_Measurer, int, NDArray[np.float32] | NoPictures] = WorkerThreads(
        threads, "surgrec-quality", lambda: _Measurer(index, segments, areas), _Measurer.run
    )
    try:
        for future in [pool.submit(number) for number in range(len(segments))]:
            yield future.result()
    finally:
        pool.close()


def _cut(pictures: NDArray[np.uint8], area: ContentArea) -> NDArray[np.uint8]:
    """Pictures [T, h, w, 3] cut to the content area without its rim."""
    inside = area.mask(pictures.shape[1], pictures.shape[2], _INSET)
    if not inside.any():
        return pictures
    rows, columns = _extent(inside)
    return np.ascontiguousarray(pictures[:, rows, columns])


def _extent(inside: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and columns that hold all of a mask."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _span(
    area: ContentArea, small: tuple[int, int], rows: slice, columns: slice
) -> tuple[int, int, int, int]:
    """First and end row and column, in the picture, of what is looked at for combs.

    Of a circle the square within it: its rim would alternate.
    """
    if area.kind == "circle":
        half = area.radius * 0.7
        return (
            max(0, int(area.y - half)),
            min(area.height, int(area.y + half)),
            max(0, int(area.x - half)),
            min(area.width, int(area.x + half)),
        )
    down, across = area.height / small[0], area.width / small[1]
    return (
        int(np.ceil(rows.start * down)),
        int(rows.stop * down),
        int(np.ceil(columns.start * across)),
        int(columns.stop * across),
    )
