"""What follows from a configuration on a machine: shares of the batch, arithmetic; and what cannot be."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from surgrec.configs.pretrain import PretrainConfig
from surgrec.training.errors import UserError


@dataclass(frozen=True)
class BatchShape:
    """global_batch = accumulation * world_size * micro_batch, in clips."""

    global_batch: int
    micro_batch: int
    accumulation: int


def batch_shape(config: PretrainConfig, world_size: int) -> BatchShape:
    """How the global batch is shared out. Raises UserError where it does not divide."""
    share, rest = divmod(config.batch, world_size)
    if rest or not share:
        below = max(share, 1) * world_size
        raise UserError(
            f"--batch {config.batch} cannot be shared among {world_size} ranks: it must be a multiple of "
            f"{world_size}, such as {below} or {below + world_size}."
        )
    micro = share if config.micro_batch is None else min(config.micro_batch, share)
    if micro < 1 or share % micro:
        divisors = [d for d in range(1, share + 1) if share % d == 0]
        raise UserError(
            f"--micro-batch {config.micro_batch} does not divide the {share} clips of a rank "
            f"(--batch {config.batch} over {world_size} ranks). It may be {', '.join(map(str, divisors))}."
        )
    return BatchShape(config.batch, micro, share // micro)


def choose_precision(config: PretrainConfig, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on the CPU."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.precision == "bf16" else torch.float32
