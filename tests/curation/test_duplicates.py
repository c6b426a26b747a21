"""Copies of footage are found whatever was done to them, and nothing else is called a copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable

from surgrec.curation.alike import describe_moments
from surgrec.curation.dedup_stage import columns_of, find_duplicates, matches_of
from surgrec.curation.fingerprint import RATE, SIDE, Printer, clock_of
from surgrec.curation.frames_in_order import SmallFrame
from surgrec.curation.near_duplicates import find_matches
from surgrec.curation.same_footage import MIRROR, Match

SECONDS = 14
NUMBERS = (0, 1, 8, 13)
"""Originals: instruments in a cavity, a camera over a real frame, a fixed microscope, another camera."""


@pytest.fixture(scope="module")
def found(bench_module: Callable[[str], ModuleType], planted: ModuleType) -> ModuleType:
    """bench/duplicates_found.py; skips without the packages that hold real video."""
    return bench_module("duplicates_found")


@pytest.fixture(scope="module")
def made(found: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[Any]]:
    """A folder, four originals, and a copy for each alteration."""
    folder = tmp_path_factory.mktemp("copies")
    originals = [found.original(folder / f"{number}.mp4", 5, number, SECONDS) for number in NUMBERS]
    copies = []
    for ordinal in range(len(found.ALTERATIONS)):
        source = ordinal % len(originals)
        path = folder / f"copy-{ordinal}.mp4"
        copies.append(found.make_copy(originals[source], source, path, 5, ordinal, SECONDS))
    assert {copy.kind for copy in copies} == set(found.ALTERATIONS)
    return folder, originals, copies


def test_altered_copies_are_found_and_nothing_else(found: ModuleType, made: Any) -> None:
    """Segments of one scene lie side by side in each original: calling one a copy of another would count."""
    folder, originals, copies = made
    counts = found.measure_duplicates(originals, copies, folder, 1)
    assert counts.found == counts.made
    assert counts.called >= len(copies)
    assert counts.right == counts.called


def test_what_downstream_clips_show_is_found_and_nothing_else(found: ModuleType, made: Any) -> None:
    folder, originals, copies = made
    counts = found.measure_decontamination(originals, copies, folder, 1)
    assert counts.found == counts.made
    assert counts.called >= len(copies)
    assert counts.right == counts.called


def walk(seed: int, seconds: float) -> np.ndarray:
    """Samples of a picture that changes within about a second, float16."""
    draw = np.random.default_rng(seed)
    steps = draw.normal(0, 3, (round(seconds * RATE) + RATE, SIDE * SIDE)).cumsum(0)
    return (steps[RATE:] - steps[:-RATE] + draw.normal(0, 50, SIDE * SIDE)).astype(np.float16)


def test_a_stretch_that_comes_twice_in_one_video() -> None:
    samples = walk(1, 120)
    samples[300:340] = samples[100:140]
    (match,) = find_matches(1, {0: samples}.__getitem__)
    assert (match.one, match.other, match.lag, match.mirrored) == (0, 0, 200, False)
    assert abs(match.start - 100) <= 2
    assert abs(match.end - 140) <= 2


def test_a_mirrored_stretch_between_the_samples() -> None:
    one, other = walk(2, 60), walk(3, 60)
    between = 0.5 * one[80:120].astype(np.float32) + 0.5 * one[81:121].astype(np.float32)
    other[20:60] = between * MIRROR
    found = find_matches(2, [one, other].__getitem__)
    assert all(match.mirrored for match in found)
    assert max(found, key=lambda match: match.score).lag == -60.5


def test_what_stands_still_is_like_nothing() -> None:
    still = np.repeat(walk(4, 1)[:1], 100, axis=0)
    assert len(describe_moments(still)[0]) == 0
    assert find_matches(2, [still, still.copy()].__getitem__) == []


def test_sides_are_not_compared_within() -> None:
    samples = walk(5, 30)
    side = np.array([0, 0, 1], np.int8)
    found = find_matches(3, lambda video: samples, side)
    assert {(match.one, match.other) for match in found} == {(0, 2), (1, 2)}


def test_the_same_samples_give_the_same_matches() -> None:
    all_of_them = [walk(seed, 30) for seed in (6, 7, 6, 8)]
    first = find_matches(4, all_of_them.__getitem__)
    assert first == find_matches(4, all_of_them.__getitem__)
    assert matches_of(columns_of(first)) == first
    assert {(match.one, match.other) for match in first} == {(0, 2)}


def pictures(rate: int, seconds: float) -> list[SmallFrame]:
    """A gradient that gets lighter, at a frame rate."""
    ramp = np.linspace(0, 100, 48, dtype=np.uint8)[None, :, None]
    count = round(rate * seconds)
    shown = [np.broadcast_to(ramp, (27, 48, 3)) + np.uint8(100 * k / count) for k in range(count)]
    return [SmallFrame(position, pixels) for position, pixels in enumerate(shown)]


def samples_at(rate: int, rotation: int = 0, seconds: float = 4.0) -> np.ndarray:
    frames = pictures(rate, seconds)
    printer = Printer(np.arange(len(frames) + 1) / rate, rotation)
    assert list(printer.passing(iter(frames))) == frames
    return printer.samples().astype(np.float32)


def test_samples_do_not_depend_on_the_frame_rate() -> None:
    slow, fast = samples_at(25), samples_at(30)
    assert slow.shape == (16, SIDE * SIDE)
    assert np.abs(slow - fast).max() < 1
    assert slow[0, 0] == pytest.approx(52, abs=3)  # the first coefficient is the mean


def test_rotated_pictures_are_turned_upright() -> None:
    upright, turned = samples_at(25), samples_at(25, 180)
    # Turned by 180 degrees, a gradient to the right is one to the left.
    assert turned[0, 1] == pytest.approx(-upright[0, 1], abs=0.1)
    assert abs(upright[0, 1]) > 20


def test_clocks_leave_out_holes(make_index: Callable[[Any], PacketIndex]) -> None:
    index = make_index([{"frames": 50}])
    clock = clock_of(index, 0)
    assert len(clock) == 51
    assert (np.diff(clock) > 0).all()


@pytest.fixture
def three(make_index: Callable[[Any], PacketIndex]) -> PacketIndex:
    """Three videos of 40 s."""
    return make_index([{"frames": 1000}, {"frames": 1000}, {"frames": 1000}])


def table_of(index: PacketIndex, each: int = 250) -> SegmentTable:
    starts = np.arange(0, 1000, each)
    video = np.repeat(np.arange(len(index), dtype=np.int32), len(starts))
    return SegmentTable(video, np.tile(starts, len(index)), np.tile(starts + each, len(index)))


def match(one: int, other: int, start: float, end: float, lag: float) -> Match:
    """In seconds."""
    return Match(one, other, round(start * RATE), round(end * RATE), lag * RATE, False, 0.99)


def test_groups_reach_through_copies_of_copies(three: PacketIndex) -> None:
    """Segments of 10 s: 0-3 of the first video, 4-7 of the second, 8-11 of the third."""
    table = table_of(three)
    kept = np.ones(len(table), bool)
    chain = [match(0, 1, 10, 16, 0), match(1, 2, 10, 20, 0)]
    found = find_duplicates(three, table, kept, chain, 0.5)
    # The third video shows the first one only by way of the second.
    assert found.of.tolist() == [-1, -1, -1, -1, -1, 1, -1, -1, -1, 1, -1, -1]
    assert not found.exact.any()
    stricter = find_duplicates(three, table, kept, chain, 0.8)
    assert stricter.of.tolist() == [-1] * 9 + [5, -1, -1]


def test_what_stays_is_what_a_duplicate_is_one_of(three: PacketIndex) -> None:
    """Not what is one of another itself, though more of that is shown."""
    table = table_of(three)
    chain = [match(0, 1, 10, 20, 6), match(1, 2, 14, 22, -4), match(1, 2, 22, 24, -4)]
    found = find_duplicates(three, table, np.ones(len(table), bool), chain, 0.5)
    # 10-20 s of the third video: 6 s of the second one's second segment, which stays, and 4 s of its third.
    assert found.of.tolist() == [-1, -1, -1, -1, -1, -1, 1, -1, -1, 5, -1, -1]


def test_a_segment_that_shows_parts_of_two(three: PacketIndex) -> None:
    table = table_of(three)
    found = find_duplicates(three, table, np.ones(len(table), bool), [match(0, 1, 4, 14, 6)], 0.5)
    # 10-20 s of the second video: 6 s of the first segment, 4 s of the second.
    assert found.of.tolist() == [-1] * 5 + [0] + [-1] * 6


def test_what_is_not_kept_stands_for_nothing(three: PacketIndex) -> None:
    table = table_of(three)
    kept = np.ones(len(table), bool)
    kept[1] = False
    found = find_duplicates(three, table, kept, [match(0, 1, 10, 20, 0)], 0.5)
    assert (found.of == -1).all()


def test_within_a_video_the_earlier_one_stays(three: PacketIndex) -> None:
    table = table_of(three)
    found = find_duplicates(three, table, np.ones(len(table), bool), [match(2, 2, 0, 10, 30)], 0.5)
    assert found.of.tolist() == [-1] * 11 + [8]


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_shares_that_make_no_sense(three: PacketIndex, share: float) -> None:
    with pytest.raises(ValueError, match="at most 1"):
        find_duplicates(three, table_of(three), np.ones(12, bool), [], share)
