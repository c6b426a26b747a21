"""The ledger: entries that survive a crash and a resume, counts by reason, many threads."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from pathlib import Path

import pytest
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.base import ClipFailure
from surgrec.loaders.ledger import REFUSED, Ledger, read_ledger


def failure(sample: int = 3, reason: str = "truncated", path: str = "a.mp4") -> ClipFailure:
    return ClipFailure(ClipRequest(sample, 5, (8, 12, 12)), path, "cpu", reason)


def test_an_entry_has_all_fields(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run" / "ledger.jsonl") as ledger:
        ledger.record(failure())
        lines = (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()  # there before close
    (line,) = lines
    entry = json.loads(line)
    assert datetime.fromisoformat(entry.pop("time")).tzinfo is not None
    assert entry == {
        "sample": 3,
        "video": 5,
        "path": "a.mp4",
        "frames": [8, 12, 12],
        "engine": "cpu",
        "reason": "truncated",
    }
    (read,) = read_ledger(tmp_path / "run" / "ledger.jsonl")
    assert read.frames == (8, 12, 12)


def test_a_resumed_run_appends_and_counts_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.record(failure(reason="truncated"))
        ledger.record(failure(reason="missing"))
    with Ledger(path) as ledger:
        assert ledger.count == 2
        ledger.record(failure(reason="missing"))
        assert ledger.reasons() == [("missing", 2), ("truncated", 1)]
    assert [entry.reason for entry in read_ledger(path)] == ["truncated", "missing", "missing"]


def test_a_line_cut_short_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.record(failure(sample=1))
        ledger.record(failure(sample=2))
    path.write_bytes(path.read_bytes()[:-20])
    with Ledger(path) as ledger:
        assert ledger.count == 1
        ledger.record(failure(sample=3))
    assert [entry.sample for entry in read_ledger(path)] == [1, 3]


def test_refused_videos_are_recorded_once_and_not_counted_as_clips(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for _ in range(2):
        with Ledger(path) as ledger:
            ledger.record_refused(0, "a.mp4", "too short")
            ledger.record_refused(0, "a.mp4", "too short")
            ledger.record_refused(1, "b.mp4", "too short")
            assert ledger.count == 0
    entries = read_ledger(path)
    assert [(entry.sample, entry.path, entry.frames) for entry in entries] == [
        (REFUSED, "a.mp4", ()),
        (REFUSED, "b.mp4", ()),
    ]


def test_threads_and_processes_share_a_file(tmp_path: Path) -> None:
    """Two ledgers on one file stand for two ranks; each has several threads."""
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as first, Ledger(path) as second:

        def work(ledger: Ledger, start: int) -> None:
            for k in range(50):
                ledger.record(failure(sample=start + k, path="v" * 300))

        threads = [
            threading.Thread(target=work, args=(ledger, 1000 * k + 500 * other))
            for k in range(4)
            for other, ledger in enumerate((first, second))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert first.count == second.count == 200
    samples = [entry.sample for entry in read_ledger(path)]
    assert len(samples) == len(set(samples)) == 400


def test_a_path_that_is_not_unicode_survives(tmp_path: Path) -> None:
    name = b"caf\xe9 \xff.mp4".decode("utf-8", "surrogateescape")
    with Ledger(tmp_path / "l.jsonl") as ledger:
        ledger.record(failure(path=name, reason="naïve\nreason"))
    (entry,) = read_ledger(tmp_path / "l.jsonl")
    assert (entry.path, entry.reason) == (name, "naïve\nreason")


def test_refusals(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.jsonl")
    ledger.close()
    ledger.close()
    with pytest.raises(ValueError, match=r"l\.jsonl: the ledger is closed"):
        ledger.record(failure())
    other = tmp_path / "notes.txt"
    other.write_text("shopping list\n")
    with pytest.raises(ValueError, match=r"notes\.txt, line 1: no ledger entry"):
        Ledger(other)
    other.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="line 1: no ledger entry; its fields are time, sample"):
        Ledger(other)
    with pytest.raises(OSError, match="directory"):
        Ledger(tmp_path)
