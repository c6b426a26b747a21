"""What fine-tuning must know of an encoder, of whichever kind: its layers, blocks and branches."""

from __future__ import annotations

import re
from typing import Final

from torch import nn

from surgrec.models.frame_encoder import FrameEncoder
from surgrec.models.timesformer import TimeSformer, set_clip_drop_path
from surgrec.models.timm_network import layers_of, set_frame_drop_path, undecayed
from surgrec.models.video_encoder import VideoEncoder, set_drop_path
from surgrec.weights.layout import Encoder

_BLOCK: Final = re.compile(r"(?:transformer\.)?blocks\.(\d+)\.")
_FIRST: Final = ("transformer.patch_embedding.", "patch_embedding.", "class_token", "place", "time")
"""Parameters of the layer before all blocks."""


def layers(encoder: Encoder) -> tuple[dict[str, int], int]:
    """The number of the layer of each parameter, and that of a head behind them: 0 for the embedding of
    patches, i + 1 for block i, depth + 1 for the final norm and the head (BEiT, Bao et al. 2021, arXiv
    2106.08254: get_num_layer_for_vit of its code, which VideoMAE shares). Those of a model of timm are
    timm's, with the head behind the last. Raises ValueError where timm tells none."""
    if isinstance(encoder, FrameEncoder):
        found = {f"model.{name}": layer for name, layer in layers_of(encoder.model).items()}
        return found, max(found.values()) + 1
    blocks = encoder.blocks if isinstance(encoder, TimeSformer) else encoder.transformer.blocks
    last = len(blocks) + 1
    return {name: _layer(name, last) for name, _ in encoder.named_parameters()}, last


def blocks_of(encoder: Encoder) -> nn.Module:
    """What low-rank additions are made to: its blocks, or all of a model of timm that has none."""
    if isinstance(encoder, VideoEncoder):
        return encoder.transformer.blocks
    if isinstance(encoder, TimeSformer):
        return encoder.blocks
    found: nn.Module = getattr(encoder.model, "blocks", encoder.model)
    return found


def undecayed_of(encoder: Encoder) -> set[str]:
    """Parameters of several dimensions that have no weight decay: positions and class tokens, as timm has
    it and TimeSformer's own code."""
    if isinstance(encoder, FrameEncoder):
        return {f"model.{name}" for name in undecayed(encoder.model)}
    return {"class_token", "place", "time"} if isinstance(encoder, TimeSformer) else set()


def set_branches(encoder: Encoder, last: float) -> None:
    """Drop path, which rises linearly to `last` at the last block; of a clip, in an image model of a frame.
    Raises ValueError for a model without branches."""
    if isinstance(encoder, VideoEncoder):
        set_drop_path(encoder, last)
    elif isinstance(encoder, TimeSformer):
        set_clip_drop_path(encoder, last)
    else:
        set_frame_drop_path(encoder.model, last)


def _layer(name: str, last: int) -> int:
    block = _BLOCK.match(name)
    if block:
        return int(block[1]) + 1
    return 0 if name.startswith(_FIRST) else last
