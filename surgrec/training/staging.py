"""Copies of a rank's tensors on the host, to write a checkpoint from while training goes on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from surgrec.training.distributed import World


class HostCopies:
    """Host memory for one checkpoint, pinned beside a GPU, kept from one to the next.

    The copies are queued behind the work of the step and before that of the next, so they are of this very
    step although nobody waits; `wait` is for the thread that reads them.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._buffers: dict[str, Tensor] = {}
        self._mesh: DeviceMesh | None = None
        self._copied: torch.cuda.Event | None = None

    def take(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Start copying this rank's part of `tensors`; a later call overwrites what an earlier one gave.

        Of a DTensor that is its shard, again as a DTensor; of the others, which every rank has whole, a share
        by size.
        """
        pinned = self._world.device.type == "cuda"
        taken: dict[str, Tensor] = {}
        for name, tensor in own_share(tensors, self._world.rank, self._world.size).items():
            source = tensor.detach()
            local = source.to_local() if isinstance(source, DTensor) else source
            buffer = self._buffers.get(name)
            if buffer is None:
                buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=pinned)
                self._buffers[name] = buffer
            buffer.copy_(local, non_blocking=True)
            taken[name] = self._shard(buffer, source) if isinstance(source, DTensor) else buffer
        if pinned:
            self._copied = torch.cuda.Event()
            self._copied.record()
        return taken

    def wait(self) -> None:
        """Until the copies are there."""
        if self._copied is not None:
            self._copied.synchronize()

    def _shard(self, buffer: Tensor, source: DTensor) -> DTensor:
        # On a mesh of the GPUs it would be moved back to them.
        if self._mesh is None:
            self._mesh = init_device_mesh("cpu", (self._world.size,))
        return DTensor.from_local(
            buffer,
            self._mesh,
            source.placements,
            run_check=False,
            shape=source.shape,
            stride=source.stride(),
        )


def own_share(tensors: dict[str, Tensor], rank: int, ranks: int) -> dict[str, Tensor]:
    """What `rank` copies and writes: all DTensors, and of the others about as many bytes as any other rank.

    Every rank comes to the same division, which gives the largest tensor left to the rank with least so far.
    """
    loads = [0] * ranks
    kept = {name for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
    whole = {name: tensor for name, tensor in tensors.items() if name not in kept}
    for name in sorted(whole, key=lambda name: -whole[name].nbytes):
        owner = loads.index(min(loads))
        loads[owner] += whole[name].nbytes
        if owner == rank:
            kept.add(name)
    return {name: tensor for name, tensor in tensors.items() if name in kept}
