from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.base import ClipFailure, DecodedClip
from surgrec.loaders.engines.cpu import CpuEngine, CpuWorker


def request_for(corpus, kind, *frames, sample=0):
    return ClipRequest(sample, corpus.video[kind], frames)


@pytest.fixture(scope="module")
def engine(stream_corpus):
    with CpuEngine(stream_corpus.index, threads=2) as made:
        yield made


def test_results_come_in_the_order_of_the_requests(stream_corpus, engine):
    kinds = ["h264_default", "vp9", "h264_ts", "mjpeg_avi", "hevc_open_gop", "mpeg4_avi"]
    requests = [
        request_for(stream_corpus, kinds[n % len(kinds)], n, n + 3, n + 20, sample=n) for n in range(48)
    ]
    for n, (request, clip) in enumerate(zip(requests, engine.decode(requests), strict=True)):
        assert isinstance(clip, DecodedClip), clip
        assert clip.request is request
        images = stream_corpus.reference(kinds[n % len(kinds)])[0]
        np.testing.assert_array_equal(clip.frames, images[[n, n + 3, n + 20]])


def test_repeated_positions_decode_once(stream_corpus, engine):
    single = engine.decode([request_for(stream_corpus, "h264_default", 30)])[0]
    repeated = engine.decode([request_for(stream_corpus, "h264_default", 30, 30, 30, 30)])[0]
    assert repeated.decoded_frames == single.decoded_frames
    assert repeated.frames.shape[0] == 4
    assert (repeated.frames == single.frames).all()


def test_rotated_video_comes_upright(stream_corpus, streams, engine):
    clip = engine.decode([request_for(stream_corpus, "h264_rotated", 41)])[0]
    width, height = streams.SIZE
    assert clip.frames.shape == (1, width, height, 3)
    assert streams.read_number(clip.frames[0]) == 41


def test_costs_are_counted(stream_corpus):
    request = request_for(stream_corpus, "h264_default", *range(26, 70, 4))
    with CpuEngine(stream_corpus.index, 1) as drop, CpuEngine(stream_corpus.index, 1, False) as keep:
        fewer, more = drop.decode([request])[0], keep.decode([request])[0]
    assert fewer.fed_packets < more.fed_packets
    assert 0 < fewer.decoded_frames < more.decoded_frames <= 60
    size = stream_corpus.paths["h264_default"].stat().st_size
    assert 0 < fewer.read_bytes <= more.read_bytes < size


def test_sequential_video_goes_on_where_the_last_clip_ended(stream_corpus):
    images = stream_corpus.reference("h264_ts")[0]
    with CpuEngine(stream_corpus.index, threads=1) as engine:
        costs = []
        for frames in ((3, 5), (6, 9), (30, 31), (2, 2)):
            clip = engine.decode([request_for(stream_corpus, "h264_ts", *frames)])[0]
            np.testing.assert_array_equal(clip.frames, images[list(frames)])
            costs.append(clip.decoded_frames)
    assert costs == [6, 4, 22, 3]


def test_text_in_the_file_that_is_not_utf_8_is_no_error(streams, build_index_of, tmp_path):
    """MPEG-4's decoder is set up by opening the file itself."""
    path = streams.make_stream("mpeg4_avi", tmp_path / "video", frames=8)
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"L\xe4vf"))
    with CpuEngine(build_index_of([path], tmp_path / "corpus.h5"), threads=1) as engine:
        clip = engine.decode([ClipRequest(0, 0, (2, 5))])[0]
    assert isinstance(clip, DecodedClip), clip
    assert [streams.read_number(image) for image in clip.frames] == [2, 5]


def test_wrong_requests_raise(stream_corpus, engine):
    for frames in ((90,), (-1, 2), (5, 4), ()):
        for kind in ("h264_default", "h264_ts"):
            with pytest.raises(ValueError, match=r"frames|positions"):
                engine.decode([request_for(stream_corpus, kind, *frames)])
    with pytest.raises(ValueError, match="outside the index"):
        engine.decode([ClipRequest(0, 10_000, (0,))])
    with pytest.raises(ValueError, match="threads"):
        CpuEngine(stream_corpus.index, threads=-1)


def test_close_cancels_what_is_queued_and_ends_the_threads(stream_corpus, monkeypatch):
    busy, released, run = threading.Event(), threading.Event(), CpuWorker.run

    def held(worker, request):
        busy.set()
        assert released.wait(60)
        return run(worker, request)

    monkeypatch.setattr(CpuWorker, "run", held)
    engine = CpuEngine(stream_corpus.index, threads=1)
    futures = [engine.submit(request_for(stream_corpus, "h264_many_b", 80)) for _ in range(20)]
    assert busy.wait(60)
    futures[-1].add_done_callback(lambda _: released.set())
    engine.close()
    engine.close()
    assert isinstance(futures[0].result(0), DecodedClip)
    assert all(future.cancelled() for future in futures[1:])
    with pytest.raises(RuntimeError):
        engine.submit(request_for(stream_corpus, "h264_many_b", 80))


def test_the_interpreter_exits_with_clips_in_the_queue(stream_corpus):
    """Neither a hang nor the decoding of all that is queued."""
    code = f"""
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.cpu import CpuEngine
from surgrec.loaders.packet_index import PacketIndex
engine = CpuEngine(PacketIndex.open({str(stream_corpus.index.path)!r}), threads=2)
request = ClipRequest(0, {stream_corpus.video["h264_many_b"]}, tuple(range(80)))
futures = [engine.submit(request) for _ in range(20000)]
futures[0].result()
print("end of script")
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end of script\n", "")
    assert time.monotonic() - start < 60


def test_more_videos_than_open_files(stream_corpus, tmp_path, build_index_of):
    paths = []
    for number in range(60):
        paths.append(tmp_path / f"{number}.mp4")
        shutil.copyfile(stream_corpus.paths["h264_baseline"], paths[-1])
    index = build_index_of(paths, tmp_path / "corpus.h5")
    code = f"""
import resource
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.cpu import CpuEngine
from surgrec.loaders.packet_index import PacketIndex
index = PacketIndex.open({str(index.path)!r})
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
with CpuEngine(index, threads=3) as engine:
    clips = engine.decode([ClipRequest(n, n % 60, (n % 90,)) for n in range(180)])
print({{type(clip).__name__ for clip in clips}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{'DecodedClip'}\n", "")


def test_failures_name_file_engine_and_reason(stream_corpus, tmp_path, build_index_of):
    path = tmp_path / "gone.mp4"
    shutil.copyfile(stream_corpus.paths["h264_default"], path)
    index = build_index_of([path], tmp_path / "corpus.h5")
    path.unlink()
    with CpuEngine(index, threads=1) as engine:
        failure = engine.decode([ClipRequest(7, 0, (1, 2))])[0]
    assert isinstance(failure, ClipFailure)
    assert (failure.path, failure.engine, failure.request.sample) == (str(path), "cpu", 7)
    assert "No such file" in failure.reason
    assert "surgrec.index" in failure.reason
