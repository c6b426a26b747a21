"""What NVDEC itself does: whole stretches of video decoded one after the other, no frame copied out."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time

import numpy as np
import torch
from numpy.typing import NDArray
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.annexb import parameter_sets
from surgrec.loaders.engines.clip_reader import ClipReader
from surgrec.loaders.engines.nvcuvid import CODECS, load_driver
from surgrec.loaders.engines.nvdec import FORMATS, IN_ORDER_CODECS, elementary
from surgrec.loaders.engines.nvdec_callbacks import UNWANTED
from surgrec.loaders.engines.nvdec_session import NvdecSession
from surgrec.loaders.file_cache import FileCache
from surgrec.loaders.packet_index import PacketIndex

STRETCH = 250
"""Frames that are fed between two looks at the clock."""


def sequential_rate(index: PacketIndex, device: torch.device, sessions: int, seconds: float) -> float:
    """Frames per second that NVDEC decodes of the index's videos, all packets in order, nothing copied out.

    A picture of a stacked video counts as its frames, `stack` of them.

    sessions: how many decode at a time, the videos divided among them. seconds: how long it is measured. Only
    videos that NVDEC decodes may be in the index. Raises BadClip for damaged ones.
    """
    reader = ClipReader(index, FileCache(), drop_disposable=False)
    start, stop = threading.Barrier(sessions + 1), threading.Event()
    rates, errors = [0.0] * sessions, []

    def decode(number: int) -> None:
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)  # makes the GPU's context current in this thread
        stream = torch.cuda.Stream(device)
        video = number % len(index)
        info = reader.info(ClipRequest(0, video, (0,)))
        session = NvdecSession(
            load_driver(), CODECS[info.codec], info.codec in IN_ORDER_CODECS, stream.cuda_stream
        )
        sets = parameter_sets(info)
        stretches = []
        for first in range(0, info.frame_count, STRETCH):
            frames = tuple(range(first, min(first + STRETCH, info.frame_count)))
            plan, data = reader.read(ClipRequest(0, video, frames), info, room=len(sets))
            data[: len(sets)] = sets
            stretches.append(elementary(info, plan, np.frombuffer(data, np.uint8), len(sets)))
            if len(stretches) == 8:
                break
        size, depth = (info.width, info.picture_height), FORMATS[info.pix_fmt]

        def feed(stretch: NDArray[np.uint8], places: NDArray[np.int64], sizes: NDArray[np.int64]) -> int:
            slots, restarts = np.full(len(places), UNWANTED, np.int64), np.zeros(len(places), np.int64)
            address = stretch.ctypes.data
            return info.stack * session.decode(address, places, sizes, restarts, slots, size, depth, 0, 0)

        try:
            feed(*stretches[0])  # makes the decoder
            start.wait()
            begun, count = time.perf_counter(), 0
            for stretch in itertools.cycle(stretches):
                count += feed(*stretch)
                if stop.is_set():
                    break  # the others may have ended: this stretch had more of the hardware than its share
                rates[number] = count / (time.perf_counter() - begun)
        except BaseException as error:  # the caller raises it
            errors.append(error)
            start.abort()
        finally:
            session.close()

    threads = [threading.Thread(target=decode, args=(number,), daemon=True) for number in range(sessions)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        start.wait()
        time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(rates)
