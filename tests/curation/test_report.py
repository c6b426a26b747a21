"""The report without a browser: numbers, the choice of pictures, thumbnails, options, package data."""

from __future__ import annotations

import io
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from surgrec.loaders.corpus_plan import CorpusPlan
from surgrec.loaders.packet_index import ERROR, PacketIndex
from surgrec.loaders.segments import SegmentTable

from surgrec.curate import main
from surgrec.curation.local_workers import LocalWorkers
from surgrec.curation.plan_file import write_plan
from surgrec.curation.readable import readable
from surgrec.curation.records import VideoRecords
from surgrec.curation.report_numbers import by_flag, duplicates_of, exclusions, glance
from surgrec.curation.report_page import clock, folder_of, times
from surgrec.curation.report_stage import choose
from surgrec.curation.report_thumbnails import BYTES, SIDE, Thumbnail, _thumbnail, find_thumbnails
from surgrec.curation.report_tree import PER_LEAF, Tree, TreeLevel, examples, make_tree
from surgrec.curation.segment_video import seconds_of

MakeIndex = Callable[[Any], PacketIndex]
VIDEOS = (
    {"frames": 100, "domain": "cataract", "dataset": "a", "codec": "h264", "duration": 4.0},
    {"frames": 300, "domain": "robotic", "dataset": "b", "codec": "hevc", "duration": 12.0},
    {"frames": 50, "domain": "robotic", "dataset": "b", "codec": "hevc", "duration": 2.0, "rate": 29.97},
    {"frames": 0, "status": ERROR, "reason": "no video stream", "codec": "", "duration": np.nan},
)
SEGMENTS = SegmentTable(
    np.array([0, 0, 1, 1, 1, 2], np.int32),
    np.array([0, 50, 0, 100, 200, 0]),
    np.array([50, 100, 100, 200, 300, 50]),
)
REASON = np.array([0, 1, 0, 0, 2, 3])
REASONS = ["", "black,frozen", "black", "shows test/a,b.mp4"]
LEVELS = {"domain": [0, 0, 1, 1, 1, 1], "cluster0": [0, -1, 1, 1, -1, -1], "cluster1": [0, -1, 1, 2, -1, -1]}


@pytest.fixture
def index(make_index: MakeIndex) -> PacketIndex:
    return make_index(VIDEOS)


@pytest.fixture
def plan(index: PacketIndex, tmp_path: Path) -> CorpusPlan:
    weight = np.array([0.5, 0, 0.3, 0.2, 0, 0])
    write_plan(
        tmp_path / "plan.h5",
        index.digest,
        SEGMENTS,
        weight,
        REASON,
        REASONS,
        [-1, -1, -1, 2, -1, -1],
        LEVELS,
        np.zeros((4, 4), int),
        {},
    )
    return CorpusPlan.open(tmp_path / "plan.h5", index)


def test_the_corpus_at_a_glance(index: PacketIndex, plan: CorpusPlan) -> None:
    found = glance(index, plan, seconds_of(index, plan.segments))
    assert (found.videos, found.frames, found.segments, found.drawn) == (4, 450, 6, 3)
    assert found.hours == pytest.approx(18 / 3600)
    assert found.drawn_hours == pytest.approx(10 / 3600)
    assert found.median_seconds == pytest.approx(3)
    assert [(group.name, group.videos) for group in found.groups["Codec"]] == [("hevc", 2), ("h264", 1)]
    assert found.groups["Domain"][0].share == pytest.approx(14 / 18)
    assert [group.name for group in found.groups["Frames per second"]] == ["25", "29.97"]
    assert [(video.status, video.reason) for video in found.unreadable] == [("ERROR", "no video stream")]


def test_what_is_excluded(index: PacketIndex, plan: CorpusPlan) -> None:
    found = exclusions(plan, seconds_of(index, plan.segments))
    assert [(each.reason, each.rows.tolist(), each.downstream) for each in found] == [
        ("black", [4], False),
        ("black,frozen", [1], False),
        ("shows test/a,b.mp4", [5], True),
    ]
    assert [each.share for each in found] == pytest.approx([4 / 18, 2 / 18, 2 / 18])
    assert by_flag(found) == pytest.approx({"black": 6 / 18, "frozen": 2 / 18})


