"""bench/index_speed.py on a video of a few packets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from surgrec.loaders.packet_scan import scan_file


def test_made_videos_are_whole_and_measured(
    tmp_path: Path, bench_module: Callable[[str], ModuleType]
) -> None:
    bench = bench_module("index_speed")
    path = tmp_path / "tiny.mp4"
    bench.make_video(path, 64, 64, 30, 75)
    scanned = scan_file(path)
    assert (scanned.row.values["packet_count"], scanned.row.values["reason"]) == (75, "")
    bench.remux(path, tmp_path / "tiny.mkv")
    rows = bench.measure("tiny.mkv", tmp_path / "tiny.mkv", 1)
    assert rows[0].name == "surgrec"
    assert {row.name for row in rows} >= {"surgrec", "demux"}
    assert all(row.metric == "packets_per_s" and row.value > 0 and row.extra["packets"] == 75 for row in rows)
