"""The encoder of a pretrained model by itself, on all tokens of a clip: what is fine-tuned."""

from __future__ import annotations

import math
from functools import partial

import torch
from timm.layers.drop import drop_path
from torch import Tensor, nn

from surgrec.configs.model import JepaConfig, MaeConfig
from surgrec.kernels.patchify import patchify
from surgrec.models.jepa import Jepa
from surgrec.models.mae import MaskedAutoencoder
from surgrec.models.objective import Objective, check_clips
from surgrec.models.vit import Block, VisionTransformer, compute_dtype


class VideoEncoder(nn.Module):
    """A transformer with what turns frames into its tokens: uint8 [B, T, S, S, 3] -> [B, N, width]."""

    def __init__(self, transformer: VisionTransformer, config: MaeConfig | JepaConfig) -> None:
        super().__init__()
        self.transformer = transformer
        self.config = config

    @property
    def width(self) -> int:
        """Of a token, D."""
        return self.transformer.width

    def forward(self, frames: Tensor) -> Tensor:
        config, transformer = self.config, self.transformer
        check_clips(frames.shape, transformer.grid, config.tubelet, config.patch)
        tokens = torch.arange(math.prod(transformer.grid), device=frames.device).expand(len(frames), -1)
        dtype = compute_dtype(transformer.patch_embedding.weight)
        patches = patchify(frames, tokens, config.tubelet, config.patch, config.mean, config.std, dtype)
        features: Tensor = transformer(patches, tokens)
        return features


def encoder_of(objective: Objective) -> VideoEncoder:
    """The network that `objective.features` asks, MAE's encoder or JEPA's teacher; all of it is trainable."""
    if isinstance(objective, MaskedAutoencoder):
        transformer = objective.encoder
    else:
        assert isinstance(objective, Jepa)
        transformer = objective.teacher
    return VideoEncoder(transformer.requires_grad_(True), objective.config)


def set_drop_path(encoder: VideoEncoder, last: float) -> None:
    """While training, the branches of block i of L are left out for a clip with probability last * i / (L -
    1), and divided by the probability of staying (Huang et al. 2016, arXiv 1603.09382; the linear rule of
    timm and VideoMAE). Blocks then compute plainly, and keep their activations: drawn anew, masks would
    differ."""
    blocks = encoder.transformer.blocks
    blocks.checkpoint_activations = False
    for number, block in enumerate(blocks):
        assert isinstance(block, Block)
        block.fused = False
        behind = partial(_dropping, block, last * number / max(len(blocks) - 1, 1))
        block.halves = dict.fromkeys((False, True), (block.before, behind))


def _dropping(block: Block, probability: float, x: Tensor, attended: Tensor) -> Tensor:
    """`Block.behind` with drop path."""
    x = x + drop_path(block.attention.proj(attended.flatten(-2)), probability, block.training)
    return x + drop_path(block.mlp(block.norm2(x)), probability, block.training)
