"""Runs over folders and indexes: resumed, incremental, and whole whatever happens on the way."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from surgrec.configs.transcode import TranscodeConfig

from surgrec.corpus.discovery import InputError
from surgrec.transcoding import run as run_module
from surgrec.transcoding.journal import FolderBusyError, ProxyJournal
from surgrec.transcoding.manifest import MANIFEST_NAME, ManifestError, open_manifest
from surgrec.transcoding.proxy_file import StorageError
from surgrec.transcoding.run import TranscodeError, transcode
from surgrec.transcoding.sources import Wanted, plain_name
from surgrec.transcoding.workers import Done, Task, TranscodeAborted, run_tasks, why_no_encoder

ConfigOf = Callable[..., TranscodeConfig]


def proxies(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.mp4"))


def test_workers_make_all_and_the_second_run_nothing(
    films: Path, tmp_path: Path, config_of: ConfigOf
) -> None:
    (films / "lap" / "bad.mp4").write_text("no video")
    seen: list[tuple[float, int]] = []
    report = transcode(config_of(films, workers=2), lambda done, of: seen.append((done, of)))
    out = tmp_path / "proxies"
    assert (report.made, report.unchanged, report.usable) == (3, 0, 3)
    assert [(Path(f.path).name, f.reason.split(",")[0]) for f in report.failures] == [
        ("bad.mp4", "no video file that FFmpeg can read")
    ]
    assert seen[0] == (0, 4)
    assert seen[-1] == (4, 4)
    assert report.encoders == {"libx264": 3}
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [Path(line["path"]).name for line in failures] == ["bad.mp4"]
    assert not (out / f"{MANIFEST_NAME}.journal").exists()
    with (out / "videos.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["dataset"] for row in rows] == ["eye", "lap", "lap"]
    assert {row["case"] for row in rows} == {"one", "two", "three"}
    assert [out / row["path"] for row in rows] == proxies(out)
    times = [path.stat().st_mtime_ns for path in proxies(out)]
    again = transcode(config_of(films, workers=2))
    assert (again.made, again.unchanged, len(again.failures)) == (0, 3, 1)
    assert (again.frames, again.bytes) == (report.frames, report.bytes)
    assert [path.stat().st_mtime_ns for path in proxies(out)] == times


def test_labels_come_from_the_index(
    films: Path, tmp_path: Path, config_of: ConfigOf, in_process: list[str]
) -> None:
    from surgrec.corpus.build import build_index
    from surgrec.corpus.discovery import Entry

    (films / "eye" / "bad.mp4").write_text("no video")
    entries = [
        Entry(str(films / "lap" / "one.mp4"), "cholec", "laparoscopy", "case 7", "test"),
        Entry(str(films / "eye" / "bad.mp4"), "eye"),
    ]
    build_index(entries, tmp_path / "corpus.h5", workers=1)
    report = transcode(config_of(index=tmp_path / "corpus.h5"))
    assert (report.made, report.failures) == (1, [])
    record = open_manifest(tmp_path / "proxies").record(0)
    assert [record.values[name] for name in ("dataset", "domain", "case", "split")] == [
        "cholec",
        "laparoscopy",
        "case 7",
        "test",
    ]
    assert record.proxy.startswith("cholec/one-")


def test_only_what_changed_is_done_again(
    films: Path, tmp_path: Path, config_of: ConfigOf, in_process: list[str], streams: ModuleType
) -> None:
    transcode(config_of(films))
    in_process.clear()
    os.utime(films / "lap" / "one.mp4")  # another time, the same content: read, not made
    streams.make_stream("h264_mkv", films / "lap" / "two", frames=30, size=(96, 64))
    proxies(tmp_path / "proxies" / "eye")[0].unlink()
    report = transcode(config_of(films))
    assert sorted(in_process) == ["one.mp4", "three.mp4", "two.mkv"]
    assert (report.made, report.unchanged) == (2, 1)
    in_process.clear()
    assert transcode(config_of(films)).unchanged == 3
    assert in_process == []
    assert transcode(config_of(films, quality=30.0)).made == 3
    area = tmp_path / "area.csv"
    area.write_text("path,top,left,height,width\nfilms/lap/one.mp4,0,0,48,64\n")
    changed = transcode(config_of(films, quality=30.0, content_area=area))
    assert (changed.made, changed.unchanged) == (1, 2)
    assert transcode(config_of(films, quality=30.0, content_area=area, overwrite="all")).made == 3


def test_never_overwrite(
    films: Path, tmp_path: Path, config_of: ConfigOf, in_process: list[str], streams: ModuleType
) -> None:
    transcode(config_of(films / "lap"))
    before = [path.read_bytes() for path in proxies(tmp_path / "proxies")]
    report = transcode(config_of(films, quality=25.0, overwrite="never"))
    assert (report.made, report.kept) == (1, 2)
    assert [path.read_bytes() for path in proxies(tmp_path / "proxies" / "lap")] == before


def test_a_failed_video_keeps_its_former_proxy(
    films: Path, tmp_path: Path, config_of: ConfigOf, in_process: list[str]
) -> None:
    transcode(config_of(films / "lap"))
    (films / "lap" / "one.mp4").write_text("broken now")
    before = proxies(tmp_path / "proxies")
    report = transcode(config_of(films / "lap"))
    assert (report.unchanged, len(report.failures)) == (1, 1)
    assert proxies(tmp_path / "proxies") == before
    assert len(open_manifest(tmp_path / "proxies")) == 2


def test_a_killed_run_is_taken_up(
    films: Path, tmp_path: Path, config_of: ConfigOf, streams: ModuleType
) -> None:
    for number in range(6):
        streams.make_stream("h264_default", films / "lap" / f"more{number}", frames=60, size=(160, 96))
    out = tmp_path / "proxies"
    command = [sys.executable, "-m", "surgrec.transcode", str(films), "--out", str(out), "--workers", "1"]
    options = ["--encoder", "cpu", "--preset", "ultrafast"]
    process = subprocess.Popen([*command, *options], start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob(f"{MANIFEST_NAME}.journal/*.npz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = len(list(out.glob(f"{MANIFEST_NAME}.journal/*.npz")))
    assert 2 <= finished < 9
    (out / "lap" / ".left.mp4.surgrec-partial").write_text("of a killed worker")
    report = transcode(config_of(films))
    assert (report.made, report.unchanged) == (9 - finished, finished)
    assert not list(out.rglob(".*partial"))
    assert len(open_manifest(out)) == 9


def test_two_runs_at_once(films: Path, tmp_path: Path, config_of: ConfigOf, in_process: list[str]) -> None:
    journal = ProxyJournal(tmp_path / "proxies" / MANIFEST_NAME).open()
    with pytest.raises(FolderBusyError, match="another run is writing proxies here"):
        transcode(config_of(films))
    journal.close()
    assert transcode(config_of(films)).made == 3


def test_torn_records_are_made_again(
    films: Path, tmp_path: Path, config_of: ConfigOf, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_manifest", stop)
        with pytest.raises(TranscodeError, match=r"No space left.*same command again"):
            transcode(config_of(films))
    records = sorted((tmp_path / "proxies" / f"{MANIFEST_NAME}.journal").glob("*.npz"))
    assert len(records) == 3
    os.truncate(records[0], 100)
    report = transcode(config_of(films))
    assert (report.made, report.unchanged) == (1, 2)


LIMITED = """
import resource, sys
sys.dont_write_bytecode = True  # cut off, it would stay in the environment
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
from surgrec.transcode import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_ends_the_run_with_one_line(films: Path, tmp_path: Path, streams: ModuleType) -> None:
    """A limit on the size of files, which systems report as they do a full disk."""
    streams.make_stream("h264_default", films / "lap" / "large", frames=90, size=(320, 240))
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    out = tmp_path / "proxies"
    command = [sys.executable, str(script), str(films / "lap" / "large.mp4"), "--out", str(out)]
    options = ["--encoder", "cpu", "--preset", "ultrafast", "--workers", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "File too large" in last
    assert "Free some space" in last
    assert "Traceback" not in done.stderr
    assert proxies(out) == []
    assert not list(out.rglob(".*partial"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(films: Path, tmp_path: Path, config_of: ConfigOf) -> None:
    (tmp_path / "proxies").mkdir(mode=0o500)
    with pytest.raises(TranscodeError, match="Permission denied"):
        transcode(config_of(films))


def test_a_file_where_the_folder_should_be(films: Path, tmp_path: Path, config_of: ConfigOf) -> None:
    (tmp_path / "proxies").write_text("a file")
    with pytest.raises(TranscodeError, match="proxies: cannot be written"):
        transcode(config_of(films))


def test_a_foreign_manifest_is_left_alone(films: Path, tmp_path: Path, config_of: ConfigOf) -> None:
    (tmp_path / "proxies").mkdir()
    (tmp_path / "proxies" / MANIFEST_NAME).write_text("precious")
    with pytest.raises(ManifestError, match="or move the file away"):
        transcode(config_of(films))
    assert (tmp_path / "proxies" / MANIFEST_NAME).read_text() == "precious"


def test_inputs_that_make_no_sense(films: Path, tmp_path: Path, config_of: ConfigOf) -> None:
    with pytest.raises(InputError, match="nothing to transcode"):
        transcode(config_of())
    with pytest.raises(InputError, match="either --index or inputs"):
        transcode(config_of(films, index=tmp_path / "corpus.h5"))
    area = tmp_path / "area.csv"
    area.write_text("path,top,left,height,width\nother.mp4,0,0,8,8\n")
    with pytest.raises(InputError, match="none of its 1 paths is a video of this run"):
        transcode(config_of(films, content_area=area))
    with pytest.raises(InputError, match="choose another --out"):
        transcode(config_of(films, out=films))


def test_proxies_below_the_input_are_no_sources(
    films: Path, config_of: ConfigOf, in_process: list[str]
) -> None:
    out = films / "proxies"
    assert transcode(config_of(films, out=out)).made == 3
    assert transcode(config_of(films, out=out)).unchanged == 3


def test_hostile_names(
    tmp_path: Path, config_of: ConfigOf, in_process: list[str], streams: ModuleType
) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    made = streams.make_stream("h264_default", tmp_path / "a", frames=8, size=(96, 64)).read_bytes()
    names = [
        b"-rf %d.mp4",
        b"caf\xe9\xff.mp4",
        b"two\nlines.mp4",
        b"x" * 250 + b".mp4",
        b"http:a|b.mp4",
        "膀胱.mp4".encode(),
    ]
    for name in names:
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(made)
    report = transcode(config_of(folder))
    assert (report.made, report.failures) == (len(names), [])
    manifest = open_manifest(tmp_path / "proxies")
    assert sorted(os.fsencode(path) for path in manifest.columns["source"]) == sorted(
        os.fsencode(folder) + b"/" + name for name in names
    )
    assert transcode(config_of(folder)).unchanged == len(names)


def test_names_of_proxies() -> None:
    one = Wanted("/a/case 1.mp4", 0, "lap", "", "", "")
    assert one.proxy.startswith("lap/case_1-")
    assert one.proxy != Wanted("/b/case 1.mp4", 0, "lap", "", "", "").proxy
    assert Wanted("/a/x.mp4", 0, "../..", "", "", "").proxy.startswith("_../x-")
    assert plain_name("..") == ""
    assert len(plain_name("ü" * 300).encode()) <= 100


def test_two_sources_with_one_name(
    films: Path, config_of: ConfigOf, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wanted, "proxy", property(lambda self: f"{self.dataset}/same.mp4"))
    report = transcode(config_of(films / "lap"))
    assert report.made == 1
    assert "the name of that of" in report.failures[0].reason


def test_nvenc_that_is_not_there(films: Path, config_of: ConfigOf, in_process: list[str]) -> None:
    with pytest.raises(TranscodeError, match="NVENC cannot be used here"):
        transcode(config_of(films, encoder="nvenc"))
    report = transcode(config_of(films, encoder="auto"))
    assert report.no_nvenc == "no GPU"
    assert report.encoders == {"libx264": 3}


def test_a_preset_that_does_not_exist(films: Path, config_of: ConfigOf) -> None:
    with pytest.raises(TranscodeError, match=r"libx264 does not open.*--preset"):
        transcode(config_of(films, preset="warp"))


def hang_or_die(connection: Any) -> None:
    """A worker that one kind of file kills, another one hangs, and that does the rest."""
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        name = Path(task.wanted.path).stem
        if name == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        if name == "hangs":
            time.sleep(60)
        if name == "full":
            raise_storage(connection, task)
            return
        connection.send(("beat", 0.5))
        connection.send(("made", ""))


def raise_storage(connection: Any, task: Task) -> None:
    error = StorageError(28, "No space left on device", str(task.target))
    connection.send(("aborted", f"{error.filename}: {error.strerror}"))


def test_videos_that_kill_or_hang_a_worker(tmp_path: Path, config_of: ConfigOf) -> None:
    from surgrec.transcoding.options import ProxyOptions

    options = ProxyOptions.of(config_of())
    names = ("fine", "dies", "hangs", "fine2")
    tasks = [
        Task(Wanted(f"/none/{name}.mp4", 0, "d", "", "", ""), str(tmp_path), options, "cpu") for name in names
    ]
    answers = {
        Path(done.task.wanted.path).stem: done for done in run_tasks(tasks, 1, 4.0, target=hang_or_die)
    }
    assert answers["fine"] == Done(tasks[0], "made")
    assert answers["fine2"].kind == "made"
    assert (answers["dies"].kind, "SIGSEGV" in answers["dies"].reason) == ("failed", True)
    assert (answers["hangs"].kind, answers["hangs"].reason) == ("failed", "no sign of life for 4 s")
    full = Task(Wanted("/none/full.mp4", 0, "d", "", "", ""), str(tmp_path), options, "cpu")
    with pytest.raises(TranscodeAborted, match=r"full-.*mp4: No space left on device"):
        list(run_tasks([full], 1, 4.0, target=hang_or_die))


def test_nvenc_really_encodes(films: Path, tmp_path: Path, config_of: ConfigOf) -> None:
    from surgrec.transcoding.options import ProxyOptions

    for codec in ("h264", "hevc"):
        options = ProxyOptions.of(TranscodeConfig(codec=codec, encoder="nvenc"))  # type: ignore[arg-type]
        reason = why_no_encoder(f"{codec}_nvenc", options)
        if reason:
            pytest.skip(f"no NVENC here: {reason}")
    report = transcode(config_of(films, encoder="nvenc", preset="", short_side=256))
    assert (report.made, report.failures) == (3, [])
    assert report.encoders == {"h264_nvenc": 3}
