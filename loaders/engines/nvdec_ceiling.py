"""What NVDEC itself does: whole stretches of video decoded one after the other, no frame copied out."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from dataclasses import replace

import numpy as np
import torch
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.clip_reader import ClipReader
from surgrec.loaders.engines.nvcuvid import CODECS, load_driver
from surgrec.loaders.engines.nvdec import FORMATS, IN_ORDER_CODECS
from surgrec.loaders.engines.nvdec_callbacks import UNWANTED
from surgrec.loaders.engines.nvdec_feed import Feed, FeedReader, describer
from surgrec.loaders.engines.nvdec_session import NvdecSession
from surgrec.loaders.file_cache import FileCache
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.streams import loader_stream

STRETCH = 250
"""Frames that are fed between two looks at the clock."""


def sequential_rate(index: PacketIndex, device: torch.device, sessions: int, seconds: float) -> float:
    """Frames per second that NVDEC decodes of the index's videos, all packets in order, nothing copied out.

    A picture of a stacked video counts as its frames, `stack` of them.

    sessions: how many decode at a time, the videos divided among them. seconds: how long it is measured. Only
    videos that NVDEC decodes may be in the index. Raises BadClip for damaged ones.
    """
    reader = ClipReader(index, FileCache(), drop_disposable=False)
    describe = describer(index)
    start, stop = threading.Barrier(sessions + 1), threading.Event()
    rates, errors = [0.0] * sessions, []

    def decode(number: int) -> None:
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)  # makes the GPU's context current in this thread
        stream = loader_stream(device)
        video = number % len(index)
        info = reader.info(ClipRequest(0, video, (0,)))
        in_order = info.codec in IN_ORDER_CODECS
        session = NvdecSession(load_driver(), CODECS[info.codec], in_order, stream.cuda_stream, sleeps=False)
        feeds = FeedReader(reader, describe)
        stretches = []
        for first in range(0, info.frame_count, STRETCH):
            frames = tuple(range(first, min(first + STRETCH, info.frame_count)))
            request = ClipRequest(0, video, frames)
            with reader.open_unseen(request, info) as descriptor:
                found = feeds.read(request, descriptor)
            nothing = np.full(len(found.places), UNWANTED, np.int64)
            stretches.append(replace(found, data=found.data.copy(), slots=nothing))
            if len(stretches) == 8:
                break
        size, depth = (info.width, info.picture_height), FORMATS[info.pix_fmt]

        def decode_all(stretch: Feed) -> int:
            return info.stack * session.decode(stretch, size, depth, 0, 0)

        try:
            decode_all(stretches[0])  # makes the decoder
            start.wait()
            begun, count = time.perf_counter(), 0
            for stretch in itertools.cycle(stretches):
                count += decode_all(stretch)
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