def test_duplicates_are_those_of_the_plan(plan: CorpusPlan) -> None:
    assert duplicates_of(plan).tolist() == [-1, -1, -1, 2, -1, -1]
    with h5py.File(plan.path, "a") as file:
        file["segments/duplicate_of"][0] = 6
    with pytest.raises(ValueError, match=r"plan\.h5: segments/duplicate_of names segments"):
        duplicates_of(plan)
    with h5py.File(plan.path, "a") as file:
        del file["segments/duplicate_of"]
    with pytest.raises(ValueError, match=r"plan\.h5: segments/duplicate_of is missing"):
        duplicates_of(plan)


def test_the_tree_has_what_is_drawn(index: PacketIndex, plan: CorpusPlan) -> None:
    tree = make_tree(index, plan, seconds_of(index, plan.segments))
    assert [level.labels for level in tree.levels] == [
        ["cataract", "robotic"],
        ["cluster0 · 0", "cluster0 · 1"],
        ["cluster1 · 0", "cluster1 · 1", "cluster1 · 2"],
    ]
    assert [level.parent.tolist() for level in tree.levels] == [[0, 0], [0, 1], [0, 1, 1]]
    assert tree.levels[0].drawn.tolist() == [0.5, 0.5]
    assert tree.levels[0].natural.tolist() == pytest.approx([0.2, 0.8])
    assert tree.rows.tolist() == [0, 2, 3]


def made_tree(parents: list[list[int]], drawn: list[float], leaf: list[int]) -> Tree:
    """A tree by the parents of each level, and the shares of its leaves."""
    shares, levels = np.array(drawn), []
    for depth in range(len(parents) - 1, -1, -1):
        ones = np.ones(len(shares))
        levels.insert(0, TreeLevel(f"level{depth}", [""] * len(shares), np.array(parents[depth]),
                                   ones, shares, ones.astype(int), ones))  # fmt: skip
        shares = np.bincount(parents[depth], weights=shares)
    return Tree(levels, np.arange(len(leaf)) + 100, np.array(leaf))


