"""What processes do for stage `embed` where no network is asked for: the descriptors of a video's segments.

A module of its own, for each of these processes imports it, and none needs torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgrec.curation.descriptor import DIMENSIONS, describe
from surgrec.curation.pictures import NoPictures, PictureReader
from surgrec.curation.quality_stage import Bounds
from surgrec.curation.records import Arrays
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.packet_index import PacketIndex


def within(pictures: NDArray[np.uint8], size: tuple[int, int], crop: list[int]) -> NDArray[np.uint8]:
    """Pictures [T, h, w, 3] cut to a crop (top, left, height, width) of pictures of another size (height,
    width); whole where it is all 0."""
    top, left, height, width = crop
    if height == 0:
        return pictures
    down, along = pictures.shape[1] / size[0], pictures.shape[2] / size[1]
    first, last = round(top * down), max(round(top * down) + 1, round((top + height) * down))
    begin, end = round(left * along), max(round(left * along) + 1, round((left + width) * along))
    return pictures[:, first:last, begin:end]


def describe_video(index: PacketIndex, video: int, about: tuple[Bounds, list[int]]) -> Arrays:
    """The descriptor of each segment of a video: what workers run."""
    bounds, crop = about
    vectors = np.zeros((len(bounds), DIMENSIONS), np.float16)
    failed = np.ones(len(bounds), bool)
    reason = ""
    reader = PictureReader(index)
    try:
        for row, (start, end) in enumerate(bounds):
            found: Any = reader.segment(video, start, end)
            if isinstance(found, NoPictures):
                reason = found.reason
            else:
                height, width = found.luma.shape[1:]
                vectors[row] = describe(within(found.rgb, (height, width), crop))
                failed[row] = False
    finally:
        reader.close()
    if failed.all():
        raise BadClip(reason)
    return {"vectors": vectors, "failed": failed}
