from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.loaders.clip_plan import (
    EMPTY_FIRST,
    LEADING,
    START,
    WANTED,
    ClipRequest,
    ClipTooLong,
    PlanError,
    clip_frames,
    plan_clip,
)
from surgrec.loaders.packet_index import (
    BROKEN,
    DISPOSABLE,
    ERROR,
    KEY,
    NO_RANK,
    NUMBER_COLUMNS,
    OPEN_KEY,
    TEXT_COLUMNS,
    PacketIndex,
    VideoTable,
)

MANY = settings(max_examples=150, deadline=None, database=None)


def make_index(letters: str, ranks: list[int] | None = None, pts: list[int] | None = None, gap: int = 0):
    """An index of one video. Packets in decode order: K key, O open key, r reference, d disposable, x broken.

    ranks: display positions, -1 for a packet without a frame; decode order by default. pts: of each packet,
    the rank by default, in milliseconds. Packets are 10 bytes long and `gap` bytes apart.
    """
    count = len(letters)
    codes = {"K": KEY, "O": OPEN_KEY, "r": 0, "d": DISPOSABLE, "x": BROKEN, "i": KEY | DISPOSABLE}
    ranks = list(range(count)) if ranks is None else ranks
    display = [packet for _, packet in sorted((rank, p) for p, rank in enumerate(ranks) if rank >= 0)]
    columns: dict = {name: [""] for name in TEXT_COLUMNS} | {
        name: np.zeros(1, kind) for name, kind in NUMBER_COLUMNS.items()
    }
    columns["path"] = ["video.mp4"]
    columns |= {"packet_count": np.array([count]), "frame_count": np.array([len(display)])}
    columns |= {"time_base_num": np.array([1]), "time_base_den": np.array([1000]), "stack": np.array([1])}
    values: dict = {field.name: "" for field in fields(PacketIndex)}
    values |= {
        "path": Path("corpus.h5"),
        "videos": VideoTable(**columns),
        "offset": (100 + np.arange(count) * (10 + gap)).astype("u8"),
        "size": np.full(count, 10, "u4"),
        "pts": np.array(ranks if pts is None else pts, "i8"),
        "rank": np.array([rank if rank >= 0 else NO_RANK for rank in ranks], "u4"),
        "flags": np.array([codes[letter] for letter in letters], "u1"),
        "display": np.array(display, "u4"),
        "extradata": np.empty(0, "u1"),
    }
    return PacketIndex(**values)


def plan(index, *frames, drop=True):
    return plan_clip(index, ClipRequest(0, 0, frames), drop)


def fed(index, *frames, drop=True):
    return plan(index, *frames, drop=drop).packets.tolist()


def test_decoding_starts_at_the_last_key_frame():
    index = make_index("KrrrKrrr")
    assert fed(index, 6) == [4, 5, 6]
    assert fed(index, 4) == [4]
    assert fed(index, 3) == [0, 1, 2, 3]


def test_disposable_packets_are_fed_only_when_wanted():
    index = make_index("Krddrdd", [0, 3, 1, 2, 6, 4, 5])
    assert fed(index, 3, 6) == [0, 1, 4]
    assert fed(index, 2, 6) == [0, 1, 3, 4]
    assert fed(index, 3, 6, drop=False) == [0, 1, 2, 3, 4]


def test_the_rest_of_a_group_is_left_out_when_the_next_wanted_frame_needs_a_later_key():
    index = make_index("KrrrKrrrKrrr")
    found = plan(index, 1, 9)
    assert found.packets.tolist() == [0, 1, 8, 9]
    assert found.roles.tolist() == [START, WANTED, START, WANTED]
    assert found.rows.tolist() == [1, 9]


def test_adjacent_groups_go_on_without_a_new_start():
    found = plan(make_index("KrKr"), 0, 1, 2)
    assert found.roles.tolist() == [START | WANTED, WANTED, WANTED]


def test_intra_only_streams_feed_the_wanted_packets():
    found = plan(make_index("iiiiii"), 1, 2, 5)
    assert found.packets.tolist() == [1, 2, 5]
    assert found.roles.tolist() == [START | WANTED, WANTED, START | WANTED]


OPEN_GOP = "KrdrOrdr"
OPEN_RANKS = [0, 2, 1, 3, 6, 4, 5, 7]  # packets 5 and 6 are leading pictures of the open key 4


