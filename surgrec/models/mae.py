"""Masked autoencoder: VideoMAE's objective (Tong et al. 2022, arXiv 2203.12602)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from surgrec.configs.model import VIT_SHAPES, MaeConfig
from surgrec.kernels.counter_rng import stream_key
from surgrec.kernels.masking import Grid, TubeMask, hidden_positions, some_tokens, tube_mask
from surgrec.kernels.patchify import patchify, token_grid, unpatchify
from surgrec.kernels.pixel_loss import pixel_loss
from surgrec.kernels.pixel_target import token_statistics
from surgrec.kernels.place_tokens import place_tokens
from surgrec.models.initial import initialise_mae
from surgrec.models.objective import Objective, ObjectiveOutput, check_clips
from surgrec.models.vit import (
    LAYER_NORM_EPS,
    Blocks,
    Positions,
    VisionTransformer,
    compute_dtype,
    linear_of_norm,
    transformer_flops,
)

GREY = 127


class Decoder(nn.Module):
    """Shallow transformer over visible and mask tokens; its head gives the pixels of the masked ones."""

    def __init__(self, config: MaeConfig, grid: Grid, values: int) -> None:
        super().__init__()
        width, heads = config.decoder_width, config.decoder_heads
        self.positions = Positions(config.position, grid, width, heads, uniform_power=True)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.blocks = Blocks(
            config.decoder_depth, width, heads, "zero", config.attention, config.checkpoint_activations
        )
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(width, values)

    def forward(self, visible: Tensor, mask: TubeMask) -> Tensor:
        """visible [B, Nv, width] -> values of the masked tokens [B, Nm, values]."""
        tokens = torch.cat([mask.visible, mask.masked], dim=1)
        if self.positions.turns:
            masked = self.mask_token.to(visible.dtype).expand(*mask.masked.shape, -1)
            x = torch.cat([visible, masked], dim=1)
        else:
            x = place_tokens(visible, self.mask_token, self.positions.table, tokens)
        state = self.blocks(x, None, self.positions.factors(tokens))
        # The masked ones are the last of each clip.
        numbers = torch.arange(tokens.numel(), device=tokens.device).view(tokens.shape)
        masked = numbers[:, mask.visible.shape[1] :].flatten()
        found = linear_of_norm(self.head, self.norm, state, masked)
        return found.unflatten(0, mask.masked.shape)


class MaskedAutoencoder(Objective):
    """Encode the visible tokens, decode the pixels of the masked ones, mean squared error over those."""

    fixed_shapes: ClassVar[bool] = True

    def __init__(self, config: MaeConfig, seed: int, frames: int = 16, size: int = 224) -> None:
        super().__init__()
        self.config = config
        self.grid = token_grid((frames, size, size, 3), config.tubelet, config.patch)
        self.mask_key = stream_key(seed, "mae/tube mask")
        self.rebuilt_key = stream_key(seed, "mae/rebuilt tokens")
        self.values = config.tubelet * config.patch**2 * 3
        shape = VIT_SHAPES[config.size]
        self.encoder = VisionTransformer(
            shape.depth,
            shape.width,
            shape.heads,
            self.grid,
            self.values,
            config.position,
            uniform_power=True,
            key_bias="zero",
            backend=config.attention,
            checkpoint_activations=config.checkpoint_activations,
        )
        self.encoder_to_decoder = nn.Linear(shape.width, config.decoder_width, bias=False)
        self.decoder = Decoder(config, self.grid, self.values)
        for part in (self.encoder.blocks, self.encoder_to_decoder, self.decoder):
            initialise_mae(part)
        nn.init.trunc_normal_(self.decoder.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(
        self, frames: Tensor, samples: Tensor, step: int = 0, monitor: bool = False
    ) -> ObjectiveOutput:
        """Loss of clips uint8 [B, T, H, W, 3]; samples int64 [B] choose the masks. There are no monitors."""
        samples = samples.to(frames.device, non_blocking=True)
        return ObjectiveOutput(self.loss(frames, self.rebuilt_mask(samples)))

    @property
    def rebuilt(self) -> int:
        """Tokens of a clip that the decoder rebuilds."""
        hidden = hidden_positions(self.grid, self.config.mask_ratio) * self.grid[0]
        return max(1, round(self.config.decoder_share * hidden))

    def rebuilt_mask(self, samples: Tensor) -> TubeMask:
        """The tube masks of these samples, of whose hidden tokens only those that the decoder rebuilds."""
        mask = self.mask(samples)
        if self.config.decoder_share == 1.0:
            return mask
        return TubeMask(mask.visible, some_tokens(self.rebuilt_key, samples, mask.masked, self.rebuilt))

    def mask(self, samples: Tensor) -> TubeMask:
        """The tube masks of these samples."""
        return tube_mask(self.mask_key, samples, self.grid, self.config.mask_ratio)

    def loss(self, frames: Tensor, mask: TubeMask) -> Tensor:
        """Mean squared error over the masked tokens, float32 []."""
        config = self.config
        predicted = self.predict(frames, mask)
        return pixel_loss(
            predicted, frames, mask.masked, config.tubelet, config.patch, config.normalise_target
        )

    def predict(self, frames: Tensor, mask: TubeMask) -> Tensor:
        """Values of the masked tokens as the decoder gives them: [B, Nm, tubelet * patch * patch * 3]."""
        state = self.encoder.before_norm(self._patches(frames, mask.visible), mask.visible)
        return self.decoder(linear_of_norm(self.encoder_to_decoder, self.encoder.norm, state), mask)

    def features(self, frames: Tensor) -> Tensor:
        """The encoder's output for every token: [B, N, width]."""
        tokens = torch.arange(math.prod(self.grid), device=frames.device).expand(len(frames), -1)
        return self.encoder(self._patches(frames, tokens), tokens)

    @torch.no_grad()
    def reconstruct(self, frames: Tensor, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures: the clips, what the encoder sees of them (masked tokens grey), what the decoder makes.

        Where targets are normalised, a masked token's own mean and deviation are put back, and the visible
        tokens show the input, as in VideoMAE's visualisation.

        Returns:
            Three uint8 [B, T, H, W, 3].
        """
        config = self.config
        mask = self.mask(samples.to(frames.device))
        predicted = self.predict(frames, mask).float()
        if config.normalise_target:
            mean, deviation = token_statistics(frames, mask.masked, config.tubelet, config.patch)
            pixels = predicted.unflatten(-1, (-1, 3))
            predicted = (pixels * deviation[:, :, None] + mean[:, :, None]).flatten(-2)
        colours = (predicted * 255).round().clamp(0, 255).to(torch.uint8)
        rebuilt = unpatchify(colours, mask.masked, frames, config.tubelet, config.patch)
        grey = torch.full_like(colours, GREY)
        return frames, unpatchify(grey, mask.masked, frames, config.tubelet, config.patch), rebuilt

    def no_weight_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Biases, norms and the mask token."""
        return super().no_weight_decay(name, parameter) or name.endswith("mask_token")

    def flops_per_clip(self) -> float:
        """See `Objective.flops_per_clip`."""
        config, encoder = self.config, self.encoder
        hidden = hidden_positions(self.grid, config.mask_ratio) * self.grid[0]
        tokens = math.prod(self.grid)
        visible = tokens - hidden
        forward = 2.0 * visible * self.values * encoder.width
        forward += transformer_flops(encoder.depth, encoder.width, visible, visible**2)
        forward += 2 * visible * encoder.width * config.decoder_width
        decoded = visible + self.rebuilt
        forward += transformer_flops(config.decoder_depth, config.decoder_width, decoded, decoded**2)
        forward += 2 * self.rebuilt * config.decoder_width * self.values
        return 3.0 * forward

    def _patches(self, frames: Tensor, tokens: Tensor) -> Tensor:
        config = self.config
        check_clips(frames.shape, self.grid, config.tubelet, config.patch)
        dtype = compute_dtype(self.encoder.patch_embedding.weight)
        return patchify(frames, tokens, config.tubelet, config.patch, config.mean, config.std, dtype)
