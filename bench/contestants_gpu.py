"""What others offer on an NVIDIA GPU: DALI's video operators, torchcodec, PyNvVideoCodec's SimpleDecoder,
SPDL.

Frames stay on the GPU. Contestants that can give NV12 are not made to convert it: ours does not either.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from contestant import (
    Clips,
    Contestant,
    KeptPerThread,
    Stream,
    as_they_come,
    closing,
    in_threads,
    nv12_planes,
    rounds,
    stride_of,
    times_of,
)

if TYPE_CHECKING:
    from surgrec.loaders.clip_plan import ClipRequest
    from surgrec.loaders.packet_index import PacketIndex

DALI_BATCH: Final = 8
DALI_LISTED: Final = 512
"""Requests that a reader's file list holds; it goes round in them."""
DECODERS: Final = 8
"""Threads with a decoder of their own: one for each NVDEC of an H100, and one to fill the gaps."""


def write_file_list(
    index: PacketIndex, requests: Sequence[ClipRequest], folder: Path, beyond: int = 0
) -> Path:
    """DALI's file list: `file label start end` a line, where the label is the request's place in the list.

    Links stand for the files, for the list knows no file names with spaces. beyond: frames that are listed
    behind the last wanted one.
    """
    lines = []
    for place, request in enumerate(requests):
        real = Path(index.videos.path[request.video]).resolve()
        link = folder / f"{request.video}{real.suffix}"
        if not link.is_symlink():
            link.symlink_to(real)
        lines.append(f"{link} {place} {request.frames[0]} {request.frames[-1] + 1 + beyond}\n")
    path = folder / "clips.txt"
    path.write_text("".join(lines))
    return path


def _run(pipeline: Any) -> tuple[Any, ...]:
    """One iteration, its outputs complete."""
    import torch

    outputs = pipeline.run()
    torch.cuda.synchronize()
    return tuple(outputs)


def _array(batch: Any) -> Any:
    """A dense batch as one array; some operators leave labels on the GPU, some do not."""
    return np.asarray((batch.as_cpu() if hasattr(batch, "as_cpu") else batch).as_array())


def _frames_of(batch: Any, row: int) -> Callable[[], Any]:
    """The frames of a sample, fetched only where they are looked at."""
    return lambda: np.asarray(batch[row].as_cpu())


