"""plan.h5: written, read, refused; and clips that the loader draws by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from surgrec.configs.data import BalanceConfig, DataConfig
from surgrec.loaders.clip_plan import ClipTooLong, clip_frames
from surgrec.loaders.clip_source import ClipSource
from surgrec.loaders.corpus_plan import CorpusPlan, CorpusPlanError
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable

from surgrec.curation.plan_file import write_plan

MakeIndex = Callable[[Any], PacketIndex]
DATA = DataConfig(frames=4, stride=5, size=16)
# Of videos of 300, 100 and 50 frames; what lies between is not drawn.
SEGMENTS = SegmentTable(
    np.array([0, 0, 1, 2], np.int32), np.array([0, 150, 20, 0]), np.array([100, 300, 60, 10])
)
WEIGHT = np.array([0.5, 0.25, 0.25, 0.0])


@pytest.fixture
def index(make_index: MakeIndex) -> PacketIndex:
    return make_index([{"frames": 300}, {"frames": 100}, {"frames": 50}])


def write(index: PacketIndex, out: Path, **other: Any) -> str:
    given = {
        "index_digest": index.digest,
        "segments": SEGMENTS,
        "weight": WEIGHT,
        "reason": [0, 0, 0, 1],
        "reasons": ["", "black"],
        "duplicate_of": np.full(4, -1),
        "levels": {"domain": [0, 0, 1, 1], "cluster": [0, 1, 2, 2]},
        "content_area": np.zeros((3, 4), int),
        "record": {"seed": 0},
    }
    return write_plan(out, **(given | other))


def test_what_is_written_is_read(index: PacketIndex, tmp_path: Path) -> None:
    digest = write(index, tmp_path / "plan.h5")
    plan = CorpusPlan.open(tmp_path / "plan.h5", index)
    assert (len(plan), plan.digest, plan.record) == (4, digest, '{"seed": 0}')
    assert (plan.level_names, plan.reasons) == (("domain", "cluster"), ("", "black"))
    assert plan.weight.tolist() == WEIGHT.tolist()
    assert [level.tolist() for level in plan.levels] == [[0, 0, 1, 1], [0, 1, 2, 2]]
    assert plan.segments.end.tolist() == [100, 300, 60, 10]


def test_the_same_content_has_the_same_bytes(index: PacketIndex, tmp_path: Path) -> None:
    assert write(index, tmp_path / "a.h5") == write(index, tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    other = write(index, tmp_path / "c.h5", weight=[0.25, 0.5, 0.25, 0.0])
    assert other != write(index, tmp_path / "d.h5")


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"index_digest": "another"}, "made for another index"),
        ({"weight": [0.5, 0.2, 0.2, 0.0]}, "no probabilities"),
        ({"weight": [0.5, 0.75, -0.25, 0.0]}, "no probabilities"),
        ({"weight": [1.0]}, "unequal length"),
        ({"reason": [0, 0, 0, 2]}, "does not name"),
        ({"content_area": np.zeros((2, 4), int)}, "content areas"),
        ({"segments": replace(SEGMENTS, end=np.array([100, 301, 60, 10]))}, "ends behind its video"),
        ({"segments": replace(SEGMENTS, video=np.array([0, 0, 1, 3], np.int32))}, "the index holds 3"),
    ],
)
def test_plans_that_do_not_fit_are_refused(
    index: PacketIndex, tmp_path: Path, other: dict[str, Any], text: str
) -> None:
    write(index, tmp_path / "plan.h5", **other)
    with pytest.raises(CorpusPlanError, match=rf"plan.h5: .*{text}.*surgrec.curate all"):
        CorpusPlan.open(tmp_path / "plan.h5", index)


def test_what_is_no_plan_is_refused(index: PacketIndex, tmp_path: Path) -> None:
    path = tmp_path / "plan.h5"
    with pytest.raises(CorpusPlanError, match="no such plan"):
        CorpusPlan.open(path, index)
    with pytest.raises(CorpusPlanError, match="not a file"):
        CorpusPlan.open(tmp_path, index)
    path.write_bytes(b"nothing")
    with pytest.raises(CorpusPlanError, match="not an HDF5 file"):
        CorpusPlan.open(path, index)
    with pytest.raises(CorpusPlanError, match="not a plan"):
        CorpusPlan.open(index.path, index)
    write(index, path)
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(CorpusPlanError, match="format version 99"):
        CorpusPlan.open(path, index)
    write(index, path)
    with h5py.File(path, "a") as file:
        del file["segments/weight"]
    with pytest.raises(CorpusPlanError, match="damaged plan"):
        CorpusPlan.open(path, index)


@pytest.mark.parametrize("shape", [{"stride": 5}, {"stride": 1, "fps": 5.0}])
@pytest.mark.parametrize("start", ["any", "key"])
@pytest.mark.parametrize("shared", [1, 3])
def test_clips_lie_within_segments_in_proportion(
    index: PacketIndex, tmp_path: Path, shape: dict[str, Any], start: str, shared: int
) -> None:
    write(index, tmp_path / "plan.h5")
    data = replace(DATA, plan=tmp_path / "plan.h5", start=start, clips_per_decode=shared, **shape)  # type: ignore[arg-type] # of the Literal
    source = ClipSource(index, data, 7)
    bounds = list(zip(SEGMENTS.video, SEGMENTS.start, SEGMENTS.end, strict=True))
    counts = np.zeros(4)
    for clip in source.requests(0, 1200):
        (home,) = [
            number
            for number, (video, begin, end) in enumerate(bounds)
            if video == clip.video and begin <= clip.frames[0] < end
        ]
        assert clip.frames[-1] < bounds[home][2]
        counts[home] += 1
    assert np.abs(counts / 1200 - WEIGHT).max() < 0.06
    assert counts[3] == 0


def test_segments_shorter_than_a_clip_are_not_drawn(
    index: PacketIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(index, tmp_path / "plan.h5", weight=[0.3, 0.2, 0.1, 0.4])
    data = replace(DATA, plan=tmp_path / "plan.h5")  # 16 frames, the last segment has 10
    source = ClipSource(index, data, 0)
    assert source.sampler.probabilities.tolist() == pytest.approx([0.5, 1 / 3, 1 / 6])
    assert [(left.video, left.reason) for left in source.unusable] == [
        (2, "all its segments that the plan draws are shorter than a clip")
    ]
    assert "1 segments, 40.00 % of its weight, are shorter than a clip" in caplog.text
    with pytest.raises(CorpusPlanError, match="none of the 4 segments"):
        ClipSource(index, replace(data, frames=50), 0)


def test_the_plan_says_where_crops_are_drawn_and_what_is_drawn(index: PacketIndex, tmp_path: Path) -> None:
    areas = np.array([[4, 6, 20, 30], [0, 0, 0, 0], [0, 0, 0, 0]])
    write(index, tmp_path / "plan.h5", content_area=areas)
    write(index, tmp_path / "other.h5")
    data = replace(DATA, plan=tmp_path / "plan.h5")
    source = ClipSource(index, data, 0)
    assert source.content_area is not None
    assert source.content_area.tolist() == areas.tolist()
    other = ClipSource(index, replace(data, plan=tmp_path / "other.h5"), 0)
    assert len({source.digest(), other.digest(), ClipSource(index, DATA, 0).digest()}) == 3
    # Where a plan lies is not what it says.
    (tmp_path / "plan.h5").rename(tmp_path / "moved.h5")
    assert ClipSource(index, replace(data, plan=tmp_path / "moved.h5"), 0).digest() == source.digest()


def test_options_without_effect_are_refused(index: PacketIndex, tmp_path: Path) -> None:
    write(index, tmp_path / "plan.h5")
    for other in ({"segment_seconds": 5.0}, {"balance": BalanceConfig(domain=1.0)}):
        with pytest.raises(ValueError, match=r"no effect with data\.plan"):
            ClipSource(index, replace(DATA, plan=tmp_path / "plan.h5", **other), 0)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_clip_within_a_segment_stays_there(make_index: MakeIndex, data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.integers(1, 90), min_size=10, max_size=60))
    index = make_index([{"pts": np.cumsum(steps).tolist()}])
    count = len(steps)
    begin = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(begin + 1, count))
    shape: dict[str, Any] = data.draw(
        st.sampled_from([{"stride": 1}, {"stride": 3}, {"fps": 1.0}, {"fps": 8.0}])
    )
    frames, key = data.draw(st.integers(1, 6)), data.draw(st.booleans())
    times = index.frame_pts(0)
    if "stride" in shape:
        fits = end - begin > (frames - 1) * shape["stride"]
    else:
        fits = times[begin] + (frames - 1) * 25 / shape["fps"] <= times[end - 1] + 0.5
    position = data.draw(st.floats(0, 1, exclude_max=True))
    if not fits:
        with pytest.raises(ClipTooLong, match="the segment"):
            clip_frames(index, 0, begin, end, position, frames, **shape, at_key=key, within=True)
        return
    found = clip_frames(index, 0, begin, end, position, frames, **shape, at_key=key, within=True)
    assert len(found) == frames
    assert begin <= found[0] <= found[-1] < end


def test_a_key_frame_before_the_segment_is_not_taken(make_index: MakeIndex, index: PacketIndex) -> None:
    """Every packet of these indexes is a key frame; without keys a clip starts where it was picked."""
    clip = clip_frames(index, 0, 10, 60, 0.5, 4, stride=5, at_key=True, within=True)
    assert clip == clip_frames(index, 0, 10, 60, 0.5, 4, stride=5, within=True)
    flags = index.flags.copy()
    flags[index.packets(0)] = 0
    flags[0] = 1
    bare = replace(index, flags=flags)
    assert clip_frames(bare, 0, 10, 60, 0.5, 4, stride=5, at_key=True)[0] == 0
    assert clip_frames(bare, 0, 10, 60, 0.5, 4, stride=5, at_key=True, within=True) == clip
    flags[30] = 1
    assert clip_frames(bare, 0, 10, 60, 0.9, 4, stride=5, at_key=True, within=True)[0] == 30
