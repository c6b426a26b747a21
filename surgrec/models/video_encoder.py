"""The encoder of a pretrained model by itself, on all tokens of a clip: what is fine-tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from surgrec.configs.model import VIT_SHAPES, JepaConfig, MaeConfig
from surgrec.kernels.masking import Grid
from surgrec.kernels.patchify import patchify, plain_patches
from surgrec.models.encoder_form import EncoderForm, transformer_of
from surgrec.models.jepa import Jepa
from surgrec.models.mae import MaskedAutoencoder
from surgrec.models.objective import Objective, check_clips
from surgrec.models.vit import Block, VisionTransformer, compute_dtype


class VideoEncoder(nn.Module):
    """A transformer with what turns frames into its tokens: [B, T, S, S, 3] -> [B, N, width].

    Frames are uint8, or floating-point in 0..1.
    """

    def __init__(self, transformer: VisionTransformer, form: EncoderForm) -> None:
        super().__init__()
        self.transformer = transformer
        self.form = form
        self.pool_norm = (
            nn.Identity() if form.pool_norm == "none" else nn.LayerNorm(form.width, eps=form.pool_eps)
        )

    @property
    def width(self) -> int:
        """Of a token, D."""
        return self.transformer.width

    @property
    def pooled_width(self) -> int:
        """Of what is pooled."""
        return self.width

    def forward(self, frames: Tensor) -> Tensor:
        form, transformer = self.form, self.transformer
        check_clips(frames.shape, transformer.grid, form.tubelet, form.patch)
        tokens = torch.arange(math.prod(transformer.grid), device=frames.device).expand(len(frames), -1)
        dtype = compute_dtype(transformer.patch_embedding.weight)
        if frames.is_floating_point():
            # The kernel reads uint8 only.
            clips = torch.arange(len(frames), device=frames.device)[:, None].expand_as(tokens)
            pixels = frames.float() * 255
            patches = plain_patches(
                pixels, clips, tokens, form.tubelet, form.patch, form.mean, form.std, dtype
            )
        else:
            patches = patchify(frames, tokens, form.tubelet, form.patch, form.mean, form.std, dtype)
        features: Tensor = transformer(patches, tokens)
        return features

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled, float32 [B, width], and tokens, as forward."""
        tokens = self(frames)
        return self.pool(tokens), tokens

    def pool(self, tokens: Tensor) -> Tensor:
        """float32 [B, width] of tokens [B, N, width]: their mean, normalised where the model does so."""
        pooled: Tensor = self.pool_norm(tokens.float().mean(1))
        return pooled


def encoder_of(objective: Objective) -> VideoEncoder:
    """The network that `objective.features` asks, MAE's encoder or JEPA's teacher; all of it is trainable."""
    if isinstance(objective, MaskedAutoencoder):
        transformer = objective.encoder
    else:
        assert isinstance(objective, Jepa)
        transformer = objective.teacher
    return VideoEncoder(transformer.requires_grad_(True), form_of(objective.config, transformer.grid))


def form_of(config: MaeConfig | JepaConfig, grid: Grid) -> EncoderForm:
    """Of the encoder that an objective of this configuration has for clips of this grid of tokens."""
    shape = VIT_SHAPES[config.size]
    steps, rows, _ = grid
    jepa = isinstance(config, JepaConfig)
    return EncoderForm(
        depth=shape.depth,
        width=shape.width,
        heads=shape.heads,
        hidden=4 * shape.width,
        frames=steps * config.tubelet,
        size=rows * config.patch,
        position=config.position,
        key_bias="learned" if jepa else "zero",
        tubelet=config.tubelet,
        patch=config.patch,
        uniform_power=config.uniform_power if isinstance(config, JepaConfig) else True,
        mean=config.mean,
        std=config.std,
    )


def build_encoder(form: EncoderForm, weights: Mapping[str, Tensor]) -> VideoEncoder:
    """An encoder of this form with these weights, by their names in VideoEncoder; float32, nothing is copied
    that is so already. Raises ValueError, or RuntimeError of PyTorch, where they do not fit."""
    transformer = transformer_of(form)
    with torch.device("meta"):
        encoder = VideoEncoder(transformer, form)
    encoder.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return encoder.requires_grad_(True)


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
    # Only where it is used: timm takes seconds to import.
    from timm.layers.drop import drop_path

    x = x + drop_path(block.attention.proj(attended.flatten(-2)), probability, block.training)
    return x + drop_path(block.mlp(block.norm2(x)), probability, block.training)
