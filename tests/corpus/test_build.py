"""Building an index: resumed, incremental, and whole whatever happens on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from surgrec.loaders import packet_scan
from surgrec.loaders.engines.verify import verified
from surgrec.loaders.index_writer import Packets, Row
from surgrec.loaders.packet_index import ERROR, OK, REMOVED, PacketIndex
from surgrec.loaders.packet_scan import Scanned, scan_file

from surgrec.corpus import build, workers
from surgrec.corpus.build import BuildError, Report, build_index
from surgrec.corpus.discovery import Entry, find_entries
from surgrec.corpus.journal import Journal, JournalBusyError
from surgrec.corpus.workers import Done, Job, run_jobs


@pytest.fixture
def films(tmp_path: Path, streams: ModuleType) -> Path:
    """A folder of three videos and a file that is none."""
    folder = tmp_path / "films"
    for kind, name in (("h264_default", "b/one"), ("vp9", "a/two"), ("mpeg4_avi", "a/three")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        streams.make_stream(kind, folder / name, frames=12, size=(96, 64))
    (folder / "a" / "bad.mp4").write_text("no video")
    return folder


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Scans in this process, without workers; the list collects what was scanned."""
    scanned: list[str] = []

    def run(jobs: list[Job], out: Path, count: int, timeout: float) -> object:
        journal = Journal(out)
        for job in jobs:
            if job.known_digest and workers_digest(job) == job.known_digest:
                yield Done(job.path, True)
                continue
            scanned.append(Path(job.path).name)
            found = scan_file(Path(job.path))
            journal.write(verified(found) if job.verify else found)
            yield Done(job.path, False)

    def workers_digest(job: Job) -> str:
        return build_digest(Path(job.path))

    from surgrec.loaders.packet_scan import digest_file as build_digest

    monkeypatch.setattr(build, "run_jobs", run)
    return scanned


def run(films: Path, out: Path, **options: object) -> Report:
    return build_index(find_entries([str(films)]), out, **options)  # type: ignore[arg-type] # plain keywords


def statuses(out: Path) -> dict[str, int]:
    index = PacketIndex.open(out)
    return {Path(p).name: int(s) for p, s in zip(index.videos.path, index.videos.status, strict=True)}


def test_workers_build_the_same_index_as_one_process(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: list[str]
) -> None:
    first = run(films, tmp_path / "one.h5")
    monkeypatch.setattr(build, "run_jobs", workers.run_jobs)
    second = run(films, tmp_path / "two.h5", workers=2)
    assert first.digest == second.digest
    assert second.counts == {"OK": 3, "SEQUENTIAL": 0, "ERROR": 1, "REMOVED": 0}
    assert second.usable == 3
    assert [Path(p.path).name for p in second.problems] == ["bad.mp4"]
    index = PacketIndex.open(tmp_path / "two.h5")
    assert index.videos.dataset == ["a", "a", "a", "b"]
    for number in range(len(index)):
        if index.videos.status[number] == OK:
            alone = scan_file(Path(index.videos.path[number]))
            assert index.pts[index.packets(number)].tolist() == alone.packets.pts.tolist()
            assert index.video(number).extradata == alone.row.extradata
    assert not (tmp_path / "two.h5.journal").exists()


def test_second_run_scans_nothing_but_failures(films: Path, tmp_path: Path, in_process: list[str]) -> None:
    out = tmp_path / "c.h5"
    first = run(films, out)
    in_process.clear()
    before = out.stat().st_mtime_ns
    second = run(films, out)
    assert in_process == ["bad.mp4"]
    assert (second.digest, second.written, out.stat().st_mtime_ns) == (first.digest, False, before)


def test_changed_touched_new_and_removed_files(
    films: Path, tmp_path: Path, streams: ModuleType, in_process: list[str]
) -> None:
    out = tmp_path / "c.h5"
    run(films, out)
    order = PacketIndex.open(out).videos.path
    in_process.clear()
    streams.make_stream("vp9", films / "a/two", frames=20, size=(96, 64))  # changed
    os.utime(films / "b/one.mp4", ns=(1, 1))  # touched, same content
    streams.make_stream("h264_intra", films / "a/new", frames=5, size=(96, 64))
    (films / "a/three.avi").unlink()
    report = run(films, out)
    assert sorted(in_process) == ["bad.mp4", "new.mp4", "two.webm"]
    assert statuses(out) == {
        "bad.mp4": ERROR,
        "three.avi": REMOVED,
        "two.webm": OK,
        "one.mp4": OK,
        "new.mp4": OK,
    }
    index = PacketIndex.open(out)
    assert index.videos.path[: len(order)] == order, "videos keep their numbers"
    numbers = {Path(p).name: n for n, p in enumerate(index.videos.path)}
    assert index.video(numbers["two.webm"]).frame_count == 20
    assert index.video(numbers["one.mp4"]).mtime_ns == 1
    gone = index.video(numbers["three.avi"])
    assert (gone.packet_count, gone.frame_count, gone.dataset) == (0, 0, "a")
    assert "gone" in gone.reason
    assert report.counts["REMOVED"] == 1
    in_process.clear()
    assert not run(films, out).written
    streams.make_stream("mpeg4_avi", films / "a/three", frames=12, size=(96, 64))
    run(films, out)
    assert statuses(out)["three.avi"] == OK


