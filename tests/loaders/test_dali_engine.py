"""The dali engine with FFmpeg in the place of DALI: what it feeds, what it takes, and what it refuses."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from surgrec.kernels.nv12_crop import to_rgb
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.base import ClipFailure, DecodedClip
from surgrec.loaders.engines.cpu import CpuEngine
from surgrec.loaders.engines.dali import MAX_CLIPPED, DaliEngine
from surgrec.loaders.engines.dali_decode import DaliDecoder, with_index
from surgrec.loaders.engines.dali_watch import WatchedDecoder

CPU = torch.device("cpu")
# Kinds of tests/streams.py and why the cpu engine takes all of their clips.
REFUSED = {
    "h264_10bit": "pixel format yuv420p10le",
    "h264_444": "pixel format yuv444p",
    "h264_interlaced": "fields",
    "h264_ts": "random access",
    "hevc_10bit": "pixel format yuv420p10le",
    "vp8": "codec vp8",
    "vp9": "codec vp9",
    "av1": "codec av1",
    "mpeg4_avi": "codec mpeg4",
    "mpeg4_mp4": "codec mpeg4",
    "mjpeg_avi": "pixel format yuvj420p|codec mjpeg",
    "mpeg2_ps": "random access",
    "mpeg2_mkv": "codec mpeg2video",
}
SURE = [
    "h264_baseline",
    "h264_default",
    "h264_edit_list",
    "h264_fragmented",
    "h264_full_range",
    "h264_intra",
    "h264_intra_refresh",
    "h264_many_b",
    "h264_mkv",
    "h264_no_pyramid",
    "h264_vfr",
    "hevc_closed",
    "hevc_open_gop",
]
"""Kinds of which DALI must get every clip."""
PARTLY = {"h264_open_gop"}
"""Kinds of which some clips start at an open group of pictures."""


def pictures_of(clip: DecodedClip) -> np.ndarray:
    """uint8 [T, H, W, 3] upright; the cpu engine gives that itself."""
    return clip.frames if isinstance(clip.frames, np.ndarray) else to_rgb(clip.frames).numpy()


def ffmpeg_pictures(file: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3]: all frames, in the order of display."""
    with av.open(io.BytesIO(file.tobytes())) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert packets[0].is_keyframe
        assert [packet.dts for packet in packets] == list(range(len(packets)))
        assert min(packet.pts for packet in packets) >= 0
    with av.open(io.BytesIO(file.tobytes())) as container:
        decoder = container.streams.video[0].codec_context
        frames = []
        for packet in container.demux(video=0):
            if decoder.name == "hevc" and packet.size and starts_sequence(bytes(packet)):
                # FFmpeg 8 refuses a BLA picture whose order count is that of a picture it still holds.
                frames.extend(decoder.decode(None))
                decoder.flush_buffers()
            frames.extend(decoder.decode(packet))
        images = [frame.to_ndarray(format="rgb24", threads=1) for frame in frames]
    assert [frame.pts for frame in frames] == sorted(packet.pts for packet in packets)
    return np.stack(images)


def starts_sequence(packet: bytes) -> bool:
    """Whether it holds a BLA picture (types 16 to 18), which nothing from before it is a reference for."""
    at = 0
    while at < len(packet):
        if packet[at + 4] >> 1 & 63 in (16, 17, 18):
            return True
        at += 4 + int.from_bytes(packet[at : at + 4], "big")
    return False


def ffmpeg(files: Sequence[np.ndarray], frames: Sequence[np.ndarray]) -> list[torch.Tensor]:
    return [
        torch.from_numpy(ffmpeg_pictures(file)[wanted]) for file, wanted in zip(files, frames, strict=True)
    ]


