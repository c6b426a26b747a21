"""One process or many: who this process is, and the few things that ranks tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from surgrec.training.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the others.

    `control` is a gloo group for host messages, `storage` another for those of the thread that writes
    checkpoints; None for one process.
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    storage: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Rank 0, which prints and writes."""
        return self.rank == 0

    def share(self, value: T) -> T:
        """The value of rank 0, on every rank."""
        if self.control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def share_result(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, on every rank; a UserError or OSError is raised on every rank."""
        result: T | UserError | OSError | None = None
        if self.first:
            try:
                result = work()
            except (UserError, OSError) as error:
                if self.control is None:
                    raise
                result = error
        shared = self.share(result)
        if isinstance(shared, UserError | OSError):
            raise shared
        return shared  # type: ignore[return-value]  # rank 0 has set it

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in rank order, on every rank."""
        if self.control is None:
            return [value]
        box: list[T | None] = [None] * self.size
        dist.all_gather_object(box, value, group=self.control)
        return box  # type: ignore[return-value]  # every place has been filled

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks in place, on the tensor's device."""
        if self.control is not None:
            dist.all_reduce(tensor)
        return tensor

    def for_storage(self) -> World:
        """The same ranks, talking over `storage`: for a thread beside the one that trains."""
        return replace(self, control=self.storage)


ALONE = World(0, 0, 1, torch.device("cpu"))
"""One process that computes on the CPU."""


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """`auto` takes this rank's GPU where there is one, else the CPU.

    Raises UserError where `cuda` is asked and not there.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise UserError(
                f"local rank {local_rank} has no GPU: this machine shows {count}. "
                f"Start torchrun with --nproc-per-node {count} or fewer, or give --device cpu."
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device
    if wanted == "cuda":
        raise UserError(
            "no GPU: --device cuda was asked but PyTorch sees none. "
            "`python -m surgrec.doctor` says why; --device cpu runs without one."
        )
    return torch.device("cpu")


def start_world(device: str, patience: timedelta = timedelta(hours=1)) -> World:
    """Read torchrun's environment; with WORLD_SIZE above 1 join the group: NCCL on GPUs, else gloo.

    patience: how long a host message waits for ranks that are there, but busy.

    Raises UserError where the device is not there, or a restart cannot work.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local_rank)
    if size == 1:
        return World(0, 0, 1, chosen)
    gpu = chosen if chosen.type == "cuda" else None
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    store = _fresh_store()
    if store is None:
        dist.init_process_group(backend, device_id=gpu)
    else:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, device_id=gpu)
    # Host messages have their own group: they wait for slow ranks (a checkpoint) and never touch the GPU.
    control = dist.new_group(backend="gloo", timeout=patience)
    # Two threads must not use one group: their messages would be taken for one another.
    storage = dist.new_group(backend="gloo", timeout=patience)
    assert isinstance(control, dist.ProcessGroup)
    assert isinstance(storage, dist.ProcessGroup)
    return World(rank, local_rank, size, chosen, control, storage)


def _fresh_store() -> Any:
    """A part of torchrun's store in which no earlier start of the ranks has written; None where it has none.

    torchrun keeps its store from one restart to the next, and with it the addresses of ranks that are gone,
    which new ones would try to reach (pytorch issue 135712). It counts restarts for each machine apart, so
    that the count tells starts apart only where there is one machine. Raises UserError where there are more.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if not restarts:
        return None
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        raise UserError(
            "ranks on several machines cannot be restarted with torchrun's shared store, which still holds "
            "the addresses of those that died. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on each "
            "machine, and start again with the same command."
        )
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]  # not in its stubs
    return dist.PrefixStore(f"restart-{restarts}", store)  # type: ignore[attr-defined]  # nor this


def stop_world(world: World) -> None:
    """Leave the process group."""
    if world.control is not None:
        dist.destroy_process_group()


class SharedFlag:
    """A number that every rank learns of one step later, without anyone waiting for the slowest now.

    `exchange(value)` starts the maximum over ranks of this step's value and returns that of the step before.
    With one process it returns the value at once.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: tuple[dist.Work, Tensor] | None = None

    def exchange(self, value: int) -> int:
        if self._world.control is None:
            return value
        seen = 0
        if self._pending is not None:
            work, tensor = self._pending
            work.wait()
            seen = int(tensor.item())
        tensor = torch.tensor([value], dtype=torch.int32)
        work = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._world.control, async_op=True)
        assert work is not None
        self._pending = (work, tensor)
        return seen

    def close(self) -> None:
        """Wait for the exchange that is under way."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None
