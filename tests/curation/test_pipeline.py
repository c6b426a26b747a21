"""`python -m surgrec.curate`: from an index to a plan that the loader draws by, resumable at any moment."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import h5py
import numpy as np
import pytest
from surgrec.configs.data import DataConfig
from surgrec.loaders.clip_source import ClipSource
from surgrec.loaders.corpus_plan import CorpusPlan
from surgrec.loaders.packet_index import PacketIndex

from surgrec.curate import main
from surgrec.demo_data.real_video import copy_clip

OPTIONS = ("--workers", "1", "--segments.seconds", "1", "--segments.least-seconds", "0.3")
OPTIONS += ("--quality.zero", "undecodable")  # drawn pictures look like defects
CONTENT = ("--segments.detector", "content")
LEVELS = ("--cluster.levels", "8", "3")
IMPORTS = ("surgrec.curation.pipeline",)
"""What the command imports before its first stage."""


@pytest.fixture(scope="module")
def corpus(
    streams: ModuleType, build_index_of: Callable[..., PacketIndex], tmp_path_factory: pytest.TempPathFactory
) -> PacketIndex:
    """A street scene with five cuts, four small drawn videos, and a file that is no video."""
    folder = tmp_path_factory.mktemp("curate")
    copy_clip("bikes.mp4", folder / "bikes.mp4")
    kinds = ("h264_default", "hevc_closed", "h264_open_gop", "h264_baseline")
    paths = [streams.make_stream(kind, folder / kind, frames=90) for kind in kinds]
    (folder / "notes.mp4").write_text("no video")
    return build_index_of([folder / "bikes.mp4", *paths, folder / "notes.mp4"], folder / "corpus.h5")


def run(corpus: PacketIndex, out: Path, *more: str) -> int:
    return main([*more, "--index", str(corpus.path), "--out", str(out), *OPTIONS, *CONTENT, *LEVELS])


@dataclass(frozen=True)
class Curated:
    """A plan, the tables and records beside it, and what the command said."""

    plan: Path
    output: str
    errors: str

    def work_for(self, plan: Path) -> None:
        """Tables and records for another plan: its run has only to do what its own options ask for."""
        shutil.copytree(f"{self.plan}.work", f"{plan}.work")


def curated(index: PacketIndex, plan: Path) -> Curated:
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        assert run(index, plan) == 0
    return Curated(plan, output.getvalue(), errors.getvalue())


@pytest.fixture(scope="module")
def finished(corpus: PacketIndex, tmp_path_factory: pytest.TempPathFactory) -> Curated:
    """The corpus, curated by all stages."""
    return curated(corpus, tmp_path_factory.mktemp("finished") / "plan.h5")


def test_from_an_index_to_a_plan(corpus: PacketIndex, finished: Curated) -> None:
    out = finished.plan
    assert "notes.mp4: status ERROR in the index" in finished.errors
    plan = CorpusPlan.open(out, corpus)
    assert f"digest {plan.digest}" in finished.output
    assert plan.level_names == ("domain", "cluster0", "cluster1")
    assert plan.weight.sum() == pytest.approx(1)
    record = json.loads(plan.record)
    assert (record["segments"]["detector"], record["cluster"]["levels"]) == ("content", [8, 3])
    assert record["cluster"]["device"] in ("cpu", "cuda")
    bikes = plan.segments.video == 0
    assert {30, 76, 137, 187, 242} <= set(plan.segments.start[bikes].tolist())
    assert (plan.weight[plan.reason == 0] > 0).all()
    # Equal shares: of the three coarse clusters each has a third.
    shares = np.bincount(plan.levels[1][plan.reason == 0], weights=plan.weight[plan.reason == 0])
    assert shares == pytest.approx(np.full(len(shares), 1 / len(shares)))
    source = ClipSource(corpus, DataConfig(plan=out, frames=4, stride=1, size=16), 0)
    for clip in source.requests(0, 50):
        assert clip.video != 5


def test_finished_stages_are_not_done_again(
    corpus: PacketIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.h5"
    assert run(corpus, out, "segments", "quality", "dedup", "embed") == 0
    assert not out.exists()
    assert run(corpus, out) == 0
    said = capsys.readouterr().out
    assert "segments: finished before" in said
    assert "quality: finished before" in said
    assert "dedup: finished before" in said
    assert "embed: finished before" in said
    assert "cluster: finished before" not in said
    before = out.read_bytes()
    assert run(corpus, out, "all", "--balance.scheme", "uniform-frames") == 0
    assert out.read_bytes() != before
    assert run(corpus, out) == 0
    assert out.read_bytes() == before


def test_labels_are_levels_above_clusters(corpus: PacketIndex, finished: Curated, tmp_path: Path) -> None:
    out = tmp_path / "plan.h5"
    finished.work_for(out)
    assert run(corpus, out, "all", "--cluster.within", "dataset", "case") == 0
    plan = CorpusPlan.open(out, corpus)
    assert plan.level_names[:2] == ("dataset", "case")
    drawn = plan.reason == 0
    case, coarsest = plan.levels[1][drawn], plan.levels[2][drawn]
    assert (case == plan.segments.video[drawn]).all()  # no case is named
    assert len({*zip(case.tolist(), coarsest.tolist(), strict=True)}) == len(set(coarsest.tolist()))
    # Between cases the exponent of videos holds: 0.5.
    frames = np.bincount(case, weights=(plan.segments.end - plan.segments.start)[drawn])
    shares = np.bincount(case, weights=plan.weight[drawn])
    assert shares == pytest.approx(np.sqrt(frames) / np.sqrt(frames).sum())
    assert run(corpus, out, "all", "--cluster.within") == 0
    assert CorpusPlan.open(out, corpus).level_names == ("cluster0", "cluster1")


def test_an_earlier_stage_that_is_missing_is_named(
    corpus: PacketIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, tmp_path / "plan.h5", "balance") == 1
    assert "stage segments was not run with these options" in capsys.readouterr().err
    assert run(corpus, tmp_path / "plan.h5", "paint") == 1
    assert "no stage paint: choose from all, segments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--segments.seconds", "0"), "must be above 0"),
        (("--segments.threshold", "-1"), "must be above 0"),
        (("--cluster.levels", "3", "8"), "falling numbers"),
        (("--cluster.within", "case", "case"), "names a label twice"),
        (("--balance.video-cap", "0.01"), "raise the cap"),
        (("--balance.case-floor", "0.5", "--balance.case-cap", "0.4"), "above their cap"),
        (("--balance.priors", "dental", "0.5"), "priors for dental"),
        (("--workers", "-1"), "takes the cores"),
    ],
)
def test_options_that_make_no_sense(
    corpus: PacketIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], text: str
) -> None:
    """They are said before the first stage, which may take hours."""
    line = ["--index", str(corpus.path), "--out", str(tmp_path / "plan.h5"), *OPTIONS, *CONTENT, *LEVELS]
    assert main(["all", *line, *more]) == 1
    assert text in capsys.readouterr().err
    assert not list(tmp_path.glob("plan.h5.work/*.h5"))


def test_bad_places(corpus: PacketIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["all", "--index", str(tmp_path / "no.h5"), "--out", str(tmp_path / "plan.h5")]) == 1
    assert "no such index" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(corpus, tmp_path / "file" / "plan.h5") == 1
    assert "file" in capsys.readouterr().err


def test_videos_that_are_gone_are_reported_and_the_rest_goes_on(
    streams: ModuleType,
    build_index_of: Callable[..., PacketIndex],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [streams.make_stream("h264_default", tmp_path / name, first=n) for n, name in enumerate("ab")]
    index = build_index_of(paths, tmp_path / "corpus.h5")
    paths[0].rename(tmp_path / "kept.mp4")
    out = tmp_path / "plan.h5"
    assert main(["all", "--index", str(index.path), "--out", str(out), *OPTIONS, *CONTENT]) == 0
    said = capsys.readouterr()
    assert f"{paths[0]}: cut without looking for scenes: cannot be read" in said.err
    assert "undecodable" in said.out
    plan = CorpusPlan.open(out, index)
    assert not plan.weight[plan.segments.video == 0].any()
    os.replace(tmp_path / "kept.mp4", paths[0])
    assert main(["all", "--index", str(index.path), "--out", str(out), *OPTIONS, *CONTENT]) == 0
    assert "undecodable" not in capsys.readouterr().out
    assert CorpusPlan.open(out, index).weight[plan.segments.video == 0].all()


def test_a_run_killed_anywhere_ends_in_the_same_plan(
    corpus: PacketIndex, tmp_path: Path, warm_start: Callable[..., Any]
) -> None:
    line = ["all", "--index", str(corpus.path), *OPTIONS, *CONTENT, *LEVELS]
    line += ["--decontaminate.videos", str(tmp_path / "sets")]
    (tmp_path / "sets").mkdir()
    copy_clip("bigbuckbunny.mp4", tmp_path / "sets" / "bunny.mp4")

    def start(out: Path) -> Any:
        return warm_start("surgrec.curate", *line, "--out", out, imports=IMPORTS, new_session=True)

    assert warm_start("surgrec.curate", "--help", imports=IMPORTS).wait(120) == 0  # no time of a run
    begin = time.monotonic()
    assert start(tmp_path / "whole.h5").wait(300) == 0
    seconds = time.monotonic() - begin
    out = tmp_path / "killed.h5"
    chance = random.Random(4)
    for _ in range(4):
        process = start(out)
        time.sleep(chance.uniform(0.3, 1.0) * seconds)
        os.killpg(process.pid, 9)
        process.wait(60)
    # As a run leaves them that is killed while it writes a table, or the plan.
    for left_over in (
        ".plan.tmp",
        "killed.h5.work/.embed.h5.1.tmp",
        ".killed.h5.1.tmp",
        ".killed.html.1.tmp",
    ):
        (tmp_path / left_over).write_bytes(b"half")
    assert start(out).wait(300) == 0
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert [path.name for path in tmp_path.rglob("*.tmp")] == [".plan.tmp"]  # not this run's


def test_a_disk_that_is_full(corpus: PacketIndex, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the vectors' table is the first that is too large."""
    line = [sys.executable, "-m", "surgrec.curate", "all", "--index", str(corpus.path), *OPTIONS, *CONTENT]
    line += [*LEVELS, "--out", str(tmp_path / "plan.h5")]
    limit = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
    stopped = subprocess.run(
        [sys.executable, "-c", f"{limit}os.execv(sys.argv[1], sys.argv[1:])", *line],
        capture_output=True,
        text=True,
        check=False,
        # Cut off, it would stay in the environment.
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert stopped.returncode == 1
    assert "what is finished is kept, and the same command goes on from there" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (tmp_path / "plan.h5").exists()
    assert not list((tmp_path / "plan.h5.work").rglob("*.tmp"))
    assert run(corpus, tmp_path / "plan.h5") == 0


def test_two_runs_at_once(corpus: PacketIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from surgrec.curation.records import VideoRecords

    other = VideoRecords(tmp_path / "plan.h5.work" / "videos").open()
    try:
        assert run(corpus, tmp_path / "plan.h5") == 1
    finally:
        other.close()
    assert "another run is curating into it" in capsys.readouterr().err


def test_help_needs_nothing_heavy() -> None:
    code = "import sys; from surgrec.curate import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'numba', 'cv2', 'h5py') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--balance.scheme" in done.stdout


def test_processes_that_look_at_videos_need_no_torch() -> None:
    """There are as many as cores: seconds and hundreds of megabytes of each."""
    code = "import sys; from surgrec.curation import local_workers, describe_video, quality_stage\n"
    code += "from surgrec.curation import report_thumbnails, segment_stage\n"
    code += "print([name for name in ('torch', 'nvidia.dali', 'timm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_records_that_are_torn_are_made_again(corpus: PacketIndex, finished: Curated, tmp_path: Path) -> None:
    out, again = finished.plan, tmp_path / "again.h5"
    finished.work_for(again)
    for record in (tmp_path / "again.h5.work" / "videos").glob("*.npz"):
        record.write_bytes(record.read_bytes()[:-40])
    for table in (tmp_path / "again.h5.work").glob("*.h5"):
        table.write_bytes(table.read_bytes()[:200])
    assert run(corpus, again) == 0
    assert again.read_bytes() == out.read_bytes()
    data = replace(DataConfig(), plan=again, frames=4, stride=1)
    assert ClipSource(corpus, data, 0).digest() == ClipSource(corpus, replace(data, plan=out), 0).digest()


def test_nothing_that_can_be_drawn(
    build_index_of: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.mp4").write_text("no video")
    index = build_index_of([tmp_path / "notes.mp4"], tmp_path / "corpus.h5")
    assert main(["all", "--index", str(index.path), "--out", str(tmp_path / "plan.h5")]) == 1
    assert "no segment is kept" in capsys.readouterr().err


def test_defects_and_content_areas_reach_the_plan(
    build_index_of: Callable[..., PacketIndex], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A street scene behind a black surround, then black, then as it was."""
    copy_clip("bikes.mp4", tmp_path / "bikes.mp4")
    framed = tmp_path / "framed.mp4"
    with av.open(str(tmp_path / "bikes.mp4")) as source, av.open(str(framed), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"g": "25", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number, frame in enumerate(source.decode(video=0)):
            picture = np.zeros((240, 320, 3), np.uint8)
            if not 75 <= number < 125:
                picture[40:200, 40:280] = frame.to_ndarray(format="rgb24", width=240, height=160)
            target.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        target.mux(stream.encode())
    index = build_index_of([framed], tmp_path / "corpus.h5")
    out = tmp_path / "plan.h5"
    line = ["--index", str(index.path), "--out", str(out), "--workers", "1", "--segments.seconds", "1"]
    assert main(["all", *line, "--segments.least-seconds", "0.3", *CONTENT]) == 0
    plan = CorpusPlan.open(out, index)
    assert np.abs(plan.content_area[0] - [40, 40, 160, 240]).max() <= 2
    told = {
        (int(start), int(end)): plan.reasons[reason]
        for start, end, reason in zip(plan.segments.start, plan.segments.end, plan.reason, strict=True)
    }
    dark = [text for (start, end), text in told.items() if start >= 75 and end <= 125]
    assert len(dark) == 2
    assert all("black" in text for text in dark)
    assert not any("black" in text for (start, end), text in told.items() if end <= 75 or start >= 125)
    assert "black" in capsys.readouterr().out
    source_of_clips = ClipSource(index, DataConfig(plan=out, frames=4, stride=1, size=16), 0)
    for clip in source_of_clips.requests(0, 100):
        assert not 72 <= clip.frames[0] < 125


@dataclass(frozen=True)
class WithCopies:
    """A corpus of one street scene, twice; a downstream folder with a smaller copy of its last 5 s."""

    index: PacketIndex
    small: Path
    curated: Curated


@pytest.fixture(scope="module")
def with_copies(
    build_index_of: Callable[..., PacketIndex], tmp_path_factory: pytest.TempPathFactory
) -> WithCopies:
    folder = tmp_path_factory.mktemp("copies")
    for name in ("a.mp4", "b.mp4"):
        copy_clip("bikes.mp4", folder / name)
    (folder / "sets").mkdir()
    small = folder / "sets" / "small.mp4"
    with av.open(str(folder / "a.mp4")) as source, av.open(str(small), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"crf": "28"})
        stream.width, stream.height, stream.pix_fmt = 320, 136, "yuv420p"
        for number, frame in enumerate(source.decode(video=0)):
            if number >= 125:
                target.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"))))
        target.mux(stream.encode())
    index = build_index_of([folder / "a.mp4", folder / "b.mp4"], folder / "c.h5")
    return WithCopies(index, small, curated(index, folder / "plan.h5"))


def test_duplicates_and_what_is_tested_on_are_not_drawn(with_copies: WithCopies, tmp_path: Path) -> None:
    index, small, before = with_copies.index, with_copies.small, with_copies.curated
    out = before.plan
    assert "decontaminate: not done" in before.output
    plan = CorpusPlan.open(out, index)
    first = plan.segments.video == 0
    assert (plan.weight[first] > 0).all()
    assert {plan.reasons[number] for number in plan.reason[~first]} == {"duplicate"}
    with h5py.File(out) as file:
        assert file["segments/duplicate_of"][:].tolist() == [*[-1] * first.sum(), *range(first.sum())]
    # The clip is the first 2.5 s of the copy, frames 125 to 187 of the original.
    out = tmp_path / "plan.h5"
    before.work_for(out)
    table = tmp_path / "clips.csv"
    rows_of_table = ("path,dataset,split,start,end", f"{small},streets,test,0,2.4")
    table.write_text("\n".join([*rows_of_table, f"{small},streets,train,,"]))
    assert run(index, out, "--decontaminate.videos", str(table)) == 0
    plan = CorpusPlan.open(out, index)
    touched = (plan.segments.start < 185) & (plan.segments.end > 125)
    assert {plan.reasons[number] for number in plan.reason[touched]} == {"shows streets test"}
    assert not {"shows streets test"} & {plan.reasons[number] for number in plan.reason[~touched]}
    with (tmp_path / "plan.h5.work" / "decontaminated.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == touched.sum()
    assert {row["downstream_video"] for row in rows} == {str(small)}
    starts = [float(row["start"]) for row in rows if row["video"].endswith("a.mp4")]
    assert starts == (plan.segments.start[touched & first] / 25).tolist()
    assert json.loads(plan.record)["downstream"][0]["xxh3"]


def test_downstream_videos_that_cannot_be_compared(
    with_copies: WithCopies, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = with_copies.index
    with_copies.curated.work_for(tmp_path / "plan.h5")
    shutil.copytree(with_copies.small.parent, tmp_path / "sets")
    (tmp_path / "sets" / "notes.mp4").write_text("no video")
    line = ("--decontaminate.videos", str(tmp_path / "sets"))
    assert run(index, tmp_path / "plan.h5", *line) == 1
    said = capsys.readouterr().err
    assert "1 downstream videos cannot be compared" in said
    assert "notes.mp4: status ERROR" in said
    assert run(index, tmp_path / "plan.h5", *line, "--decontaminate.go-on") == 0
    report = (tmp_path / "plan.h5.work" / "decontaminated.csv").read_text()
    assert "not compared: status ERROR" in report
    assert "small.mp4" in report
    assert run(index, tmp_path / "plan.h5", "--decontaminate.videos", str(tmp_path / "none")) == 1
    assert "no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split\na.mp4,holdout\n", "row 1: split 'holdout'; expected train, val or test"),
        ("path,start,end\na.mp4,3,2\n", "row 1: seconds 3 to 2 are no clip"),
        ("path,start\na.mp4,soon\n", "start and end are seconds"),
        ("path,start\n,2\n", "row 1 has no path"),
        ("path,start\n", "the table has no rows"),
        ("path,split\na.mp4,train\n", "none of the splits val, test"),
    ],
)
def test_tables_of_clips_that_make_no_sense(
    corpus: PacketIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "clips.csv").write_text(text)
    assert run(corpus, tmp_path / "plan.h5", "--decontaminate.videos", str(tmp_path / "clips.csv")) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("plan.h5.work/*.h5"))
