"""The promise of the loaders: any request gives exactly the frames that a full FFmpeg decode gives there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.loaders.clip_plan import ClipRequest, clip_frames, plan_clip
from surgrec.loaders.engines.base import DecodedClip
from surgrec.loaders.engines.cpu import CpuEngine
from surgrec.loaders.packet_index import OK, SEQUENTIAL

EXAMPLES = settings(max_examples=20, deadline=None, database=None)


@pytest.fixture(scope="module", params=[True, False], ids=["dropping", "keeping"])
def engine(request, stream_corpus) -> Iterator[CpuEngine]:
    with CpuEngine(stream_corpus.index, threads=1, drop_disposable=request.param) as made:
        yield made


@st.composite
def positions(draw: st.DrawFn, count: int) -> tuple[int, ...]:
    """Display positions: a stride, or any non-decreasing ones with repeats."""
    if draw(st.booleans()):
        stride = draw(st.integers(1, 20))
        first = draw(st.integers(0, count - 1))
        length = draw(st.integers(1, min(16, 1 + (count - 1 - first) // stride)))
        return tuple(range(first, first + length * stride, stride))
    return tuple(sorted(draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=10))))


def test_status_and_frame_count(stream_corpus, stream_kind):
    """Without this the rest could pass on streams that fell back to decoding from the start."""
    info = stream_corpus.index.video(stream_corpus.video[stream_kind])
    assert info.status == (OK if stream_corpus.kinds[stream_kind].random_access else SEQUENTIAL), info.reason
    assert info.frame_count == len(stream_corpus.reference(stream_kind)[0])


def test_frames_are_recognisable(stream_corpus, streams, stream_kind):
    """The pictures tell their numbers, so equal pictures are equal frames."""
    images = stream_corpus.reference(stream_kind)[0]
    cut = stream_corpus.kinds[stream_kind].shift
    assert [streams.read_number(image) for image in images] == list(range(cut, cut + len(images)))


@EXAMPLES
@given(data=st.data())
def test_any_request_is_exact(stream_corpus, engine, stream_kind, data):
    images = stream_corpus.reference(stream_kind)[0]
    frames = data.draw(positions(len(images)))
    clip = engine.decode([ClipRequest(0, stream_corpus.video[stream_kind], frames)])[0]
    assert isinstance(clip, DecodedClip), clip
    assert clip.frames.dtype == np.uint8
    np.testing.assert_array_equal(clip.frames, images[list(frames)])


@EXAMPLES
@given(data=st.data())
def test_requests_by_time_follow_the_time_stamps(stream_corpus, stream_kind, data):
    """Frame k is the last one whose pts is not after t0 + k/fps, by brute force over the decoded pts."""
    index, video = stream_corpus.index, stream_corpus.video[stream_kind]
    info = index.video(video)
    times = stream_corpus.reference(stream_kind)[1]
    fps = data.draw(st.sampled_from([2.0, 3.3, 7.5, 12.5, 25.0, 29.97, 30.0]))
    count = data.draw(st.integers(1, 6))
    position = data.draw(st.floats(0, 1, exclude_max=True))
    found = clip_frames(index, video, 0, info.frame_count, position, count, fps=fps)
    ticks = info.time_base[1] / info.time_base[0] / fps
    origin = times[found[0]]
    for k, frame in enumerate(found):
        shown = [n for n, time in enumerate(times) if time <= origin + k * ticks + 0.5]
        assert frame == shown[-1]


def test_dropping_feeds_fewer_packets_where_there_are_b_frames(stream_corpus, stream_kind):
    if not stream_corpus.kinds[stream_kind].random_access:
        pytest.skip("read from the start")
    video = stream_corpus.video[stream_kind]
    request = ClipRequest(0, video, tuple(range(2, 62, 4)))
    kept = plan_clip(stream_corpus.index, request, drop_disposable=False)
    dropped = plan_clip(stream_corpus.index, request, drop_disposable=True)
    assert set(dropped.packets) <= set(kept.packets)
    if stream_corpus.kinds[stream_kind].b_frames:
        assert len(dropped.packets) < 0.85 * len(kept.packets)
    else:
        assert len(dropped.packets) == len(kept.packets)
