"""What a model sees: the frames of a clip's span, in their own shape, and nothing where they cannot be
read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from surgrec.configs.vlm import LookConfig
from surgrec.loaders.packet_index import PacketIndex

from surgrec.evaluation.manifest import Row
from surgrec.vision_language.frames import (
    GREY,
    Pictures,
    choose_frames,
    fitted,
    grey_pictures,
    read_pictures,
    size_of,
)

MIDDLE, EIGHT = LookConfig(), LookConfig("frames", frames=8)


def clip(start: float | None = None, end: float | None = None) -> Row:
    return Row("x.mp4", 0, "test", "g", start, end)


def test_pictures_are_the_decoded_frames(stream_corpus: Any) -> None:
    for kind in ("h264_default", "hevc_closed", "h264_open_gop", "vp9"):
        if kind not in stream_corpus.video:
            continue
        video = stream_corpus.video[kind]
        images, _ = stream_corpus.reference(kind)
        look = LookConfig("frames", frames=3, long_side=10_000)
        (found,) = read_pictures(stream_corpus.index, [(video, clip())], look, 1)
        assert isinstance(found, Pictures)
        count = int(stream_corpus.index.videos.frame_count[video])
        assert found.shown.frames == (count // 6, count // 2, count * 5 // 6)
        np.testing.assert_array_equal(found.pixels, images[list(found.shown.frames)])
        assert (found.shown.count, found.shown.height, found.shown.width) == found.pixels.shape[:3]


def test_pictures_are_made_smaller_in_their_shape(stream_corpus: Any) -> None:
    video = stream_corpus.video["h264_default"]
    images, _ = stream_corpus.reference("h264_default")
    _, height, width, _ = images.shape
    look = LookConfig(long_side=max(height, width) // 2)
    (found,) = read_pictures(stream_corpus.index, [(video, clip())], look, 1)
    assert isinstance(found, Pictures)
    assert found.pixels.shape == (1, round(height / 2), round(width / 2), 3)
    frame = Image.fromarray(images[found.shown.frames[0]])
    expected = np.asarray(frame.resize((round(width / 2), round(height / 2)), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(found.pixels[0], expected)


def test_sizes_are_known_without_decoding(stream_corpus: Any) -> None:
    """Of turned pictures and of pixels that are not square, too."""
    look = LookConfig(long_side=80, short_side=50)
    numbers = list(range(len(stream_corpus.index)))
    for video, found in zip(
        numbers, read_pictures(stream_corpus.index, [(k, clip()) for k in numbers], look, 1), strict=True
    ):
        if isinstance(found, Pictures):
            assert found.pixels.shape[1:3] == size_of(stream_corpus.index, video, look)


@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    aspect=st.floats(0.3, 3.0),
    long=st.integers(1, 2000),
    short=st.none() | st.integers(1, 2000),
)
def test_bounds_hold_and_the_shape_stays(
    height: int, width: int, aspect: float, long: int, short: int | None
) -> None:
    tall, wide = fitted(height, width, aspect, LookConfig(long_side=long, short_side=short))
    assert min(tall, wide) >= 1
    assert max(tall, wide) <= long
    assert short is None or min(tall, wide) <= short
    if aspect == 1:
        assert tall <= height
        assert wide <= width
    shape = width * aspect / height
    # Rounding moves each side by half a pixel at most, but never below one.
    assert (wide - 0.51) / (tall + 0.51) <= shape or wide == 1
    assert shape <= (wide + 0.51) / max(tall - 0.51, 1e-9) or tall == 1


@given(
    start=st.integers(0, 90),
    length=st.integers(1, 90),
    count=st.integers(1, 40),
    kind=st.sampled_from(["frames", "video"]),
)
def test_frames_lie_in_the_span_evenly(start: int, length: int, count: int, kind: Any) -> None:
    look = LookConfig(kind, frames=count, fps=5.0)
    found = choose_frames(look, every(200), 0, start, start + length)
    wanted = count if kind == "frames" else min(count, max(2, round(length / 25 * 5.0)))
    assert len(found) == min(wanted, length)
    assert list(found) == sorted(set(found))
    assert start <= found[0] <= found[-1] < start + length
    if len(found) > 1:
        gaps = np.diff(found)
        assert gaps.max() - gaps.min() <= 1
        assert abs((found[0] - start) - (start + length - 1 - found[-1])) <= 1


class _Videos:
    time_base_num = (1,)
    time_base_den = (25,)


class _Index:
    """25 frames a second."""

    videos = _Videos()

    def __init__(self, frames: int) -> None:
        self._frames = frames

    def frame_pts(self, video: int) -> Any:
        return np.arange(self._frames)


def every(frames: int) -> Any:
    return _Index(frames)


def test_the_middle_is_that_of_the_span() -> None:
    assert choose_frames(MIDDLE, every(100), 0, 0, 100) == (50,)
    assert choose_frames(MIDDLE, every(100), 0, 10, 13) == (11,)
    assert choose_frames(MIDDLE, every(100), 0, 99, 100) == (99,)
    assert choose_frames(EIGHT, every(100), 0, 40, 43) == (40, 41, 42)


def test_frames_of_a_video_go_by_its_time() -> None:
    """Of frames that slow down, one second apart at the end, as many as seconds, evenly over the frames."""
    index = every(0)
    index.frame_pts = lambda video: np.concatenate([np.arange(50), 50 + 25 * np.arange(8)])
    look = LookConfig("video", frames=100, fps=1.0)
    # 2 s and 7 s, and the last frame's share.
    assert len(choose_frames(look, index, 0, 0, 58)) == 9


def test_what_cannot_be_read_is_said(
    stream_corpus: Any, build_index_of: Callable[..., PacketIndex], streams: ModuleType, tmp_path: Path
) -> None:
    made = streams.make_stream("h264_default", tmp_path / "made", frames=50)
    paths = [tmp_path / name for name in ("whole.mp4", "cut.mp4", "text.mp4", "gone.mp4")]
    for path in paths[:2]:
        shutil.copy(made, path)
    paths[2].write_text("no video")
    index = build_index_of(paths, tmp_path / "index.h5")
    with paths[1].open("r+b") as file:
        file.truncate(1500)
    at = {Path(path).name: number for number, path in enumerate(index.videos.path)}
    rows = [
        (at["whole.mp4"], clip()),
        (at["cut.mp4"], clip()),
        (at["text.mp4"], clip()),
        (at["gone.mp4"], clip()),
    ]
    rows += [(at["whole.mp4"], clip(90.0, 91.0)), (at["whole.mp4"], clip(0.5, 1.0))]
    found = list(read_pictures(index, rows * 2, MIDDLE, 2))
    assert len(found) == 12
    for first in (0, 6):
        whole, cut, text, gone, behind, half = found[first : first + 6]
        assert isinstance(whole, Pictures)
        assert "another version" in str(cut)
        assert "no video file" in str(text)
        assert gone == "no such file"
        assert "begin behind the last frame" in str(behind)
        assert isinstance(half, Pictures)
        assert half.shown.frames != whole.shown.frames
        assert half.shown.digest != whole.shown.digest
    again = [each.shown for each in found if isinstance(each, Pictures)]
    assert again[:2] == again[2:]


@pytest.mark.parametrize(("look", "count"), [(MIDDLE, 1), (EIGHT, 8), (LookConfig("video", frames=6), 6)])
def test_grey_pictures(look: LookConfig, count: int) -> None:
    found = grey_pictures(look)
    assert found.pixels.shape == (count, 576, 768, 3)
    assert (found.pixels == GREY).all()
    assert found.shown.frames == found.shown.seconds == ()
    assert found.shown.count == count
