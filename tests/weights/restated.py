"""VideoMAE and V-JEPA in plain PyTorch, from their papers and their files' keys; nothing of the project's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])


class Attention(nn.Module):
    """Softmax attention; queries and values have biases (VideoMAE), or all three (V-JEPA)."""

    def __init__(self, width: int, heads: int, split_bias: bool, cosine: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=not split_bias)
        if split_bias:
            self.q_bias = nn.Parameter(torch.randn(width))
            self.v_bias = nn.Parameter(torch.randn(width))
        if cosine:
            self.scale = nn.Parameter(torch.linspace(2.0, 6.0, heads).view(heads, 1, 1))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        found = self.qkv(x)
        if hasattr(self, "q_bias"):
            found = found + torch.cat([self.q_bias, torch.zeros(width), self.v_bias])
        q, k, v = (part.view(batch, count, self.heads, -1).transpose(1, 2) for part in found.split(width, 2))
        if hasattr(self, "scale"):
            q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
            logits = (q @ k.transpose(2, 3)) * self.scale.clamp(max=math.log(100.0)).exp()
        else:
            logits = (q @ k.transpose(2, 3)) / math.sqrt(width // self.heads)
        return self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, count, width))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, split_bias: bool, cosine: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, split_bias, cosine)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, (2, 16, 16), (2, 16, 16))

    def forward(self, clips: Tensor) -> Tensor:
        """uint8 [B, T, S, S, 3] -> [B, N, width]"""
        pixels = (clips.double() / 255 - MEAN.double()) / STD.double()
        return self.proj(pixels.float().permute(0, 4, 1, 2, 3)).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Called with positions [1, N, width]. end: `norm`, or `fc_norm` behind a mean."""

    def __init__(
        self,
        depth: int = 2,
        width: int = 192,
        heads: int = 3,
        hidden: int = 768,
        split_bias: bool = True,
        cosine: bool = False,
        end: str = "norm",
    ) -> None:
        super().__init__()
        self.patch_embed = Patches(width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, split_bias, cosine) for _ in range(depth))
        setattr(self, end, nn.LayerNorm(width, eps=1e-6))
        self.end = end

    def forward(self, clips: Tensor, positions: Tensor) -> Tensor:
        x = self.patch_embed(clips) + positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x) if self.end == "norm" else x


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """All parameters moved, norms and biases too, so that one that is forgotten shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.04
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.eval()


def sinusoid(count: int, width: int) -> Tensor:
    """[1, count, width] of "Attention Is All You Need"."""
    table = torch.zeros(count, width, dtype=torch.float64)
    for column in range(width):
        angle = torch.arange(count, dtype=torch.float64) / 10000 ** (2 * (column // 2) / width)
        table[:, column] = angle.cos() if column % 2 else angle.sin()
    return table.float()[None]


def sincos(steps: int, side: int, width: int) -> Tensor:
    """[1, steps * side * side, width] of V-JEPA with uniform power: thirds for time, row and column."""
    share = math.ceil(width / 6)
    rows = []
    for t in range(steps):
        for y in range(side):
            for x in range(side):
                angles = [
                    torch.tensor([place / 10000 ** (i / share) for i in range(share)], dtype=torch.float64)
                    for place in (t, y, x)
                ]
                rows.append(torch.cat([part for a in angles for part in (a.sin(), a.cos())])[:width])
    return torch.stack(rows).float()[None]