def test_examples_cover_coarse_nodes_first() -> None:
    # Two roots; the first has nodes 0 and 1 (leaves 0, 1 and 2, 3), the second node 2 (leaves 4, 5).
    parents, drawn = [[0, 0], [0, 0, 1], [0, 0, 1, 1, 2, 2]], [0.05, 0.3, 0.25, 0.2, 0.05, 0.15]
    tree = made_tree(parents, drawn, np.repeat(np.arange(6), 20).tolist())
    # The first root's is of node 1, which is drawn more than node 0; then node 0's; then the other leaves.
    assert list(examples(tree, 6)) == [2, 5, 1, 3, 0, 4]
    assert set(examples(tree, 2)) == {2, 5}
    many = examples(tree, 1000)
    assert {len(rows) for rows in many.values()} == {PER_LEAF}
    assert all(len(set(rows)) == PER_LEAF and {(row - 100) // 20 for row in rows} == {leaf}
               for leaf, rows in many.items())  # fmt: skip
    assert examples(tree, 0) == {}


def test_examples_of_small_leaves() -> None:
    tree = made_tree([[0, 0]], [0.5, 0.5], [0, 0, 0, 1])
    assert {leaf: sorted(rows) for leaf, rows in examples(tree, 50).items()} == {0: [100, 101, 102], 1: [103]}


@pytest.mark.parametrize("budget", [0, 1, 8, 16, 40, 1000])
def test_no_more_is_chosen_than_there_may_be(index: PacketIndex, plan: CorpusPlan, budget: int) -> None:
    seconds = seconds_of(index, plan.segments)
    duplicates = np.array([-1, 0, -1, -1, 2, -1])
    chosen = choose(plan, seconds, make_tree(index, plan, seconds), duplicates, budget)
    excluded = [row for rows in chosen.excluded.values() for row in rows]
    leaves = [row for rows in chosen.leaves.values() for row in rows]
    assert len(excluded) + len(leaves) + 2 * len(chosen.pairs) + len(chosen.most_drawn) <= budget
    if budget == 1000:
        assert (sorted(excluded), sorted(leaves)) == ([1, 4, 5], [0, 2, 3])
        assert (chosen.pairs, chosen.most_drawn[:3]) == ([(1, 0), (4, 2)], [0, 2, 3])


@pytest.mark.parametrize(
    ("size", "shape"), [((320, 180), 1.0), ((180, 320), 1.0), ((320, 320), 2.0), ((40, 1), 1.0)]
)
def test_thumbnails_are_small_whatever_they_show(size: tuple[int, int], shape: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    found = _thumbnail(noise, 7, shape)
    assert len(found.jpeg) <= BYTES
    with Image.open(io.BytesIO(found.jpeg)) as picture:
        assert picture.size == (found.width, found.height)
    assert max(found.width, found.height) <= SIDE
    assert found.width / found.height == pytest.approx(size[0] * shape / size[1], rel=0.05)


def test_thumbnails_of_videos(
    streams: ModuleType, build_index_of: Callable[..., PacketIndex], tmp_path: Path
) -> None:
    """A picture of the right moment; a video that is gone has none, and has one once it is back."""
    paths = [
        streams.make_stream("h264_default", tmp_path / name, frames=90, first=n)
        for n, name in enumerate("ab")
    ]
    index = build_index_of(paths, tmp_path / "corpus.h5")
    segments = SegmentTable(np.array([0, 0, 1], np.int32), np.array([0, 45, 0]), np.array([45, 90, 90]))
    paths[1].rename(tmp_path / "kept")

    def found() -> dict[int, Thumbnail]:
        records = VideoRecords(tmp_path / "records").open()
        try:
            return find_thumbnails(
                index, segments, [2, 1, 0], records, LocalWorkers(1), lambda done, of: None
            )
        finally:
            records.close()

    first = found()
    assert list(first) == [0, 1, 2]
    assert 45 <= first[1].frame < 90
    images, _ = streams.decode_all(paths[0], 0)
    with Image.open(io.BytesIO(first[1].jpeg)) as picture:
        small = Image.fromarray(images[first[1].frame]).resize(picture.size, Image.Resampling.BOX)
        assert np.abs(np.asarray(picture, float) - np.asarray(small, float)).mean() < 12
    assert first[2].jpeg == b""
    assert "cannot be read" in first[2].reason
    (tmp_path / "kept").rename(paths[1])
    second = found()
    assert second[2].jpeg
    assert second[0] == first[0]


def test_names_and_times_as_text() -> None:
    assert readable("ä 手術.mp4") == "ä 手術.mp4"
    assert readable("a\nb\u202ec\udcff") == "a\\nb\\u202ec\\udcff"
    assert [clock(seconds) for seconds in (-1.0, 59.9, 3661.0)] == ["0:00:00", "0:00:59", "1:01:01"]
    assert [times(value) for value in (0.01234, 99.96, 15360000.0)] == ["0.0123", "100", "15,360,000"]
    assert folder_of(["/a/b/c.mp4", "/a/d/e.mp4"]) == "/a"
    assert folder_of(["/a/b.mp4", "c.mp4"]) == ""


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--report.thumbnails", "-1"), "at least 0 thumbnails"),
        (("--report.samples", "0"), "at least 1 clip"),
        (("--report.page", "plan.h5"), "would take the plan's place"),
    ],
)
def test_options_that_make_no_sense(
    plan: CorpusPlan,
    index: PacketIndex,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    text: str,
) -> None:
    """Said before any stage is run: hours of work come before the report."""
    monkeypatch.chdir(plan.path.parent)
    before = plan.path.read_bytes()
    assert main(["all", "--index", str(index.path), "--out", "plan.h5", *more]) == 1
    assert text in capsys.readouterr().err
    assert plan.path.read_bytes() == before


def test_a_report_without_a_plan(
    index: PacketIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--index", str(index.path), "--out", str(tmp_path / "plan.h5")]) == 1
    assert "no such plan" in capsys.readouterr().err


def test_the_page_is_the_same_each_time_and_changes_no_plan(
    plan: CorpusPlan, index: PacketIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["report", "--index", str(index.path), "--out", str(plan.path), "--workers", "1"]
    before = plan.path.read_bytes()
    assert main([*line, "--report.page", str(tmp_path / "one.html")]) == 0
    assert main([*line, "--report.page", str(tmp_path / "two.html")]) == 0
    said = capsys.readouterr()
    assert f"report: {tmp_path / 'two.html'}" in said.out
    assert "segments" not in said.out  # none were made
    assert "no thumbnail: cannot be read" in said.err
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert plan.path.read_bytes() == before
    assert main([*line, "--report.samples", "5", "--report.page", str(tmp_path / "two.html")]) == 0
    text = (tmp_path / "two.html").read_text(encoding="utf-8")
    assert "in a run of 5 clips" in text
    assert text != (tmp_path / "one.html").read_text(encoding="utf-8")


def test_an_installation_has_the_template() -> None:
    root = Path(__file__).resolve().parents[2]
    config = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folder = root / "surgrec" / "curation"
    listed = {path for glob in config["package-data"]["surgrec.curation"] for path in folder.glob(glob)}
    assert {path.name for path in listed} == {"page.html", "page.css", "page.js"}
    there = {
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert listed == there
