"""Random clips on the device, numbered over all ranks as ClipLoader numbers them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from surgrec.configs.pretrain import PretrainConfig
    from surgrec.loaders.clip_plan import ClipRequest
    from torch import Tensor

    from surgrec.training.distributed import World
    from surgrec.training.step import Batch

CELL: Final = 8
"""Edge in pixels of the squares that drawn clips consist of: smaller than a patch, so that none is plain."""


class Clips:
    """Micro-batches of `rows` clips of one rank of `world`, without end.

    drawn: each is drawn from the number of its first sample, so that any number of ranks sees the same clips
    under the same numbers. Else all hold the same noise, which costs a step nothing.
    """

    def __init__(self, config: PretrainConfig, rows: int, world: World, drawn: bool = False) -> None:
        self._rows = rows
        self._world = world
        self._size, self._frames = config.data.size, config.data.frames
        self._noise = None if drawn else self._draw(0, 1)
        self.next_sample = 0

    def __next__(self) -> Batch:
        import torch
        from surgrec.loaders.clip_loader import Batch

        first = self.next_sample + self._world.rank * self._rows
        self.next_sample += self._world.size * self._rows
        frames = self._draw(first, CELL) if self._noise is None else self._noise
        requests: list[ClipRequest] = []
        return Batch(frames, torch.arange(first, first + self._rows), requests, 0, 0, 0.0)

    def _draw(self, seed: int, cell: int) -> Tensor:
        """uint8 [rows, T, S, S, 3] of squares of cell x cell pixels."""
        import torch

        device, edge = self._world.device, -(-self._size // cell)
        generator = torch.Generator(device).manual_seed(seed)
        shape = (self._rows, self._frames, edge, edge, 3)
        coarse = torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator)
        fine = coarse.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
        return fine[:, :, : self._size, : self._size].contiguous()

    def state_dict(self) -> dict[str, Any]:
        return {"next_sample": self.next_sample}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next_sample = state["next_sample"]
