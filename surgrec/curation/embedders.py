"""What describes segments, by name: the descriptor, an image model of timm, one of our own checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from surgrec.configs.curate import EmbedOptions
from surgrec.curation.records import CurationError
from surgrec.loaders.packet_index import PacketIndex

DESCRIPTOR: Final = "descriptor"

Choose = Callable[[PacketIndex, int, int, int], tuple[int, ...]]
"""(index, video, start, end) -> display positions of the frames of a segment that are looked at, always as
many, not decreasing."""
Encode = Callable[[Tensor, list[tuple[int, ...]]], Tensor]
"""(frames uint8 [b, T, S, S, 3], display positions of each row) -> float32 [b, D] of unit length, on the
frames' device."""


@dataclass(frozen=True)
class Network:
    """A network that is ready to compute. size: of its pictures, in pixels."""

    size: int
    choose: Choose
    encode: Encode


@dataclass(frozen=True)
class Embedder:
    """identity: plain text that differs where vectors would, weights included, wherever these lie. load: the
    network on a device; None for the descriptor, which needs none."""

    identity: str
    load: Callable[[torch.device], Network] | None = None


def embedder_of(options: EmbedOptions) -> Embedder:
    """What options.embedder names. A file or checkpoint is read once, to know what it holds; weights that
    must be fetched are not yet fetched.

    Raises CurationError, naming the remedy, for a name that does not exist, or a file that is not there or
    damaged.
    """
    if options.batch < 1:
        raise CurationError(f"embed.batch is {options.batch}; a network sees at least 1 segment at a time")
    if options.embedder == DESCRIPTOR:
        return Embedder(DESCRIPTOR)
    kind, _, name = options.embedder.partition(":")
    if kind == "timm" and name:
        from surgrec.curation.timm_embedder import timm_embedder

        model, at, file = name.partition("@")
        return timm_embedder(model, Path(file) if at else None)
    if kind == "ckpt" and name:
        from surgrec.curation.checkpoint_embedder import checkpoint_embedder

        return checkpoint_embedder(Path(name))
    raise CurationError(
        f"there is no embedder {options.embedder!r}: choose descriptor, timm:MODEL, timm:MODEL@FILE, or"
        f" ckpt:PATH"
    )


def unit(vectors: Tensor) -> Tensor:
    """float32, each of unit length."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU; on a CPU, all in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