@pytest.fixture
def make_engine(stream_corpus):
    made = []

    def make(decode_batch=ffmpeg, index=None, **options):
        made.append(DaliEngine(index or stream_corpus.index, CPU, 1, decode_batch=decode_batch, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def request_for(stream_corpus):
    return lambda kind, *frames, sample=0: ClipRequest(sample, stream_corpus.video[kind], frames)


def reasons(engine: DaliEngine) -> str:
    return ", ".join(engine.fallbacks)


def test_the_frames_of_every_kind(stream_corpus, stream_kind, make_engine):
    """The property that matters: the same frames as the cpu engine, whoever decoded them."""
    count = int(stream_corpus.index.videos.frame_count[stream_corpus.video[stream_kind]])
    images = stream_corpus.reference(stream_kind)[0]
    requests = []
    for first in range(0, count, 7):
        for stride in (1, 4):
            frames = tuple(min(first + stride * k, count - 1) for k in range(8))
            requests.append(ClipRequest(len(requests), stream_corpus.video[stream_kind], frames))
    engine = make_engine()
    clips = engine.decode(requests)
    for request, clip in zip(requests, clips, strict=True):
        assert isinstance(clip, DecodedClip), clip
        assert clip.request is request
        pictures = pictures_of(clip)
        wanted = images[list(request.frames)]
        assert pictures.shape == wanted.shape
        np.testing.assert_array_equal(pictures, wanted)
    if stream_kind in REFUSED:
        assert engine.fallbacks.total() == len(requests)
        assert any(part in reasons(engine) for part in REFUSED[stream_kind].split("|")), engine.fallbacks
    elif stream_kind in PARTLY:
        assert set(engine.fallbacks) == {"a start at an open group of pictures"}
        assert engine.fallbacks.total() < len(requests)
    else:
        assert not engine.fallbacks


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(kind="hevc_open_gop", frames=[24], drop=True)  # one CRA picture, fed twice
@given(
    kind=st.sampled_from(SURE),
    frames=st.lists(st.integers(0, 79), min_size=1, max_size=10).map(sorted),
    drop=st.booleans(),
)
def test_any_request(stream_corpus, kind, frames, drop):
    request = ClipRequest(0, stream_corpus.video[kind], tuple(frames))
    with DaliEngine(stream_corpus.index, CPU, 1, drop, decode_batch=ffmpeg) as engine:
        clip = engine.decode([request])[0]
        assert not engine.fallbacks
    np.testing.assert_array_equal(pictures_of(clip), stream_corpus.reference(kind)[0][frames])


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_stacked_frames(make_stacked, make_engine, tmp_path, codec):
    """The frames of a stacked proxy, from files whose pictures hold four of them."""
    stacked = make_stacked(tmp_path, stack=4, gop=16, codec=codec)
    asked = [
        ClipRequest(n, 0, frames)
        for n, frames in enumerate(((0, 5, 5, 44), tuple(range(6, 22)), (15, 16), tuple(range(3, 40, 5))))
    ]
    engine = make_engine(index=stacked.index)
    clips = engine.decode(asked)
    assert not engine.fallbacks
    for clip, request in zip(clips, asked, strict=True):
        np.testing.assert_array_equal(pictures_of(clip), stacked.images[list(request.frames)])
        assert clip.decoded_frames == 4 * clip.fed_packets


def test_only_what_is_needed_is_fed(stream_corpus, make_engine, request_for):
    request = request_for("h264_default", *range(26, 70, 4))
    ours = make_engine().decode([request])[0]
    with CpuEngine(stream_corpus.index, 1) as cpu:
        theirs = cpu.decode([request])[0]
    assert ours.fed_packets == theirs.fed_packets + 1  # the first packet is fed twice
    assert ours.read_bytes == theirs.read_bytes


def small_index(
    streams, build_index_of, folder, size, colour=None, full=False, codec="libx264", options=None
):
    """A video of one size and colour space; the window of its frames is what is left of whole blocks."""
    path = folder / "video.mp4"
    params = {"x264-params": "cabac=1"} if options is None else options
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"g": "12", "crf": "12", **params})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        if colour is not None:
            context.colorspace = colour
        context.color_range = 2 if full else 1
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(streams.picture(number, size), format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=colour or 5, dst_color_range=2 if full else 1, threads=1
            )
            frame.pts, frame.time_base = number, Fraction(1, 25)
            frame.colorspace, frame.color_range = colour or 2, 2 if full else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return build_index_of([path], folder / "corpus.h5")


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("size", [(150, 90), (162, 98), (176, 106)])
def test_sizes_that_are_not_whole_blocks(streams, build_index_of, tmp_path, make_engine, size, codec):
    options = {"x265-params": "log-level=none:pools=none:frame-threads=1"} if codec == "libx265" else None
    index = small_index(streams, build_index_of, tmp_path, size, codec=codec, options=options)
    coded = []

    def decode(files, frames):
        found = ffmpeg(files, frames)
        coded.extend(tuple(clip.shape[1:3]) for clip in found)
        return found

    engine = make_engine(decode, index)
    request = ClipRequest(0, 0, (3, 8, 14, 22, 29))
    clip = engine.decode([request])[0]
    with CpuEngine(index, 1) as cpu:
        wanted = cpu.decode([request])[0].frames
    assert not engine.fallbacks
    block = 16 if codec == "libx264" else 8
    assert coded == [(-(-size[1] // block) * block, -(-size[0] // block) * block)]
    pictures = pictures_of(clip)
    assert pictures.shape == wanted.shape == (5, size[1], size[0], 3)
    # FFmpeg takes chroma from beyond the window where it is not cut off: the right and lower edges differ.
    np.testing.assert_array_equal(pictures[:, :-2, :-2], wanted[:, :-2, :-2])
    assert [streams.read_number(picture) for picture in pictures] == list(request.frames)


def as_dali_converts(file: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3]: by BT.601 whatever the matrix, of full range where header or stream say so."""
    images = []
    with av.open(io.BytesIO(file.tobytes())) as container:
        stated = int(container.streams.video[0].codec_context.color_range) == 2
        for frame in container.decode(video=0):
            full = stated or int(frame.color_range) == 2
            planes = frame.to_ndarray(format="yuv420p").astype(np.float64)
            h, w = frame.height, frame.width
            luma = planes[:h]
            blue, red = (
                planes[h + k * h // 4 : h + (k + 1) * h // 4]
                .reshape(h // 2, w // 2)
                .repeat(2, 0)
                .repeat(2, 1)
                - 128
                for k in range(2)
            )
            if not full:
                luma, blue, red = (luma - 16) * 255 / 219, blue * 255 / 224, red * 255 / 224
            rgb = luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue
            images.append(np.clip(np.rint(np.stack(rgb, -1)), 0, 255).astype(np.uint8))
    return np.stack(images)


def dali_like(files: Sequence[np.ndarray], frames: Sequence[np.ndarray]) -> list[torch.Tensor]:
    return [
        torch.from_numpy(as_dali_converts(file)[wanted]) for file, wanted in zip(files, frames, strict=True)
    ]


@pytest.mark.parametrize(("matrix", "full"), [(5, False), (5, True), (1, False), (7, False), (9, False)])
def test_colours_of_every_matrix(streams, build_index_of, tmp_path, make_engine, monkeypatch, matrix, full):
    grey = streams.picture

    def muted(number, size):  # colours that stay within what BT.601 can show of any matrix
        image = grey(number, size).astype(int)
        mean = image.mean(2, keepdims=True)
        return (mean + (image - mean) * 0.4).astype(np.uint8)

    monkeypatch.setattr(streams, "picture", muted)
    index = small_index(streams, build_index_of, tmp_path, (160, 96), matrix, full)
    engine = make_engine(dali_like, index)
    request = ClipRequest(0, 0, (0, 5, 10, 15))
    pictures = pictures_of(engine.decode([request])[0]).astype(int)
    with CpuEngine(index, 1) as cpu:
        wanted = cpu.decode([request])[0].frames.astype(int)
    assert not engine.fallbacks
    # FFmpeg interpolates chroma in another way, and truncates: about a level of each channel.
    assert np.abs((pictures - wanted).mean((0, 1, 2))).max() < 2
    assert np.abs(pictures - wanted).mean() < 3


def test_colours_that_dali_loses_go_to_the_cpu(streams, build_index_of, tmp_path, make_engine, monkeypatch):
    def red(number, size):
        image = np.zeros((size[1], size[0], 3), np.uint8)
        image[..., 0] = 250
        return image

    monkeypatch.setattr(streams, "picture", red)
    index = small_index(streams, build_index_of, tmp_path, (160, 96), 1)
    engine = make_engine(dali_like, index)
    clip = engine.decode([ClipRequest(0, 0, (0, 5))])[0]
    assert dict(engine.fallbacks) == {"colours outside of what DALI's conversion keeps": 1}
    assert pictures_of(clip)[..., 1].mean() < 6
    assert 0 < MAX_CLIPPED < 0.01


def test_full_range_of_another_matrix_goes_to_the_cpu(streams, build_index_of, tmp_path, make_engine):
    index = small_index(streams, build_index_of, tmp_path, (160, 96), 1, full=True)
    engine = make_engine(dali_like, index)
    assert isinstance(engine.decode([ClipRequest(0, 0, (0, 5))])[0], DecodedClip)
    assert dict(engine.fallbacks) == {"colour matrix bt709 of full range": 1}


@pytest.mark.parametrize("fault", ["shifted", "last missing", "fewer", "other size"])
def test_wrong_pictures_never_come_through(streams, make_engine, request_for, fault):
    def decode(files, frames):
        found = []
        for file, wanted in zip(files, frames, strict=True):
            pictures = ffmpeg_pictures(file)
            if fault == "shifted":  # the decoder left one picture out, and nobody noticed
                pictures = np.concatenate((pictures[:5], pictures[6:], np.full_like(pictures[:1], 0xA5)))
            elif fault == "last missing":
                pictures[-1] = 0xA5
            pictures = pictures[wanted]
            if fault == "fewer":
                pictures = pictures[:-1]
            elif fault == "other size":
                pictures = pictures[:, :-2]
            found.append(torch.from_numpy(pictures))
        return found

    engine = make_engine(decode)
    request = request_for("h264_default", 30, 34, 38)
    clip = engine.decode([request])[0]
    assert engine.fallbacks.total() == 1
    assert "DALI gave" in reasons(engine)
    assert [streams.read_number(picture) for picture in pictures_of(clip)] == [30, 34, 38]


def test_a_file_that_is_refused_costs_the_others_nothing(stream_corpus, make_engine, request_for):
    requests = [request_for(k, 30, 34) for k in ("h264_default", "hevc_closed", "h264_mkv")]
    gate = threading.Event()
    calls = []

    def decode(files, frames):
        gate.wait(10)
        calls.append(len(files))
        if any(b"hvc1" in file.tobytes() for file in files):
            raise RuntimeError("Error in MIXED operator `decoders.Video`: codec")
        return ffmpeg(files, frames)

    engine = make_engine(decode, batch=3)
    first = engine.submit(request_for("h264_default", 1))  # holds the thread while the others queue up
    time.sleep(0.1)
    futures = [engine.submit(request) for request in requests]
    gate.set()
    assert isinstance(first.result(), DecodedClip)
    for request, future in zip(requests, futures, strict=True):
        assert isinstance(future.result(), DecodedClip), request
    assert calls == [1, 3, 1, 1, 1]
    assert dict(engine.fallbacks) == {"DALI refused the file": 1}
    assert "codec" in engine.last_error


def test_failures_name_this_engine(stream_corpus, streams, build_index_of, tmp_path, make_engine):
    """One file is gone, one has changed since, and one was damaged before it was indexed."""
    gone, changed, damaged = paths = [
        streams.make_stream("h264_default" if name == "gone" else "vp9", tmp_path / name, frames=30)
        for name in ("gone", "changed", "damaged")
    ]
    clean = build_index_of([damaged], tmp_path / "clean.h5")
    first, second = (int(at) for at in clean.offset[:2])
    overwrite(damaged, second + 6)
    index = build_index_of(paths, tmp_path / "corpus.h5")
    gone.unlink()
    overwrite(changed, first)
    engine = make_engine(index=index)
    failures = engine.decode([ClipRequest(7 + video, video, (1, 2)) for video in range(3)])
    for failure, path in zip(failures, paths, strict=True):
        assert isinstance(failure, ClipFailure), failure
        assert (failure.engine, failure.path) == ("dali", str(path))
    assert "surgrec.index" in failures[0].reason
    assert "surgrec.index" in failures[1].reason
    assert "FFmpeg" in failures[2].reason
    assert engine.fallbacks.total() == 1


def overwrite(path, at):
    """40 bytes become 0; the time of change stays."""
    stamp = path.stat()
    content = bytearray(path.read_bytes())
    content[at : at + 40] = bytes(40)
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def test_wrong_requests_raise(make_engine, request_for):
    engine = make_engine()
    for request in (request_for("h264_default", 90), request_for("vp9", 5, 4), ClipRequest(0, 10_000, (0,))):
        with pytest.raises(ValueError, match=r"frames|positions|outside"):
            engine.decode([request])
    with pytest.raises(ValueError, match="batch"):
        make_engine(batch=0)


def test_a_batch_that_hangs_is_given_up(make_engine, request_for, monkeypatch):
    monkeypatch.setattr("surgrec.loaders.engines.dali.START_SECONDS", 0.0)
    gate = threading.Event()
    threads = []

    def decode(files, frames):
        threads.append(threading.current_thread())
        if len(threads) == 1:
            gate.wait(60)
        return ffmpeg(files, frames)

    engine = make_engine(decode, timeout=1.0)
    requests = [request_for("h264_default", 30, 34, sample=n) for n in range(3)]
    start = time.monotonic()
    failure = engine.submit(requests[0]).result(30)
    assert 0.9 < time.monotonic() - start < 10
    assert isinstance(failure, ClipFailure)
    assert (failure.request, failure.engine) == (requests[0], "dali")
    assert "did not give" in failure.reason
    assert "within 1 s" in failure.reason
    assert "decoder_timeout" in failure.reason
    assert all(isinstance(clip, DecodedClip) for clip in engine.decode(requests))
    assert not engine.fallbacks
    assert threads[0].daemon
    assert threads[0] not in threads[1:]  # the first one still waits
    assert len(set(threads[1:])) == 1
    gate.set()
    threads[0].join(10)
    assert not threads[0].is_alive()
    engine.close()
    assert not threads[1].is_alive()


def test_a_decoder_that_was_given_up_is_made_anew():
    gate = threading.Event()
    made = []

    def make():
        number = len(made)
        made.append(threading.current_thread())

        def decode(files, frames):
            if number == 0:
                gate.wait(60)
            if not files:
                raise RuntimeError("refused")
            return [torch.full((1,), number) for _ in files]

        return decode

    watched = WatchedDecoder(make, timeout=0.2, start=0.0)
    file, frames = np.zeros(1, np.uint8), np.zeros(1, np.int32)
    with pytest.raises(TimeoutError):
        watched([file], [frames])
    assert [int(clip) for clip in watched([file, file], [frames, frames])] == [1, 1]
    with pytest.raises(RuntimeError, match="refused"):
        watched([], [])
    assert int(watched([file], [frames])[0]) == 1  # a refusal costs no decoder
    gate.set()
    watched.close()
    made[0].join(10)
    assert len(made) == 2
    assert not any(thread.is_alive() for thread in made)


def test_the_start_of_a_decoder_has_time_of_its_own():
    def make():
        time.sleep(0.3)
        return lambda files, frames: []

    watched = WatchedDecoder(make, timeout=0.1, start=20.0)
    assert watched([], []) == []
    watched.close()


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_must_be_above_0(make_engine, timeout):
    with pytest.raises(ValueError, match="decoder_timeout"):
        make_engine(timeout=timeout)


def test_the_timeout_reaches_the_processes_of_the_cpu_engine(stream_corpus, monkeypatch):
    given = []

    class Processes:
        def __init__(self, index, device, threads, drop_disposable, timeout):
            given.append((device, threads, drop_disposable, timeout))

        def close(self):
            given.append("closed")

    monkeypatch.setattr("surgrec.loaders.engines.dali.CpuProcesses", Processes)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    cuda = torch.device("cuda")
    with DaliEngine(stream_corpus.index, cuda, 2, decode_batch=ffmpeg, timeout=7.0) as engine:
        assert engine.device == torch.device("cuda", 3)
    assert given == [(torch.device("cuda", 3), 2, True, 7.0), "closed"]


def test_devices_get_the_number_of_the_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert with_index(torch.device("cuda")) == torch.device("cuda", 3)
    assert with_index(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert with_index(CPU) == CPU


def test_close_cancels_what_is_queued(make_engine, request_for):
    gate = threading.Event()

    def decode(files, frames):
        gate.wait(10)
        return ffmpeg(files, frames)

    engine = make_engine(decode, batch=2)
    futures = [engine.submit(request_for("h264_default", 5)) for _ in range(20)]
    closer = threading.Thread(target=engine.close)
    time.sleep(0.2)
    closer.start()
    time.sleep(0.2)
    gate.set()
    closer.join(20)
    assert not closer.is_alive()
    engine.close()
    assert all(future.done() for future in futures)
    assert isinstance(futures[0].result(), DecodedClip)
    assert futures[-1].cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(request_for("h264_default", 5))


def test_dali_gives_the_frames_that_were_asked_for(stream_corpus):
    """DALI itself, with a codec that its CPU decoder knows: frames by number, batches of any size."""
    file = np.frombuffer(stream_corpus.paths["vp9"].read_bytes(), np.uint8)
    images = stream_corpus.reference("vp9")[0].astype(int)
    decoder = DaliDecoder(CPU, threads=1, most=3)
    for frames in ([[2, 9, 30]], [[0], [5, 7], [88, 89]]):
        wanted = [np.array(numbers, np.int32) for numbers in frames]
        for numbers, clip in zip(frames, decoder([file] * len(frames), wanted), strict=True):
            assert clip.dtype == torch.uint8
            for number, picture in zip(numbers, clip.numpy().astype(int), strict=True):
                distance = np.abs(images - picture).mean((1, 2, 3))
                assert distance.argmin() == number


def test_dali_goes_on_after_a_file_that_it_refuses(stream_corpus):
    file = np.frombuffer(stream_corpus.paths["vp9"].read_bytes(), np.uint8)
    frames = np.array([3], np.int32)
    decoder = DaliDecoder(CPU, threads=1, most=2)
    with pytest.raises(RuntimeError):
        decoder([file[:1000], file], [frames, frames])
    with pytest.raises(RuntimeError):
        decoder([file], [np.array([500], np.int32)])
    assert decoder([file], [frames])[0].shape[0] == 1