def _dali_reader(experimental: bool, index: PacketIndex, threads: int) -> Stream:
    """fn.readers.video or fn.experimental.readers.video over a file list of the very clips."""

    def stream(requests: Sequence[ClipRequest], forever: bool) -> Clips:
        from nvidia import dali

        nvidia: Any = dali  # its type hints export too little
        listed = list(requests[:DALI_LISTED])
        batch = min(DALI_BATCH, len(listed))
        common: dict[str, Any] = {
            "device": "gpu",
            "sequence_length": len(listed[0].frames),
            "stride": stride_of(listed[0]),
            "name": "reader",
        }
        with tempfile.TemporaryDirectory() as folder:
            # The experimental reader wants room for a whole stride behind the last frame, too.
            beyond = stride_of(listed[0]) - 1 if experimental else 0
            common["file_list"] = str(write_file_list(index, listed, Path(folder), beyond))

            @nvidia.pipeline_def(batch_size=batch, num_threads=threads, device_id=0, prefetch_queue_depth=2)
            def graph() -> Any:
                if experimental:
                    made = nvidia.fn.experimental.readers.video(
                        file_list_format="frames", file_list_include_end=False, **common
                    )
                else:
                    made = nvidia.fn.readers.video(file_list_frame_num=True, **common)
                return tuple(made)  # frames and labels; a list would count as one output

            pipeline = graph()
            pipeline.build()
            turns = itertools.count() if forever else range(-(-len(listed) // batch))
            try:
                for _ in turns:
                    video, labels = _run(pipeline)
                    places = _array(labels).ravel().tolist()
                    yield [(listed[place], _frames_of(video, row)) for row, place in enumerate(places)]
            finally:
                del pipeline  # it reads ahead: its threads must end before the links go

    return stream


def _dali_decoder(index: PacketIndex, threads: int) -> Stream:
    """fn.decoders.video on whole files in memory."""
    content = functools.cache(lambda path: np.fromfile(path, np.uint8))

    def stream(requests: Sequence[ClipRequest], forever: bool) -> Clips:
        from nvidia import dali

        nvidia: Any = dali  # its type hints export too little
        batch = min(max(DALI_BATCH, threads), len(requests))
        supply = rounds(requests, forever)
        queued: list[list[ClipRequest]] = []

        def source() -> tuple[list[Any], list[Any]]:
            chosen = list(itertools.islice(supply, batch))
            if not chosen:
                raise StopIteration
            queued.append(chosen)
            files = [content(index.videos.path[request.video]) for request in chosen]
            return files, [np.array(request.frames[0], np.int32) for request in chosen]

        @nvidia.pipeline_def(batch_size=batch, num_threads=threads, device_id=0, prefetch_queue_depth=2)
        def graph() -> Any:
            kinds = [nvidia.types.UINT8, nvidia.types.INT32]
            encoded, start = nvidia.fn.external_source(
                source, num_outputs=2, no_copy=True, dtype=kinds, ndim=[1, 0]
            )
            return nvidia.fn.decoders.video(
                encoded,
                device="mixed",
                start_frame=start,
                sequence_length=len(requests[0].frames),
                stride=stride_of(requests[0]),
            )

        pipeline = graph()
        pipeline.build()
        while True:
            try:
                (video,) = _run(pipeline)
            except StopIteration:
                return
            chosen = queued.pop(0)
            yield [(request, _frames_of(video, row)) for row, request in enumerate(chosen)]

    return stream


def _torchcodec(backend: str, index: PacketIndex, threads: int) -> Stream:
    """VideoDecoder(device="cuda") per video and thread, kept open."""
    import torch
    from torchcodec import decoders

    codec: Any = decoders  # its type hints do not export VideoDecoder

    def open_reader(path: str) -> Any:
        options = {"device": "cuda", "seek_mode": "approximate", "dimension_order": "NHWC"}
        choose = getattr(codec, "set_cuda_backend", None)
        if choose is None:
            return codec.VideoDecoder(path, **options)
        try:
            chosen = choose(backend)
            chosen.__enter__()
        except ValueError:  # earlier releases call it so
            chosen = choose("beta")
            chosen.__enter__()
        try:
            return codec.VideoDecoder(path, **options)
        finally:
            chosen.__exit__(None, None, None)

    kept = KeptPerThread(open_reader, 8)

    def read(request: ClipRequest) -> Any:
        frames = kept.get(index.videos.path[request.video]).get_frames_at(list(request.frames)).data
        torch.cuda.current_stream().synchronize()
        return frames

    return in_threads(read, min(threads, DECODERS))


def _pynvvideocodec(index: PacketIndex, threads: int) -> Stream:
    """SimpleDecoder per video and thread, long-lived, get_batch_frames_by_index, NV12."""
    import PyNvVideoCodec
    import torch

    codec: Any = PyNvVideoCodec
    kept = KeptPerThread(lambda path: codec.SimpleDecoder(path, gpu_id=0, use_device_memory=True), 8)

    def read(request: ClipRequest) -> Any:
        frames = kept.get(index.videos.path[request.video]).get_batch_frames_by_index(list(request.frames))
        # The decoder uses its surfaces again: a clip that outlives the call is a copy.
        clip = torch.stack([torch.utils.dlpack.from_dlpack(frame) for frame in frames])
        torch.cuda.current_stream().synchronize()
        return lambda: nv12_planes(clip, index, request.video)

    return in_threads(read, min(threads, DECODERS))


def _spdl(index: PacketIndex, threads: int) -> Stream:
    """Three threads demux a window of time, others decode its packets with the decoder that each keeps."""
    import spdl.io
    import torch

    io: Any = spdl.io
    config = io.cuda_config(device_index=0)

    def demux(request: ClipRequest) -> tuple[Any, Any, tuple[float, float], Any]:
        times = times_of(index, request)
        half = 0.5 / float(index.videos.rate[request.video])
        window = (max(0.0, times[0] - half), times[-1] + half)
        packets = io.demux_video(index.videos.path[request.video], timestamp=window)
        # Of those from the key frame on, as they are shown.
        shown = np.sort(packets.get_timestamps(raw=True))
        codec = packets.codec
        if codec.name in ("h264", "hevc"):
            packets = io.apply_bsf(packets, f"{codec.name}_mp4toannexb")
        return packets, codec, window, (shown, times)

    def decode(request: ClipRequest, future: Any) -> Any:
        packets, codec, (begin, end), (shown, times) = future.result()
        surfaces = io.to_torch(io.nvdec_decoder(config, codec).decode_packets(packets))
        # Releases differ: a frame for each packet, or for those in the window only.
        inside = shown[(shown >= begin) & (shown < end)]
        given = next((given for given in (shown, inside) if len(given) == len(surfaces)), None)
        if given is None:
            raise RuntimeError(
                f"{len(surfaces)} frames of {len(shown)} packets, {len(inside)} of them in the window"
            )
        places = np.abs(given[:, None] - times[None]).argmin(0).tolist()
        clip = surfaces[torch.tensor(places, device=surfaces.device)]
        torch.cuda.synchronize()
        return lambda: nv12_planes(clip, index, request.video)

    demuxers, pool = ThreadPoolExecutor(3), ThreadPoolExecutor(min(threads, DECODERS))

    def stream(requests: Sequence[ClipRequest], forever: bool) -> Clips:
        return as_they_come(
            lambda request: pool.submit(decode, request, demuxers.submit(demux, request)),
            rounds(requests, forever),
            2 * DECODERS,
        )

    def close() -> None:
        pool.shutdown()
        demuxers.shutdown()

    return closing(stream, close)


def _gpu(package: str, make: Callable[[PacketIndex, int], Stream], module: str, about: str) -> Contestant:
    return Contestant(package, make, True, True, ("torch", module), about)


GPU_CONTESTANTS: dict[str, Contestant] = {
    "dali-readers": _gpu(
        "nvidia-dali-cuda130",
        functools.partial(_dali_reader, False),
        "nvidia.dali",
        "fn.readers.video, a file list of the clips",
    ),
    "dali-experimental": _gpu(
        "nvidia-dali-cuda130",
        functools.partial(_dali_reader, True),
        "nvidia.dali",
        "fn.experimental.readers.video, a file list of the clips",
    ),
    "dali-decoders": _gpu(
        "nvidia-dali-cuda130", _dali_decoder, "nvidia.dali", "fn.decoders.video, whole files in memory"
    ),
    "torchcodec-cuda": _gpu(
        "torchcodec",
        functools.partial(_torchcodec, "nvdec"),
        "torch",
        "VideoDecoder on cuda, its NVDEC backend, kept open, threads",
    ),
    "torchcodec-ffmpeg": _gpu(
        "torchcodec",
        functools.partial(_torchcodec, "ffmpeg"),
        "torch",
        "VideoDecoder on cuda, FFmpeg backend, kept open, threads",
    ),
    "pynvvideocodec": _gpu(
        "PyNvVideoCodec",
        _pynvvideocodec,
        "torch",
        "SimpleDecoder, kept open, get_batch_frames_by_index, NV12, threads",
    ),
    "spdl-nvdec": _gpu(
        "spdl-io", _spdl, "torch", "demux_video of a window, NvDecDecoder.decode_packets, NV12, threads"
    ),
}
