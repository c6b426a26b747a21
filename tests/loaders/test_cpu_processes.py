"""Decoding processes: the cpu engine's frames as planes, and what happens when a process dies or hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from surgrec.kernels.nv12_crop import to_rgb
from surgrec.kernels.planes import Planes
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.arena import Arena
from surgrec.loaders.engines.base import ClipFailure, DecodedClip
from surgrec.loaders.engines.cpu_processes import LATE_SECONDS, CpuProcesses, ProcessWorker
from surgrec.loaders.engines.decode_process import Setup

CPU = torch.device("cpu")
SMOOTH_CHROMA = ("h264_10bit", "hevc_10bit", "h264_interlaced")
"""FFmpeg interpolates the chroma of these when it makes RGB; that of others it repeats, as we always do."""


@pytest.fixture(scope="module")
def engine(stream_corpus) -> Iterator[CpuProcesses]:
    with CpuProcesses(stream_corpus.index, CPU, threads=1) as made:
        yield made


def test_pictures_are_those_of_a_full_decode(stream_corpus, stream_kind, engine):
    images = stream_corpus.reference(stream_kind)[0]
    frames = (0, 3, 3, 7, len(images) - 1)
    (clip,) = engine.decode([ClipRequest(5, stream_corpus.video[stream_kind], frames)])
    assert isinstance(clip, DecodedClip), clip
    assert isinstance(clip.frames, Planes)
    assert clip.frames.rows == (0, 1, 1, 2, 3)
    assert len(clip.frames.planes[0]) == 4
    assert (clip.height, clip.width) == images.shape[1:3]
    assert 0 < clip.decoded_frames <= clip.fed_packets
    difference = to_rgb(clip.frames).numpy().astype(int) - images[list(frames)]
    if stream_kind in SMOOTH_CHROMA:
        t, h, w, _ = difference.shape
        assert np.abs(difference.reshape(t, h // 8, 8, w // 8, 8, 3).mean((2, 4))).mean() < 4
    else:
        assert np.abs(difference).max() <= 3


def test_clips_of_any_size_one_after_the_other(stream_corpus, engine):
    """A clip's planes are its own: the next one, larger or smaller, leaves them alone."""
    video = stream_corpus.video["h264_default"]
    wide = stream_corpus.video["h264_444"]
    requests = [
        ClipRequest(0, v, tuple(range(n))) for v, n in ((video, 2), (wide, 9), (video, 16), (video, 1))
    ]
    first = engine.decode(requests)
    kept = [[plane.clone() for plane in clip.frames.planes] for clip in first]
    engine.decode(requests[::-1])
    for clip, planes in zip(first, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(clip.frames.planes, planes, strict=True))


def test_wrong_requests_raise(engine):
    with pytest.raises(ValueError, match="outside the index"):
        engine.decode([ClipRequest(0, 10**6, (0,))])
    with pytest.raises(ValueError, match="frames 0 to 1000000 asked"):
        engine.decode([ClipRequest(0, 0, (0, 10**6))])
    with pytest.raises(ValueError, match="number of seconds above 0"):
        CpuProcesses(engine.index, CPU, threads=1, timeout=0)


def children() -> list[int]:
    """Decoding processes of this process."""
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "decode_process"], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


def test_a_process_that_dies_costs_one_clip(stream_corpus):
    request = ClipRequest(0, stream_corpus.video["h264_default"], (0, 4))
    before = set(children())
    with CpuProcesses(stream_corpus.index, CPU, threads=1) as engine:
        assert isinstance(engine.decode([request])[0], DecodedClip)
        (process,) = set(children()) - before
        os.kill(process, signal.SIGSEGV)
        (failure,) = engine.decode([request])
        assert isinstance(failure, ClipFailure)
        assert "signal 11" in failure.reason
        assert isinstance(engine.decode([request])[0], DecodedClip)
    assert set(children()) == before


def test_a_process_that_hangs_is_killed(stream_corpus):
    request = ClipRequest(0, stream_corpus.video["h264_default"], (0, 4))
    before = set(children())
    with CpuProcesses(stream_corpus.index, CPU, threads=1, timeout=0.5) as engine:
        assert isinstance(engine.decode([request])[0], DecodedClip)
        (process,) = set(children()) - before
        os.kill(process, signal.SIGSTOP)
        started = time.monotonic()
        (failure,) = engine.decode([request])
        assert time.monotonic() - started < 10
        assert isinstance(failure, ClipFailure)
        assert "did not answer within 0.5 s" in failure.reason
        assert isinstance(engine.decode([request])[0], DecodedClip)


def test_a_process_in_the_background_gets_a_core_when_it_is_late(stream_corpus):
    """It is stopped, which looks to the parent as if all cores were taken."""
    request = ClipRequest(0, stream_corpus.video["h264_default"], (0, 4))
    setup = Setup(str(stream_corpus.index.path), "hybrid", True, 16)
    before = set(children())
    worker = ProcessWorker(stream_corpus.index, setup, CPU, 30.0, background=True)
    try:
        assert isinstance(worker.run(request), DecodedClip)
        (process,) = set(children()) - before
        assert os.sched_getscheduler(process) == os.SCHED_IDLE
        os.kill(process, signal.SIGSTOP)
        policies = []

        def let_go() -> None:
            time.sleep(2.5 * LATE_SECONDS)
            policies.append(os.sched_getscheduler(process))
            os.kill(process, signal.SIGCONT)

        thread = threading.Thread(target=let_go)
        thread.start()
        assert isinstance(worker.run(request), DecodedClip)
        thread.join()
        assert policies == [os.SCHED_OTHER]
        assert os.sched_getscheduler(process) == os.SCHED_IDLE
    finally:
        worker.close()


def test_processes_end_with_their_parent(stream_corpus, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, torch\n"
        "from surgrec.loaders.clip_plan import ClipRequest\n"
        "from surgrec.loaders.engines.cpu_processes import CpuProcesses\n"
        "from surgrec.loaders.packet_index import PacketIndex\n"
        "engine = CpuProcesses(PacketIndex.open(sys.argv[1]), torch.device('cpu'), threads=1)\n"
        "print(type(engine.decode([ClipRequest(0, 0, (0,))])[0]).__name__, flush=True)\n"
        "os._exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(stream_corpus.index.path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "DecodedClip\n"), done.stderr
    for _ in range(100):
        found = subprocess.run(["pgrep", "-P", "1", "-f", "decode_process"], capture_output=True, check=False)
        if not found.stdout:
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {found.stdout!r}")


def test_decoding_processes_import_no_torch():
    code = "import sys, surgrec.loaders.engines.decode_process; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_arena_is_seen_from_both_sides():
    ours = Arena()
    theirs = Arena(os.dup(ours.descriptor))
    for count in (3, 1000, 10):
        layouts = [((count, 5), np.dtype(np.uint8)), ((count,), np.dtype(np.uint16))]
        written = theirs.allocate(layouts)
        written[0][:] = count % 256
        written[1][:] = count
        read = ours.arrays(layouts)
        assert np.array_equal(read[0], written[0])
        assert np.array_equal(read[1], written[1])
        assert not np.shares_memory(read[0], read[1])
    ours.close()
    theirs.close()
    assert (read[1] == 10).all()