def test_leading_pictures_need_the_key_frame_before():
    index = make_index(OPEN_GOP, OPEN_RANKS)
    assert fed(index, 4) == [0, 1, 3, 4, 5]
    assert fed(index, 5) == [0, 1, 3, 4, 5, 6]
    assert fed(index, 6, 5 + 2) == [4, 5, 7]


def test_leading_pictures_wanted_next_to_their_key_frame():
    """The key comes first in decode order; the leading picture moves the start before it all the same."""
    found = plan(make_index(OPEN_GOP, OPEN_RANKS), 5, 6)
    assert found.packets.tolist() == [0, 1, 3, 4, 5, 6]
    assert not (found.roles & LEADING).any()


def test_unwanted_leading_pictures_are_marked_and_never_fed_when_disposable():
    found = plan(make_index(OPEN_GOP, OPEN_RANKS), 6, 7, drop=False)
    assert found.packets.tolist() == [4, 5, 7]
    assert found.roles.tolist() == [START | EMPTY_FIRST | WANTED, LEADING, WANTED]


def test_leading_is_told_by_pts_where_the_key_frame_is_not_shown():
    """An edit list that begins between the leading pictures and their key frame's successor."""
    index = make_index("OddrrOr", [-1, -1, -1, 0, 1, 2, 3], pts=[3, 1, 2, 4, 5, 6, 7])
    assert fed(index, 0, 1) == [0, 3, 4]


def test_a_video_that_begins_without_a_key_frame_is_fed_from_its_first_packet():
    assert fed(make_index("rrrKr"), 2) == [0, 1, 2]
    assert fed(make_index("Oddr", [2, 0, 1, 3]), 1) == [0, 2]


def test_broken_packets_are_refused_only_where_needed():
    index = make_index("KrxKrr")
    assert fed(index, 1) == [0, 1]
    assert fed(index, 4) == [3, 4]
    with pytest.raises(PlanError, match="packet 2 is needed and damaged"):
        plan(index, 1, 2)


def test_videos_that_cannot_be_decoded_are_refused_with_the_index_reason():
    index = make_index("Krr")
    index.videos.status[0] = ERROR
    index.videos.reason[0] = "moov atom not found"
    with pytest.raises(PlanError, match="moov atom not found"):
        plan(index, 0)


@pytest.mark.parametrize("frames", [(), (-1,), (3,), (2, 1)])
def test_impossible_requests_are_errors(frames):
    with pytest.raises(ValueError, match=r"video\.mp4"):
        plan(make_index("Krr"), *frames)
    with pytest.raises(ValueError, match="outside the index"):
        plan_clip(make_index("Krr"), ClipRequest(0, 1, (0,)))


def test_close_neighbours_are_read_in_one_range():
    near = plan(make_index("Krdr", [0, 2, 1, 3], gap=1000), 3)
    assert near.ranges.tolist() == [[100, 3 * 1010 + 10]]
    assert near.places.tolist() == [0, 1010, 3030]
    assert near.read_bytes == 3040
    far = plan(make_index("Krdr", [0, 2, 1, 3], gap=50_000), 3)
    assert far.ranges.tolist() == [[100, 10], [50_110, 10], [150_130, 10]]
    assert far.places.tolist() == [0, 10, 20]
    assert far.sizes.tolist() == [10, 10, 10]


@st.composite
def streams_and_requests(draw):
    """A random stream of closed and open groups with its display order, and positions."""
    letters, ranks = "", []
    for group in range(draw(st.integers(1, 5))):
        kind = "K" if group == 0 else draw(st.sampled_from("KO"))
        size = draw(st.integers(1, 8))
        leading = draw(st.integers(0, size - 1)) if kind == "O" else 0
        base = len(ranks)
        letters += kind + "".join(draw(st.sampled_from("rd")) for _ in range(size - 1))
        rest = draw(st.permutations(range(leading + 1, size)))
        order = [leading, *draw(st.permutations(range(leading))), *rest]
        ranks += [base + rank for rank in order]
    frames = draw(st.lists(st.integers(0, len(ranks) - 1), min_size=1, max_size=6))
    return letters, ranks, tuple(sorted(frames)), draw(st.booleans())


