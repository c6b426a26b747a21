"""DALI's video decoder for batches of small files in memory. Imports DALI when one is made.

How `fn.decoders.video` works (DALI 2.4), as far as it matters here:
- On a GPU it takes H.264, HEVC and others; on the CPU VP8, VP9 and MJPEG only.
- It numbers the frames of a file by their time stamps, and tells which of them a decoded picture is by
  counting the packets fed: a picture that NVDEC leaves out shifts all that follow, and nothing is reported.
  The memory of frames that did not come keeps what it held before.
- Luma and chroma become RGB by BT.601, whatever matrix the stream states, by its full-range form where the
  stream or its container says full range; samples are read as 4:2:0 of 8 bits.
- NVDEC sessions are kept by coded size, but looked up by the size that is shown: cropped pictures never find
  one, or find one of another size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from surgrec.loaders.streams import loader_stream
from torch import Tensor
from torch.utils.dlpack import from_dlpack

UNWRITTEN: Final = 0xA5
"""Byte that decoded pictures are overwritten with once copied: none can pass for one of the next batch."""


class DaliDecoder:
    """Decodes files on one device. Not thread-safe: one thread makes, calls and drops it."""

    def __init__(self, device: torch.device, threads: int, most: int) -> None:
        """threads: that parse and feed, one file each at a time. most: files of one call.

        Raises RuntimeError where DALI cannot use the device.
        """
        self.device = with_index(device)
        self._threads = threads
        self._most = most
        self._stream = loader_stream(device) if device.type == "cuda" else None
        self._pipeline: Any = None

    def __call__(
        self, files: Sequence[NDArray[np.uint8]], frames: Sequence[NDArray[np.int32]]
    ) -> list[Tensor]:
        """uint8 [K, H, W, 3] RGB of the frames asked of each file, on the device, complete and copied.

        Raises RuntimeError where DALI refuses any of the files.
        """
        if self._pipeline is None:
            self._pipeline = self._build()
        pipeline = self._pipeline
        self._pipeline = None  # DALI cannot go on with a pipeline that failed
        pipeline.feed_input("files", list(files))
        pipeline.feed_input("frames", list(frames))
        pictures = pipeline.run()[0]
        if self._stream is None:
            found = self._copy(pictures)
        else:
            with torch.cuda.stream(self._stream):
                found = self._copy(pictures)
            self._stream.synchronize()
        self._pipeline = pipeline
        return found

    def _copy(self, pictures: Any) -> list[Tensor]:
        found = []
        for k in range(len(pictures)):
            shared = from_dlpack(pictures[k])
            found.append(shared.clone())
            shared.fill_(UNWRITTEN)
        return found

    def _build(self) -> Any:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        gpu = self.device.type == "cuda"
        pipeline = Pipeline(
            batch_size=self._most,
            num_threads=self._threads,
            device_id=self.device.index if gpu else None,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with pipeline:
            files = fn.external_source(name="files", ndim=1, dtype=types.DALIDataType.UINT8)
            frames = fn.external_source(name="frames", ndim=1, dtype=types.DALIDataType.INT32)
            pipeline.set_outputs(
                # Threads stay free to move: other ranks of the host pin theirs to the same first cores.
                fn.decoders.video(
                    files, device="mixed" if gpu else "cpu", frames=frames, pad_mode="none", affine=False
                )
            )
        pipeline.build()
        return pipeline


def with_index(device: torch.device) -> torch.device:
    """The same device; for "cuda" without a number the one that is current in this thread."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
