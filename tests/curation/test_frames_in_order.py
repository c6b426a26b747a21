"""Every frame of every kind of stream, in order, at its display position."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from surgrec.loaders.engines.base import BadClip

from surgrec.curation.frames_in_order import frames_in_order

SIZE = (24, 40)


def test_all_frames_of_every_kind(stream_corpus: Any, stream_kind: str) -> None:
    """As FFmpeg decodes the whole file. Packets of the index that no clip may use are left out, too."""
    video = stream_corpus.video[stream_kind]
    index = stream_corpus.index
    if index.videos.frame_count[video] == 0:
        pytest.skip("the index knows no frame of it")
    rotation = int(index.videos.rotation[video])
    images, _ = stream_corpus.reference(stream_kind)
    height, width = int(index.videos.height[video]), int(index.videos.width[video])
    found = {frame.position: frame.pixels for frame in frames_in_order(index, video, height, width)}
    assert list(found) == sorted(found)
    assert len(found) >= int(index.videos.frame_count[video]) - 2
    for position, pixels in found.items():
        upright = np.rot90(images[position], rotation // 90)  # the reference is turned already
        assert np.abs(upright.astype(int) - pixels).mean() < 4, position


def test_stacked_frames_come_one_by_one(make_stacked: Any, tmp_path: Path) -> None:
    made = make_stacked(tmp_path)
    height, width = made.images.shape[1:3]
    found = list(frames_in_order(made.index, 0, height, width))
    assert [frame.position for frame in found] == list(range(len(made.images)))
    for frame in found:
        assert np.abs(frame.pixels.astype(int) - made.images[frame.position]).mean() < 4


def test_frames_are_scaled(stream_corpus: Any) -> None:
    for frame in frames_in_order(stream_corpus.index, stream_corpus.video["h264_default"], *SIZE):
        assert frame.pixels.shape == (*SIZE, 3)


def test_files_that_are_gone_changed_or_damaged(
    streams: ModuleType, build_index_of: Any, tmp_path: Path
) -> None:
    path = streams.make_stream("h264_default", tmp_path / "a")
    index = build_index_of([path], tmp_path / "corpus.h5")
    whole = len(list(frames_in_order(index, 0, *SIZE)))
    time = path.stat().st_mtime_ns
    kept = path.read_bytes()
    damaged = bytearray(kept)
    middle = int(index.offset[index.packets(0)][whole // 2])
    damaged[middle + 8 : middle + 200] = bytes(192)
    path.write_bytes(damaged)
    import os

    os.utime(path, ns=(time, time))
    assert 0 < len(list(frames_in_order(index, 0, *SIZE))) <= whole
    shutil.copy(path, tmp_path / "copy")
    path.write_bytes(kept + b"more")
    with pytest.raises(BadClip, match="another version"):
        list(frames_in_order(index, 0, *SIZE))
    path.unlink()
    with pytest.raises(BadClip, match="cannot be read: No such file"):
        list(frames_in_order(index, 0, *SIZE))
