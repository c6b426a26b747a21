"""V-JEPA's predictor: from the features of the context to the features of the targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgrec.configs.model import JepaConfig
from surgrec.kernels.masking import Grid
from surgrec.models.packing import Packed, take_rows
from surgrec.models.vit import LAYER_NORM_EPS, Blocks, Positions, linear_of_norm


class Predictor(nn.Module):
    """A narrow transformer over projected context tokens and mask tokens, with positions of its own."""

    def __init__(self, config: JepaConfig, grid: Grid, features: int) -> None:
        """`features` is the width of the encoder."""
        super().__init__()
        width, heads = config.predictor_width, config.predictor_heads
        self.embedding = nn.Linear(features, width)
        # One for each mask group. V-JEPA starts them at zero, and does decay their weight.
        self.mask_tokens = nn.Parameter(torch.zeros(len(config.groups), width))
        self.positions = Positions(config.position, grid, width, heads, config.uniform_power)
        self.blocks = Blocks(
            config.predictor_depth, width, heads, "learned", config.attention, config.checkpoint_activations
        )
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.proj = nn.Linear(width, features)

    def forward(self, features: Tensor, context: Packed, target: Packed, groups: Tensor) -> Tensor:
        """Predictions at the targets of packed sequences.

        Args:
            features: [C, width of the encoder], of the C context tokens.
            context, target: of the same sequences.
            groups: int64 [sequences], the mask group of each, which chooses the mask token.

        Returns:
            [M, width of the encoder], one row for each of the M target tokens, in their order.
        """
        sequences = torch.arange(len(groups), device=features.device)
        # Brings context and targets of a sequence together; `place` says where each token has gone.
        order = torch.cat([context.repeat(sequences), target.repeat(sequences)]).argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=features.device)

        embedded = self.embedding(features)
        masked = target.repeat(self.mask_tokens[groups].to(embedded.dtype))
        tokens = torch.cat([context.tokens, target.tokens])
        x = take_rows(self.positions.add(torch.cat([embedded, masked]), tokens), order)
        lengths = [c + t for c, t in zip(context.lengths, target.lengths, strict=True)]
        state = self.blocks(x, lengths, self.positions.factors(tokens[order]))
        return linear_of_norm(self.proj, self.norm, state, place[len(features) :])