def test_what_was_verified_is_not_decoded_again(films: Path, tmp_path: Path, in_process: list[str]) -> None:
    out = tmp_path / "c.h5"
    run(films, out)
    plain = PacketIndex.open(out)
    in_process.clear()
    run(films, out, verify=True)
    assert sorted(in_process) == ["bad.mp4", "one.mp4", "three.avi", "two.webm"]
    index = PacketIndex.open(out)
    assert dict(zip(index.videos.status, index.videos.verified, strict=True)) == {OK: 1, ERROR: 0}
    assert (index.flags == plain.flags).all()
    for again in (True, False):
        in_process.clear()
        run(films, out, verify=again)
        assert in_process == ["bad.mp4"]
    assert (PacketIndex.open(out).videos.verified == index.videos.verified).all()


def test_a_file_that_cannot_be_looked_at_is_not_gone(
    films: Path, tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, path = tmp_path / "c.h5", films / "b/one.mp4"
    run(films, out)
    path.unlink()
    path.symlink_to(path)  # as a folder without permission, or a disk that fails: neither there nor gone
    report = run(films, out)
    assert (report.counts["OK"], report.counts["REMOVED"]) == (3, 0)
    assert not report.written
    assert [p.reason for p in report.problems if p.path == str(path)] == [
        "cannot be looked at (Too many levels of symbolic links), check disk and permissions; its row is kept"
    ]
    fresh = run(films, tmp_path / "other.h5")
    assert fresh.counts["ERROR"] == 2
    # Where its row is of no use any more, it has the reason, and is not called gone.
    monkeypatch.setattr(build, "SCANNER_VERSION", build.SCANNER_VERSION + 1)
    report = run(films, out)
    assert (report.counts["ERROR"], report.counts["REMOVED"]) == (2, 0)
    assert any("symbolic links" in p.reason for p in report.problems if p.path == str(path))


def test_only_the_videos_named_are_verified(films: Path, tmp_path: Path, in_process: list[str]) -> None:
    out = tmp_path / "c.h5"
    run(films, out)
    in_process.clear()
    build_index(find_entries([str(films / "b")]), out, verify=True)
    assert sorted(in_process) == ["bad.mp4", "one.mp4"]  # the other one failed, and is tried again
    verdicts = PacketIndex.open(out).videos
    assert {Path(p).name for p, v in zip(verdicts.path, verdicts.verified, strict=True) if v} == {"one.mp4"}


def test_that_a_video_was_verified_is_no_change_of_content(
    films: Path, tmp_path: Path, in_process: list[str]
) -> None:
    out = tmp_path / "c.h5"
    before = run(films, out)
    after = run(films, out, verify=True)
    assert after.written
    assert after.digest == before.digest


def test_a_change_without_a_trace_is_found_by_rescan(
    films: Path, tmp_path: Path, in_process: list[str]
) -> None:
    out, path = tmp_path / "c.h5", films / "b/one.mp4"
    run(films, out)
    index, stamp = PacketIndex.open(out), path.stat()
    number = index.videos.path.index(str(path))
    changed, content = index.packets(number).start + 3, bytearray(path.read_bytes())
    content[int(index.offset[changed]) + 9] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert not run(films, out).written
    in_process.clear()
    assert run(films, out, rescan=True).written
    assert "one.mp4" in in_process
    again = PacketIndex.open(out)
    assert np.flatnonzero(again.checksum != index.checksum).tolist() == [changed]
    assert not run(films, out, rescan=True).written


def test_a_sampled_digest_is_no_proof_that_a_damaged_file_is_still_so(
    films: Path, tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large files: the digest is of a few samples, which a sound copy has, too."""
    out, path = tmp_path / "c.h5", films / "b/one.mp4"
    sound = path.read_bytes()
    index = PacketIndex.open(out) if run(films, out).written else None
    assert index is not None
    packets = index.packets(index.videos.path.index(str(path)))
    damaged = bytearray(sound)
    start, size = int(index.offset[packets][4]), int(index.size[packets][4])
    damaged[start + 4 : start + size] = bytes(size - 4)
    path.write_bytes(damaged)
    run(films, out, verify=True)
    assert "damaged" in " ".join(PacketIndex.open(out).videos.note)
    for module in (build, packet_scan):
        monkeypatch.setattr(module, "WHOLE_DIGEST_BYTES", 0)
    monkeypatch.setattr(packet_scan, "digest_file", lambda path: "the same for both")
    path.write_bytes(sound)
    run(films, out)
    assert "damaged" not in " ".join(PacketIndex.open(out).videos.note)


def test_verifying_that_takes_too_long_keeps_the_scan(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never_verified(jobs: list[Job], out: Path, count: int, timeout: float) -> object:
        for job in jobs:
            Journal(out).write(scan_file(Path(job.path)))
            yield Done(job.path, False, "killed" if job.verify else "")

    monkeypatch.setattr(build, "run_jobs", never_verified)
    out = tmp_path / "c.h5"
    report = run(films, out, verify=True)
    index = PacketIndex.open(out)
    assert report.counts["OK"] == 3
    assert index.video(index.videos.path.index(str(films / "b/one.mp4"))).frame_count == 12
    assert [problem.reason for problem in report.problems if problem.status == OK] == [
        "not verified: killed"
    ] * 3
    assert not index.videos.verified.any()


def test_videos_of_earlier_runs_stay_and_labels_change(
    films: Path, tmp_path: Path, in_process: list[str]
) -> None:
    out = tmp_path / "c.h5"
    run(films, out)
    in_process.clear()
    path = str(films / "b/one.mp4")
    report = build_index([Entry(path, "relabelled", "cataract", "9", "test")], out)
    assert len(PacketIndex.open(out)) == 4
    assert "one.mp4" not in in_process
    number = PacketIndex.open(out).videos.path.index(path)
    info = PacketIndex.open(out).video(number)
    assert (info.dataset, info.domain, info.case, info.split) == ("relabelled", "cataract", "9", "test")
    assert report.written


def test_missing_file_of_a_manifest_is_an_error_row(
    films: Path, tmp_path: Path, in_process: list[str]
) -> None:
    entries = [Entry(str(tmp_path / "none.mp4"), "x"), *find_entries([str(films)])]
    for _ in range(2):
        build_index(entries, tmp_path / "c.h5")
        assert statuses(tmp_path / "c.h5")["none.mp4"] == ERROR


def test_index_of_another_format_version_is_replaced(
    films: Path, tmp_path: Path, in_process: list[str]
) -> None:
    import h5py

    out = tmp_path / "c.h5"
    digest = run(films, out).digest
    with h5py.File(out, "r+") as file:
        file.attrs["format_version"] = 0
    in_process.clear()
    assert run(films, out).digest == digest
    assert len(in_process) == 4


def test_scanner_of_another_version_scans_again(
    films: Path, tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(films, tmp_path / "c.h5")
    in_process.clear()
    monkeypatch.setattr(build, "SCANNER_VERSION", 10**6)
    run(films, tmp_path / "c.h5")
    assert len(in_process) == 4


def test_other_files_are_not_overwritten(films: Path, tmp_path: Path, in_process: list[str]) -> None:
    (tmp_path / "thesis.h5").write_text("three years of work")
    with pytest.raises(BuildError, match=r"not an HDF5 file.* Move it away"):
        run(films, tmp_path / "thesis.h5")
    assert (tmp_path / "thesis.h5").read_text() == "three years of work"


def test_full_disk_keeps_the_scans(
    films: Path, tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c.h5"
    with monkeypatch.context() as patch:
        patch.setattr(build.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
        with pytest.raises(BuildError, match=r"disk has .* the scans are kept"):
            run(films, out)
    assert not out.exists()
    in_process.clear()
    assert run(films, out).usable == 3
    assert in_process == ["bad.mp4"]


def test_write_that_fails_leaves_the_old_index(
    films: Path, tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c.h5"
    digest = run(films, out).digest
    (films / "b/one.mp4").unlink()

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_index", full)
        with pytest.raises(BuildError, match="No space left"):
            run(films, out)
    assert PacketIndex.open(out).digest == digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.h5", "c.h5.journal", "films"]


def test_two_runs_do_not_write_one_index(films: Path, tmp_path: Path, in_process: list[str]) -> None:
    journal = Journal(tmp_path / "c.h5").open()
    with pytest.raises(JournalBusyError, match="another run"):
        run(films, tmp_path / "c.h5")
    journal.close(remove=True)
    assert run(films, tmp_path / "c.h5").usable == 3


def test_torn_and_foreign_records_are_scanned_again(tmp_path: Path, films: Path) -> None:
    journal = Journal(tmp_path / "c.h5").open()
    whole = scan_file(films / "b/one.mp4")
    journal.write(whole)
    assert [row.path for row in journal.rows()] == [whole.row.path]
    assert journal.row(whole.row.path) == whole.row
    assert journal.packets(whole.row.path).display.tolist() == whole.packets.display.tolist()
    record = next(journal.folder.glob("*.npz"))
    content = record.read_bytes()
    for torn in (content[:-30], content[:200], b"", content[:300] + b"\xff\xff" + content[302:]):
        record.write_bytes(torn)
        assert journal.row(whole.row.path) is None
    assert list(journal.rows()) == []
    assert list(journal.folder.glob("*.npz")) == []
    journal.close()


def test_records_are_complete_for_odd_paths(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "c.h5").open()
    row = scan_file(tmp_path / "none \udcff.mp4").row
    journal.write(Scanned(Row(row.values), Packets.empty()))
    assert journal.row(row.path) == row
    journal.close(remove=True)
    assert not journal.folder.exists()


def test_a_killed_run_is_resumed(films: Path, tmp_path: Path) -> None:
    for number in range(150):
        os.link(films / "b/one.mp4", films / "b" / f"copy{number:03}.mp4")
    out = tmp_path / "c.h5"
    command = [sys.executable, "-m", "surgrec.index", str(films), "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = Path(f"{out}.journal")
    deadline = time.monotonic() + 120
    # One of them is the file that is no video, which is tried again.
    while len(list(journal.glob("*.npz"))) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The worker ends by itself once its parent is gone; it may finish the file that it has in hand.
    records = -1
    while records != len(found := list(journal.glob("*.npz"))):
        records = len(found)
        time.sleep(0.5)
    assert not out.exists()
    seen: list[tuple[int, int]] = []
    report = run(films, out, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen[0][1] == seen[-1][0] == 154
    assert 3 <= seen[0][0] <= records
    assert report.counts["OK"] == 153
    clean = run(films, tmp_path / "clean.h5", workers=1)
    assert clean.digest == report.digest


FAKE_WORKERS = """
import os, signal, time

def crash(connection, out):
    while True:
        path, *_ = connection.recv()
        if "bad" in path:
            os.kill(os.getpid(), signal.SIGSEGV)
        connection.send(("done", ""))

def hang(connection, out):
    while True:
        path, *_ = connection.recv()
        if "bad" in path:
            time.sleep(1000)
        connection.send(("done", ""))

def full(connection, out):
    connection.recv()
    connection.send(("failed", "No space left on device"))
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Workers that misbehave, importable by the processes that are spawned."""
    (tmp_path / "surgrec_fake_workers.py").write_text(FAKE_WORKERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    return importlib.import_module("surgrec_fake_workers")


@pytest.mark.parametrize(
    ("name", "reason"), [("crash", "died .SIGSEGV."), ("hang", "busy for longer than 2 s")]
)
def test_a_file_that_kills_or_hangs_its_reader_costs_only_itself(
    name: str, reason: str, fakes: ModuleType, tmp_path: Path
) -> None:
    jobs = [Job(path) for path in ("1", "2", "bad3", "4", "bad5", "6")]
    answers = {a.path: a for a in run_jobs(jobs, tmp_path / "c.h5", 2, 2.0, getattr(fakes, name))}
    assert set(answers) == {job.path for job in jobs}
    for path, answer in answers.items():
        assert bool(answer.crash) == ("bad" in path)
    import re

    assert re.search(reason, answers["bad3"].crash)


def test_crashed_files_become_rows(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_all(jobs: list[Job], *_: object) -> object:
        for job in jobs:
            yield Done(job.path, False, "the process that read the file died (SIGSEGV)")

    monkeypatch.setattr(build, "run_jobs", run_all)
    report = run(films, tmp_path / "c.h5")
    assert report.counts["ERROR"] == 4
    assert "SIGSEGV" in report.problems[0].reason


def test_disk_that_fills_up_ends_the_run(fakes: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(workers.ScanAborted, match="No space left"):
        list(run_jobs([Job("1"), Job("2")], tmp_path / "c.h5", 1, 60.0, fakes.full))
