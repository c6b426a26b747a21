"""ClipLoader on real files and the cpu engine: right pictures, broken files, and ends that do not hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from surgrec.configs.data import DataConfig
from surgrec.loaders.clip_loader import ClipLoader
from surgrec.loaders.clip_source import ClipSource
from surgrec.loaders.dali_graph import CropGraph
from surgrec.loaders.ledger import Ledger, read_ledger
from surgrec.loaders.packet_index import PacketIndex

from surgrec.index import main as index_command

KINDS = (
    "h264_default",
    "h264_open_gop",
    "h264_vfr",
    "h264_rotated",
    "h264_wide_pixels",
    "hevc_closed",
    "vp9",
)
DATA = DataConfig(frames=4, stride=3, size=32, flip=True, threads=2, segment_seconds=1.0)


@pytest.fixture(scope="module")
def corpus(streams: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one video of each kind and their index, corpus.h5."""
    folder = tmp_path_factory.mktemp("corpus")
    for kind in KINDS:
        streams.make_stream(kind, folder / kind, frames=50)
    assert index_command([str(folder), "--out", str(folder / "corpus.h5"), "--workers", "1"]) == 0
    return folder


@pytest.mark.parametrize(
    "data", [DATA, replace(DATA, clips_per_decode=3, repeats=2, shuffle_mib=1)], ids=["alone", "shared"]
)
def test_rows_are_the_cropped_frames_of_a_full_decode(
    corpus: Path, streams: ModuleType, data: DataConfig
) -> None:
    index = PacketIndex.open(corpus / "corpus.h5")
    decoded = {
        video: streams.decode_all(Path(path), index.video(video).rotation)[0]
        for video, path in enumerate(index.videos.path)
    }
    source = ClipSource(index, data, seed=4)
    graph = CropGraph(DATA.size, 1, torch.device("cpu"), threads=1)
    seen = set()
    with ClipLoader(index, data, seed=4, global_batch=10) as loader:
        for _ in range(4):
            batch = next(loader)
            for row, request in enumerate(batch.requests):
                frames = decoded[request.video][list(request.frames)]
                sar = index.video(request.video).sar
                turned = index.video(request.video).rotation % 180 == 90
                ratio = sar[1] / sar[0] if turned else sar[0] / sar[1]
                window = source.crop.windows([request.sample], [frames.shape[2]], [frames.shape[1]], [ratio])
                assert torch.equal(batch.frames[row], graph([frames], window)[0])
                seen.add(request.video)
        assert loader.failures == 0
        assert batch.decoded_frames >= 10
    assert len(seen) == len(KINDS)


def test_frames_a_second_on_an_uneven_rate(corpus: Path) -> None:
    index = PacketIndex.open(corpus / "corpus.h5")
    data = replace(DATA, fps=5.0, stride=1)
    with ClipLoader(index, data, seed=0, global_batch=12) as loader:
        batch = next(loader)
    for request in batch.requests:
        info = index.video(request.video)
        times = index.frame_pts(request.video)[list(request.frames)] * info.time_base[0] / info.time_base[1]
        for k, moment in enumerate(times - times[0]):
            assert moment <= k / 5 + 1e-3
            assert moment > k / 5 - 0.5  # the frame on display, which has begun before


def test_files_that_change_or_vanish_are_ledgered(corpus: Path, streams: ModuleType, tmp_path: Path) -> None:
    for kind in KINDS[:3]:
        streams.make_stream(kind, tmp_path / kind, frames=50)
    assert index_command([str(tmp_path), "--out", str(tmp_path / "corpus.h5"), "--workers", "1"]) == 0
    gone, cut, kept = sorted(tmp_path.glob("*.mp4"))
    gone.unlink()
    os.truncate(cut, cut.stat().st_size // 2)
    index = PacketIndex.open(tmp_path / "corpus.h5")
    data = replace(DATA, max_failures=1.0)
    with (
        Ledger(tmp_path / "ledger.jsonl") as ledger,
        ClipLoader(index, data, seed=0, global_batch=12, ledger=ledger) as loader,
    ):
        batch = next(loader)
        assert {index.videos.path[request.video] for request in batch.requests} == {str(kept)}
        assert batch.substitutes > 0
        assert loader.failures >= batch.substitutes
    reasons = {entry.path: entry.reason for entry in read_ledger(tmp_path / "ledger.jsonl")}
    assert set(reasons) == {str(gone), str(cut)}
    assert "No such file" in reasons[str(gone)]
    assert "another version than the index" in reasons[str(cut)]


def run_script(folder: Path, body: str) -> subprocess.Popen[str]:
    """A process that makes `loader` on the corpus and then runs `body`."""
    script = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from surgrec.configs.data import DataConfig
        from surgrec.loaders.clip_loader import ClipLoader
        from surgrec.loaders.ledger import Ledger
        from surgrec.loaders.packet_index import PacketIndex

        folder = Path({str(folder)!r})
        data = DataConfig(frames=4, stride=3, size=32, threads=2, segment_seconds=1.0)
        ledger = Ledger(folder / "exit.jsonl")
        loader = ClipLoader(PacketIndex.open(folder / "corpus.h5"), data, 0, 16, ledger=ledger)
        """
    ) + textwrap.dedent(body)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_a_process_that_never_closes_its_loader_ends(corpus: Path) -> None:
    process = run_script(corpus, "next(loader)\nprint('leaving', flush=True)\n")
    out, error = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "leaving\n"), error
    assert error == ""
    assert read_ledger(corpus / "exit.jsonl") == []  # clips given up at the exit are no failures


def test_an_interrupt_in_the_middle_of_an_epoch_ends_the_process(corpus: Path) -> None:
    process = run_script(
        corpus,
        """
        import signal
        # A shell starts what it puts in the background with interrupts ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with loader:
                for batch in loader:
                    print("batch", flush=True)
        except KeyboardInterrupt:
            sys.exit(130)
        """,
    )
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "batch\n"
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error == ""
    assert time.monotonic() - started < 30
    assert read_ledger(corpus / "exit.jsonl") == []


def test_an_error_in_the_training_loop_is_not_held_up(corpus: Path) -> None:
    process = run_script(corpus, "next(loader)\nraise SystemExit('training failed')\n")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert error == "training failed\n"