@MANY
@given(streams_and_requests())
def test_every_wanted_frame_is_fed_after_all_that_it_may_depend_on(case):
    """Against a plain statement of dependence: all references back to a key frame that it does not lead."""
    letters, ranks, frames, drop = case
    index = make_index(letters, ranks)
    found = plan(index, *frames, drop=drop)
    packets = found.packets.tolist()
    assert packets == sorted(set(packets))
    assert found.rows.tolist() == [ranks.index(frame) for frame in frames]
    restarts = [p for p, role in zip(packets, found.roles.tolist(), strict=True) if role & START]
    for row in found.rows.tolist():
        start = max(p for p in restarts if p <= row)
        assert letters[start] == "K" or start == 0 or ranks[row] >= ranks[start]
        needed = {p for p in range(start, row) if letters[p] != "d"}
        assert needed <= set(packets)
    if drop:
        extra = [p for p in packets if letters[p] == "d" and p not in found.rows]
        assert extra == []
    marked = {p for p, role in zip(packets, found.roles.tolist(), strict=True) if role & WANTED}
    assert marked == set(found.rows.tolist())


@pytest.mark.parametrize(("position", "first"), [(0.0, 10), (0.5, 15), (0.999, 19)])
def test_position_picks_the_start_within_the_segment(position, first):
    index = make_index("K" + "r" * 99)
    assert clip_frames(index, 0, 10, 20, position, 3, stride=4) == (first, first + 4, first + 8)


@MANY
@given(
    letters=st.text("Krd", min_size=0, max_size=60).map(lambda text: "K" + text),
    start=st.integers(0, 60),
    position=st.floats(0, 1, exclude_max=True),
    by_time=st.booleans(),
)
def test_clips_may_start_at_key_frames(letters, start, position, by_time):
    """At the last one before the start that would have been taken, and nothing before it is decoded."""
    index = make_index(letters, pts=[40 * n for n in range(len(letters))])
    segment = min(start, len(letters) - 1), len(letters)
    shape = {"fps": 25.0} if by_time else {"stride": 1}
    free = clip_frames(index, 0, *segment, position, 1, **shape)
    found = clip_frames(index, 0, *segment, position, 1, **shape, at_key=True)
    assert found[0] == max(n for n in range(free[0] + 1) if letters[n] == "K")
    assert plan(index, *found).packets.tolist() == list(found)


def test_a_clip_may_leave_its_segment_but_not_the_video():
    index = make_index("K" + "r" * 19)
    assert clip_frames(index, 0, 10, 20, 0.999, 3, stride=4) == (11, 15, 19)
    assert clip_frames(index, 0, 18, 20, 0.0, 3, stride=4) == (11, 15, 19)


def test_clips_that_do_not_fit_are_refused():
    index = make_index("K" + "r" * 8, pts=[n * 40 for n in range(9)])
    assert clip_frames(index, 0, 0, 9, 0.9, 3, stride=4) == (0, 4, 8)
    with pytest.raises(ClipTooLong, match="span 10 frames, the video has 9"):
        clip_frames(index, 0, 0, 9, 0.0, 4, stride=3)
    assert clip_frames(index, 0, 0, 9, 0.9, 5, fps=12.5) == (0, 2, 4, 6, 8)
    with pytest.raises(ClipTooLong, match=r"6 frames at 12\.5 per second"):
        clip_frames(index, 0, 0, 9, 0.0, 6, fps=12.5)


@pytest.mark.parametrize(
    "wrong", [{}, {"stride": 1, "fps": 2.0}, {"stride": 0}, {"fps": 0.0}, {"fps": float("nan")}]
)
def test_arguments_that_no_video_can_meet(wrong):
    with pytest.raises(ValueError, match="stride"):
        clip_frames(make_index("Krr"), 0, 0, 3, 0.0, 2, **wrong)


@MANY
@given(
    steps=st.lists(st.integers(1, 200), min_size=1, max_size=40),
    first=st.integers(-1000, 1000),
    fps=st.floats(1, 60),
    frames=st.integers(1, 5),
    position=st.floats(0, 1, exclude_max=True),
)
def test_time_based_clips_on_variable_frame_rate(steps, first, fps, frames, position):
    """Against the rule by brute force, for the start range as well as for the frames."""
    times = np.cumsum([first, *steps])
    index = make_index("K" + "r" * len(steps), pts=times.tolist())
    step = 1000 / fps
    possible = [n for n, time in enumerate(times) if time + (frames - 1) * step <= times[-1] + 0.5]
    if not possible:
        with pytest.raises(ClipTooLong):
            clip_frames(index, 0, 0, len(times), position, frames, fps=fps)
        return
    found = clip_frames(index, 0, 0, len(times), position, frames, fps=fps)
    assert found[0] == possible[int(position * len(possible))]
    for k, frame in enumerate(found):
        assert frame == np.flatnonzero(times <= times[found[0]] + k * step + 0.5)[-1]
