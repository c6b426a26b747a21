"""A batch in the making: cropped clips come to its rows, some of them cropped right there."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from surgrec.loaders.clip_plan import ClipRequest
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cropped:
    """Cropped clips of one batch: frames [n, T, S, S, 3], and the row of each."""

    frames: Tensor
    rows: list[int]
    requests: list[ClipRequest]
    substitutes: int


@dataclass(slots=True)
class BatchRows:
    """frames: [B, T, S, S, 3] on the device once the first clip is there, in torch's own memory. requests: by
    sample, of the clips that are there."""

    samples: range
    device: torch.device
    frames: Tensor | None = None
    requests: dict[int, ClipRequest] = field(default_factory=dict)
    substitutes: int = 0
    decoded_frames: int = 0

    def place(self, rows: list[int], clip: tuple[int, ...]) -> Tensor | None:
        """Where clips [T, S, S, 3] of these rows lie one behind the other; None where they do not."""
        return self._frames(clip)[rows[0] : rows[-1] + 1] if row_step(rows) == 1 else None

    def take(self, cropped: Cropped) -> None:
        """Takes cropped clips over; copies those that do not lie here."""
        frames, rows = self._frames(cropped.frames.shape[1:]), cropped.rows
        step = row_step(rows)
        if step:
            place = frames[rows[0] : rows[-1] + 1 : step]
            if place.data_ptr() != cropped.frames.data_ptr():
                place.copy_(cropped.frames)
        else:
            for row, clip in zip(rows, cropped.frames, strict=True):
                frames[row] = clip
        for request in cropped.requests:
            self.requests[request.sample] = request
        self.substitutes += cropped.substitutes

    def _frames(self, clip: tuple[int, ...]) -> Tensor:
        if self.frames is None:
            self.frames = torch.empty((len(self.samples), *clip), dtype=torch.uint8, device=self.device)
        return self.frames


def row_step(rows: list[int]) -> int:
    """From each row to the next, where that is the same upwards everywhere; 0 otherwise."""
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    return step if step > 0 and rows == list(range(rows[0], rows[-1] + 1, step)) else 0
