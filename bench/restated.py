"""The training steps of VideoMAE and V-JEPA 2 as their authors run them, restated plainly for comparison.

Not their code: what their papers and repositories do, step by step and eagerly. Both embed every token of the
float video and drop tokens afterwards. VideoMAE computes attention as softmax of a full matrix and its target
from the float video. V-JEPA 2 cuts the clips of a batch to equal lengths, passes each mask group through
encoder and predictor by itself, recomputes activations, and moves its teacher tensor by tensor.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from surgrec.configs.model import JepaConfig, MaeConfig


def float_video(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 [B, 3, T, H, W] of uint8 [B, T, H, W, 3], normalised."""
    means, stds = (torch.tensor(values, device=frames.device) for values in (mean, std))
    return ((frames.float() / 255 - means) / stds).permute(0, 4, 1, 2, 3).contiguous()


class Block(nn.Module):
    """Pre-norm block. plain: attention as a product with the whole softmax matrix."""

    def __init__(self, width: int, heads: int, plain: bool) -> None:
        super().__init__()
        self.heads, self.plain = heads, plain
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x [B, N, width]. turn: cosines and sines [B, 1, N, head width] of rotary positions."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if turn is not None:
            q, k = rotated(q, *turn), rotated(k, *turn)
        if self.plain:
            weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
            attended = weights @ v
        else:
            attended = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """x [B, heads, N, d] turned by rotary positions."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (x * cosines + torch.stack([-odd, even], -1).flatten(-2) * sines).to(x.dtype)


class VideoMae(nn.Module):
    """VideoMAE's pretraining model and loss."""

    def __init__(self, config: MaeConfig, frames: int, size: int) -> None:
        from surgrec.configs.model import VIT_SHAPES

        super().__init__()
        shape = VIT_SHAPES[config.size]
        token = (config.tubelet, config.patch, config.patch)
        self.config = config
        self.area = (size // config.patch) ** 2
        self.steps = frames // config.tubelet
        tokens = self.steps * self.area
        self.embed = nn.Conv3d(3, shape.width, token, token)
        self.encoder = nn.ModuleList(Block(shape.width, shape.heads, True) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.to_decoder = nn.Linear(shape.width, config.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_width))
        self.decoder = nn.ModuleList(
            Block(config.decoder_width, config.decoder_heads, True) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(config.decoder_width, eps=1e-6)
        self.head = nn.Linear(config.decoder_width, math.prod(token) * 3)
        self.register_buffer("positions", sinusoid(tokens, shape.width), persistent=False)
        self.register_buffer("decoder_positions", sinusoid(tokens, config.decoder_width), persistent=False)

    positions: Tensor
    decoder_positions: Tensor

    def tubes(self, count: int, device: torch.device) -> Tensor:
        """bool [B, tokens], true where hidden."""
        hidden = int(self.config.mask_ratio * self.area)
        ranks = torch.rand(count, self.area, device=device).argsort(1).argsort(1)
        return (ranks < hidden).repeat(1, self.steps)

    def forward(self, frames: Tensor) -> Tensor:
        """Loss of uint8 [B, T, H, W, 3]."""
        config, batch = self.config, len(frames)
        video = float_video(frames, config.mean, config.std)
        mask = self.tubes(batch, frames.device)
        target = self.target(video)[mask].unflatten(0, (batch, -1))
        x = self.embed(video).flatten(2).transpose(1, 2) + self.positions
        x = x[~mask].unflatten(0, (batch, -1))
        for block in self.encoder:
            x = block(x)
        x = self.to_decoder(self.norm(x))
        places = self.decoder_positions.expand(batch, -1, -1)
        seen = places[~mask].unflatten(0, (batch, -1))
        hidden = places[mask].unflatten(0, (batch, -1))
        x = torch.cat([x + seen, self.mask_token + hidden], dim=1)
        for block in self.decoder:
            x = block(x)
        predicted = self.head(self.decoder_norm(x[:, -hidden.shape[1] :]))
        return functional.mse_loss(predicted.float(), target)

    @torch.no_grad()
    def target(self, video: Tensor) -> Tensor:
        """Every token's pixels, normalised: float32 [B, tokens, values]."""
        config = self.config
        means, stds = (
            torch.tensor(v, device=video.device)[:, None, None, None] for v in (config.mean, config.std)
        )
        pixels = video * stds + means
        batch, _, time, height, width = pixels.shape
        t, p = config.tubelet, config.patch
        tokens = pixels.view(batch, 3, time // t, t, height // p, p, width // p, p)
        tokens = tokens.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4, 6).flatten(1, 3)
        centred = tokens - tokens.mean(dim=-2, keepdim=True)
        return (centred / (tokens.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6)).flatten(2)


def sinusoid(tokens: int, width: int) -> Tensor:
    """float32 [1, tokens, width]"""
    rates = 10000 ** -(torch.arange(width) // 2 * 2 / width)
    angles = torch.arange(tokens)[:, None] * rates
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos())[None]


class VJepa2(nn.Module):
    """V-JEPA 2's model and loss: encoder, predictor, EMA teacher."""

    def __init__(self, config: JepaConfig, frames: int, size: int) -> None:
        from surgrec.configs.model import VIT_SHAPES

        super().__init__()
        shape = VIT_SHAPES[config.size]
        self.config = config
        self.grid = (frames // config.tubelet, size // config.patch, size // config.patch)
        self.encoder = _Encoder(config, shape.depth, shape.width, shape.heads, self.grid)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        width = config.predictor_width
        self.embed = nn.Linear(shape.width, width)
        self.mask_tokens = nn.Parameter(torch.zeros(len(config.groups), width))
        self.predictor = nn.ModuleList(
            Block(width, config.predictor_heads, False) for _ in range(config.predictor_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.project = nn.Linear(width, shape.width)
        self.register_buffer("turns", rotary(self.grid, width // config.predictor_heads), persistent=False)

    turns: Tensor

    def forward(self, frames: Tensor, masks: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Loss. masks: for each group the context and target tokens, int64 [B, Nc] and [B, Nt]."""
        video = float_video(frames, self.config.mean, self.config.std)
        with torch.no_grad():
            teaching = self.teacher(video, None).float()
            teaching = functional.layer_norm(teaching, teaching.shape[-1:])
        losses = []
        for group, (context, target) in enumerate(masks):
            encoded = self.embed(self.encoder(video, context))
            hidden = self.mask_tokens[group].expand(*target.shape, -1).to(encoded.dtype)
            tokens = torch.cat([context, target], dim=1)
            order = tokens.argsort(dim=1)
            x = torch.cat([encoded, hidden], dim=1)
            x = x.gather(1, order[..., None].expand_as(x))
            turn = turned(self.turns, tokens.gather(1, order))
            for block in self.predictor:
                x = checkpoint(block, x, turn, use_reentrant=False)
            back = order.argsort(dim=1)[:, context.shape[1] :]
            x = self.project(self.norm(x.gather(1, back[..., None].expand(-1, -1, x.shape[-1]))))
            wanted = teaching.gather(1, target[..., None].expand(-1, -1, teaching.shape[-1]))
            losses.append((x.float() - wanted).abs().mean())
        return torch.stack(losses).mean()

    @torch.no_grad()
    def move_teacher(self, momentum: float) -> None:
        """Tensor by tensor."""
        for mine, theirs in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            mine.mul_(momentum).add_((1 - momentum) * theirs)


class _Encoder(nn.Module):
    def __init__(
        self, config: JepaConfig, depth: int, width: int, heads: int, grid: tuple[int, int, int]
    ) -> None:
        super().__init__()
        token = (config.tubelet, config.patch, config.patch)
        self.embed = nn.Conv3d(3, width, token, token)
        self.blocks = nn.ModuleList(Block(width, heads, False) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.register_buffer("turns", rotary(grid, width // heads), persistent=False)

    turns: Tensor

    def forward(self, video: Tensor, tokens: Tensor | None) -> Tensor:
        x = self.embed(video).flatten(2).transpose(1, 2)
        if tokens is None:
            tokens = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        else:
            x = x.gather(1, tokens[..., None].expand(-1, -1, x.shape[-1]))
        turn = turned(self.turns, tokens)
        for block in self.blocks:
            if torch.is_grad_enabled():
                x = checkpoint(block, x, turn, use_reentrant=False)
            else:
                x = block(x, turn)
        return self.norm(x)


def rotary(grid: tuple[int, int, int], width: int) -> Tensor:
    """float32 [tokens, 2, width]: the same tables as ours, for the same mathematics."""
    from surgrec.models.position import rotary_3d

    return rotary_3d(grid, width)


def turned(table: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, N, d] of tokens int64 [B, N]."""
    cosines, sines = table[tokens].unbind(-2)
    return cosines[:, None], sines[:, None]
