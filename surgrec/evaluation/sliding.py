"""Clips of windows that overlap, from frames that are decoded and cropped once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgrec.evaluation.window_plan import Window, pieces_of
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.packet_index import PacketIndex


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """numbers: of b windows. frames: uint8 [b, T, S, S, 3] on the stream's device. missing: number of a
    window that cannot be read -> reason."""

    numbers: list[int]
    frames: Tensor
    missing: dict[int, str]


@dataclass(slots=True)
class _Held:
    """Cropped frames that windows to come may want. positions: int64 [F], on display, ascending."""

    positions: NDArray[np.int64]
    frames: Tensor

    def add(self, positions: tuple[int, ...], frames: Tensor) -> None:
        joined = torch.cat([self.frames, frames]) if len(self.positions) else frames
        self.positions, self.frames = np.append(self.positions, positions), joined

    def drop_before(self, position: int) -> None:
        first = int(np.searchsorted(self.positions, position))
        self.positions, self.frames = self.positions[first:], self.frames[first:]

    def rows(self, frames: tuple[int, ...]) -> NDArray[np.int64] | None:
        """Where a window's frames are; None unless all are held."""
        at = np.searchsorted(self.positions, frames)
        if not len(self.positions) or at[-1] >= len(self.positions):
            return None
        return at if np.array_equal(self.positions[at], frames) else None


def read_windows(
    stream: ClipStream,
    index: PacketIndex,
    video: int,
    windows: dict[int, Window],
    batch: int,
    most_bytes: int,
) -> Iterator[WindowBatch]:
    """Every window of a video once, `batch` at a time at most: its frames, or why it cannot be read.

    windows: by number, in the order of their times. Frames are decoded once, in pieces of at most most_bytes;
    where a piece cannot be decoded, its windows are read one by one at the end, so that what one of them is
    does not depend on the others.
    """
    pieces = pieces_of(index, video, list(windows.values()), stream.device, most_bytes)
    held = _Held(np.empty(0, np.int64), torch.empty(0, dtype=torch.uint8, device=stream.device))
    waiting = list(windows.items())
    alone: list[tuple[int, Window]] = []
    groups = stream.read([ClipRequest(number, video, piece)] for number, piece in enumerate(pieces))
    for piece, group in zip(pieces, groups, strict=True):
        if group.requests:
            held.add(piece, group.frames[0])
        count = next((k for k, (_, each) in enumerate(waiting) if each.frames[-1] > piece[-1]), len(waiting))
        here, waiting = waiting[:count], waiting[count:]
        placed = [(number, window, held.rows(window.frames)) for number, window in here]
        alone += [(number, window) for number, window, rows in placed if rows is None]
        ready = [(number, rows) for number, _, rows in placed if rows is not None]
        for first in range(0, len(ready), batch):
            part = ready[first : first + batch]
            rows = torch.from_numpy(np.stack([rows for _, rows in part])).to(stream.device)
            yield WindowBatch([number for number, _ in part], held.frames[rows], {})
        held.drop_before(waiting[0][1].frames[0] if waiting else piece[-1] + 1)
    yield from _one_by_one(stream, video, alone, batch)


def _one_by_one(
    stream: ClipStream, video: int, windows: Sequence[tuple[int, Window]], batch: int
) -> Iterator[WindowBatch]:
    requests = [ClipRequest(number, video, window.frames) for number, window in windows]
    parts = [requests[first : first + batch] for first in range(0, len(requests), batch)]
    for group in stream.read(parts):
        missing = {failure.request.sample: failure.reason for failure in group.failures}
        yield WindowBatch([request.sample for request in group.requests], group.frames, missing)
