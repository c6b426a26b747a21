"""An index of videos that need no file: what the sampler and the loader see of a corpus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from surgrec.loaders.index_writer import Packets, Row, Source, default_values, write_index
from surgrec.loaders.packet_index import KEY, OK, PacketIndex


def _source(number: int, video: dict[str, Any]) -> Source:
    """`frames` or `pts` (in display order) and any column of the index; every packet is a key frame."""
    video = dict(video)
    count = video.pop("frames", None)
    pts = np.asarray(video.pop("pts", range(count or 0)), np.int64)
    n = len(pts)
    values = default_values(video.get("path", f"video{number}.mp4"))
    values.update(
        status=OK,
        packet_count=n,
        frame_count=n,
        time_base_num=1,
        time_base_den=25,
        rate=25.0,
        duration=n / 25,
        width=64,
        height=48,
    )
    values.update(video)
    packets = Packets(
        offset=np.arange(n, dtype=np.uint64) * 10,
        size=np.full(n, 10, np.uint32),
        pts=pts,
        rank=np.arange(n, dtype=np.uint32),
        flags=np.full(n, KEY, np.uint8),
        checksum=np.zeros(n, np.uint32),
        display=np.arange(n, dtype=np.uint32),
    )
    return Source(Row(values), lambda: packets)


@pytest.fixture
def make_index(tmp_path: Path) -> Callable[[Sequence[dict[str, Any]]], PacketIndex]:
    """make_index([{"frames": 100, "domain": "cataract"}, {"pts": [0, 7, 9]}, ...]) -> opened index."""
    made = []

    def make(videos: Sequence[dict[str, Any]]) -> PacketIndex:
        path = tmp_path / f"index{len(made)}.h5"
        made.append(path)
        write_index(path, [_source(number, video) for number, video in enumerate(videos)])
        return PacketIndex.open(path)

    return make
