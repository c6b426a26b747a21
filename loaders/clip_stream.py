"""ClipStream: given clips, cropped, in their order, once each, and none replaced by another.

What reads a corpus through (embedding, features, fine-tuning) wants every clip that it asks for, or the
reason why there is none; ClipLoader, which pretrains, draws clips without end and substitutes those that
fail. Both decode and crop by the same engines and the same crops:

    groups of requests --submit, some ahead--> engine --in order--> crop --> group by group
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from surgrec.configs.data import DataConfig
from surgrec.loaders.clip_loader import AHEAD, SPARE, checked_device, parallel_clips
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_producer import CHUNK, CROP_SHARE
from surgrec.loaders.clip_source import check_areas, content_of
from surgrec.loaders.crop import CropWindows, RandomCrop, centre_windows
from surgrec.loaders.crop_way import make_crop
from surgrec.loaders.engines.base import ClipFailure, DecodedClip, Outcome
from surgrec.loaders.engines.select import make_engine
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.picture_bytes import picture_bytes
from surgrec.loaders.streams import loader_stream
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """What came of a group of k requests. frames: uint8 [b, T, S, S, 3] of those that could be decoded, on
    the stream's device. requests: of each of the b rows, in order. failures: of the others."""

    frames: Tensor
    requests: list[ClipRequest]
    failures: list[ClipFailure]


class ClipStream:
    """Reads clips of one index. Close it, or use it in a `with` statement: it holds decoders."""

    def __init__(
        self,
        index: PacketIndex,
        data: DataConfig,
        device: str | torch.device,
        threads: int,
        content_area: ArrayLike | None = None,
        chunk: int = CHUNK,
    ) -> None:
        """data: size, engine and the bounds of memory; nothing is drawn. threads: of the CPU that decode.
        content_area: int32 [V, 4] as in ClipSource; windows are the largest square, as displayed, at its
        centre. chunk: clips that are cropped at once; their pictures are held until then, so that long ones
        are better cropped one by one.

        Raises ValueError for a field of `data` that makes no sense, or a device that is not there.
        """
        self.index = index
        self.device = checked_device(device)
        self._areas = None if content_area is None else check_areas(index, content_area)
        self._cropper = make_crop(data.size, chunk, self.device, threads, data.crop)
        self._chunk = chunk
        self._bytes = data.picture_mib << 20
        self._engine = make_engine(index, data, threads, self.device)
        self._ahead = SPARE + AHEAD * parallel_clips(self._engine, threads)
        self._side = loader_stream(self.device) if self.device.type == "cuda" else None

    def read(
        self, groups: Iterable[Sequence[ClipRequest]], crop: RandomCrop | None = None
    ) -> Iterator[Group]:
        """Each group of requests, all of as many frames, as soon as it is decoded and cropped. Groups are
        asked for as decoding goes ahead; empty ones give none. crop: draws windows by the requests' sample
        numbers, in the place of the largest square. Between two groups others may be read."""
        sizes: deque[int] = deque()
        waiting: deque[tuple[Future[Outcome], int]] = deque()
        upcoming = _one_by_one(groups, sizes)
        following = next(upcoming, None)
        held = 0
        try:
            while sizes:
                failures: list[ClipFailure] = []
                decoded: list[DecodedClip] = []
                requests: list[ClipRequest] = []
                parts: list[Tensor] = []
                decoded_bytes = 0
                for left in range(sizes[0], 0, -1):
                    while following is not None and len(waiting) < self._ahead:
                        nbytes = picture_bytes(self.index, following, self.device)
                        if waiting and held + nbytes > self._bytes:
                            break  # one is always let through
                        held += nbytes
                        waiting.append((self._engine.submit(following), nbytes))
                        following = next(upcoming, None)
                    future, nbytes = waiting.popleft()
                    outcome = future.result()
                    if isinstance(outcome, DecodedClip):
                        decoded.append(outcome)
                        decoded_bytes += nbytes
                    else:
                        failures.append(outcome)
                        held -= nbytes
                    full = len(decoded) >= self._chunk or decoded_bytes * CROP_SHARE >= self._bytes
                    if decoded and (full or left == 1):
                        requests += [clip.request for clip in decoded]
                        parts.append(self._crop(decoded, crop))
                        decoded = []
                        held -= decoded_bytes
                        decoded_bytes = 0
                sizes.popleft()
                frames = torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8, device=self.device)
                yield Group(frames, requests, failures)
        finally:
            for future, _ in waiting:
                future.cancel()

    def _crop(self, clips: list[DecodedClip], crop: RandomCrop | None) -> Tensor:
        """uint8 [b, T, S, S, 3], torch's own memory. On a GPU beside what the caller has queued there."""
        areas, sar = content_of(self.index, self._areas, clips)
        if crop is None:
            inside = centre_windows(areas[:, 3], areas[:, 2], sar)
        else:
            samples = [clip.request.sample for clip in clips]
            inside = crop.windows(samples, areas[:, 3], areas[:, 2], sar)
        windows = CropWindows(
            inside.top + areas[:, 0], inside.left + areas[:, 1], inside.height, inside.width, inside.flip
        )
        with self._on_side():
            cropped = self._cropper([clip.frames for clip in clips], windows)
            if self._side is not None:
                self._side.synchronize()
        if cropped.is_cuda:
            cropped.record_stream(torch.cuda.current_stream(self.device))
        return cropped

    def _on_side(self) -> AbstractContextManager[object]:
        return nullcontext() if self._side is None else torch.cuda.stream(self._side)

    def close(self) -> None:
        """Stops decoding. May be called again."""
        self._engine.close()

    def __enter__(self) -> ClipStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _one_by_one(groups: Iterable[Sequence[ClipRequest]], sizes: deque[int]) -> Iterator[ClipRequest]:
    """The requests of all groups; `sizes` gets that of each group with its first request."""
    for group in groups:
        if group:
            sizes.append(len(group))
            yield from group
