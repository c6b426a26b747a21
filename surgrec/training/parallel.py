"""DDP or FSDP2 around an objective, and what differs between them within a step.

FSDP2 divides weights, gradients, AdamW's moments and the teacher among the ranks. Weights stay whole from the
forward pass to the end of the backward pass: gathering them once a step is what is fastest, and these models
fit whole on any GPU that can train them; what does not fit are gradients and moments.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from surgrec.configs.pretrain import Parallel
from surgrec.models.objective import Objective
from surgrec.models.vit import Block
from surgrec.training.distributed import World

# Methods beside forward() that compute with the weights, and are called from outside.
ENTRY_POINTS = ("features", "reconstruct")


def wrap(
    objective: Objective, world: World, parallel: Parallel, stream: torch.cuda.Stream | None = None
) -> nn.Module:
    """The module to call in a step: DDP around the objective, or the objective itself, alone or under FSDP2.

    Call it before the optimizer is built: FSDP2 puts DTensors in the place of the parameters. stream: where
    steps will be captured (training/graphed.py), the stream for it: what DDP attaches to gradients stays with
    the one that it was made on.
    """
    if world.size == 1:
        return objective
    if parallel == "ddp":
        ids = [world.device.index] if world.device.type == "cuda" else None
        with warnings.catch_warnings(), torch.cuda.stream(stream):
            # Deprecated, but what is to replace it is not known to PyTorch 2.11.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            wrapped = DistributedDataParallel(
                objective, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        if stream is not None:
            torch.cuda.current_stream(world.device).wait_stream(stream)
        return wrapped
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in [part for part in objective.modules() if isinstance(part, Block)]:
        fully_shard(block, mesh=mesh, reshard_after_forward=False)
    # What is in no block (embeddings, norms, heads, mask tokens) is gathered together, at the start.
    fully_shard(objective, mesh=mesh, reshard_after_forward=False)
    for name in ENTRY_POINTS:
        if hasattr(objective, name):
            register_fsdp_forward_method(objective, name)
    return objective


def accumulating(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Around forward and backward of a micro-batch: only the last of a step sums gradients over ranks.

    Under FSDP2 the weights stay whole until then, so that only the first micro-batch gathers them.
    """
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_reshard_after_backward(last)
    return nullcontext()


def needs_all_ranks(model: nn.Module) -> bool:
    """Whether a forward pass of one rank needs the others, as it does where weights are divided."""
    return isinstance(model, FSDPModule)
