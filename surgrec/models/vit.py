"""The vision transformer of both objectives, on whichever tokens it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from surgrec.configs.model import AttentionBackend, Position
from surgrec.kernels.attention import attention
from surgrec.kernels.fold import fold
from surgrec.kernels.join_heads import summed_parts
from surgrec.kernels.masking import Grid
from surgrec.kernels.place_tokens import add_positions
from surgrec.kernels.rotary import rotate
from surgrec.models.fused import enter, finish, leave
from surgrec.models.packing import take_rows
from surgrec.models.position import rotary_3d, sincos_3d, sinusoid_1d

Lengths = Sequence[int] | None
KeyBias = Literal["learned", "zero"]
Placing = Position | Literal["stored"]
"""How an encoder tells where tokens are: by one of our tables, or by a table that came with its weights."""
State = tuple[Tensor, Tensor | None, Tensor | None]
"""Between two blocks: the stream [..., width]; what is still to be added to it, and a bias [width]."""
Halves = dict[bool, tuple[Callable[..., tuple[Tensor, Tensor, Tensor]], Callable[..., Tensor]]]
"""What a block calls before attention and behind it, where sequences are packed and where they are equal."""

LAYER_NORM_EPS = 1e-6
LARGEST_LOGIT_SCALE = math.log(1 / 0.01)
"""Of cosine attention, as a logarithm (Liu et al. 2022, arXiv 2111.09883)."""


class Attention(nn.Module):
    """The weights of multi-head self-attention, with one matrix for queries, keys and values.

    cosine: the logits are cosines of queries and keys times a learned factor of each head, as in Swin V2 and
    VideoMAE V2's largest models; otherwise products over the root of a head's width.
    """

    def __init__(
        self, width: int, heads: int, key_bias: KeyBias, backend: AttentionBackend, cosine: bool = False
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.backend: AttentionBackend = backend
        self.qkv = nn.Linear(width, 3 * width, bias=key_bias == "learned")
        self.zero_key_bias = key_bias == "zero"
        if self.zero_key_bias:
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.cosine = cosine
        if cosine:
            self.logit_scale = nn.Parameter(torch.full((heads, 1), math.log(10)))
        self.proj = nn.Linear(width, width)

    @property
    def bias(self) -> Tensor:
        """Of queries, keys and values: [3 * width]."""
        if self.zero_key_bias:
            return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return self.qkv.bias

    def project(self, x: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x [..., width], each [..., heads, head width]."""
        qkv = functional.linear(x, self.qkv.weight, self.bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.unbind(-3)
        if self.cosine:
            # `attention` divides by the root of a head's width, which is taken back here.
            scale = self.logit_scale.clamp(max=LARGEST_LOGIT_SCALE).exp() * math.sqrt(q.shape[-1])
            q = functional.normalize(q, dim=-1) * scale.to(q.dtype)
            k = functional.normalize(k, dim=-1)
        if factors is not None:
            q, k = rotate(q, factors), rotate(k, factors)
        return q, k, v


class Mlp(nn.Module):
    """Two linear layers with a GELU (the exact one) between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block. hidden: width inside its MLP; None for four times the width.

    What lies before attention and what lies behind it can be compiled, or be computed by functions made for
    it (models/block_ways.py); attention itself is a call into one library or another, whose shapes differ
    from step to step where sequences are packed.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_bias: KeyBias,
        backend: AttentionBackend,
        hidden: int | None = None,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = Attention(width, heads, key_bias, backend, cosine)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, 4 * width if hidden is None else hidden)
        self.halves: Halves = {False: (self.before, self.behind), True: (self.before, self.behind)}
        self.fused = False

    def forward(
        self,
        stream: Tensor,
        rest: Tensor | None = None,
        bias: Tensor | None = None,
        lengths: Lengths = None,
        factors: Tensor | None = None,
    ) -> State:
        """From one State to the next; `rest` and `bias` are None where blocks are not fused."""
        if self.fused:
            return self._fused(stream, rest, bias, lengths, factors)
        assert rest is None, "blocks of a stack compute in one way, all of them"
        before, behind = self.halves[lengths is not None]
        q, k, v = before(stream, factors)
        return behind(stream, attention(q, k, v, lengths, self.attention.backend)), None, None

    def before(self, x: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the tokens x [..., width]."""
        return self.attention.project(self.norm1(x), factors)

    def behind(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output, given what attention made, [..., heads, head width]."""
        x = x + self.attention.proj(attended.flatten(-2))
        return x + self.mlp(self.norm2(x))

    def _fused(
        self,
        stream: Tensor,
        rest: Tensor | None,
        bias: Tensor | None,
        lengths: Lengths,
        factors: Tensor | None,
    ) -> State:
        own, mlp = self.attention, self.mlp
        dtype = compute_dtype(own.qkv.weight)
        weight, offset = fold(own.qkv.weight, own.bias, self.norm1.weight, self.norm1.bias, dtype)
        early, late = offset[: summed_parts(factors) * len(offset) // 3], offset[2 * len(offset) // 3 :]
        stream, carrier, q, k, v = enter(
            stream, rest, bias, weight, early, own.heads, self.norm1.eps, factors
        )
        attended = attention(q, k, v, lengths, own.backend)
        first, offset = fold(mlp.fc1.weight, mlp.fc1.bias, self.norm2.weight, self.norm2.bias, dtype)
        projection, second = own.proj.weight.to(dtype), mlp.fc2.weight.to(dtype)
        after = functional.linear(late, projection, own.proj.bias.to(dtype))
        stream, rest = leave(
            stream, carrier, attended, projection, after, first, offset, second, self.norm2.eps
        )
        # A copy: under FSDP the parameter's memory is only there within its block.
        return stream, rest, mlp.fc2.bias.clone()


class Positions(nn.Module):
    """A table of positions over one grid of tokens: added to the tokens, or for turning queries and keys."""

    table: Tensor

    def __init__(self, kind: Placing, grid: Grid, width: int, heads: int, uniform_power: bool) -> None:
        super().__init__()
        self.turns = kind == "rotary_3d"
        if kind == "rotary_3d":
            table = rotary_3d(grid, width // heads)
        elif kind == "sincos_3d":
            table = sincos_3d(grid, width, uniform_power)
        elif kind == "stored":
            table = torch.zeros(math.prod(grid), width)
        else:
            table = sinusoid_1d(math.prod(grid), width)
        # What is computed is never stored: a checkpoint's positions cannot silently be another grid's.
        self.register_buffer("table", table, persistent=kind == "stored")

    def add(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x [..., width] with the positions of int64 tokens [...] added, unless they turn."""
        return x if self.turns else add_positions(x, self.table, tokens)

    def factors(self, tokens: Tensor) -> Tensor | None:
        """What the blocks take: [..., 2, head width], gathered once for all layers; None unless they turn."""
        return self.table[tokens] if self.turns else None


class Blocks(nn.ModuleList):
    """A stack of blocks, recomputed in the backward pass if so asked."""

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        key_bias: KeyBias,
        backend: AttentionBackend,
        checkpoint_activations: bool,
        hidden: int | None = None,
        cosine: bool = False,
    ) -> None:
        super().__init__(Block(width, heads, key_bias, backend, hidden, cosine) for _ in range(depth))
        self.checkpoint_activations = checkpoint_activations

    def forward(self, x: Tensor, lengths: Lengths = None, factors: Tensor | None = None) -> State:
        """What the last block gives; `norm_of` or `linear_of_norm` go on from there."""
        state: State = (x, None, None)
        for block in self:
            if self.checkpoint_activations and torch.is_grad_enabled():
                # Blocks draw nothing; a GPU's generator cannot be asked while a CUDA graph is captured.
                state = checkpoint(
                    block, *state, lengths, factors, use_reentrant=False, preserve_rng_state=False
                )
            else:
                state = block(*state, lengths, factors)
        return state


def norm_of(norm: nn.LayerNorm | nn.Identity, state: State) -> Tensor:
    """The layer norm of what blocks gave, or that itself: [..., width]."""
    stream, rest, bias = state
    if rest is None or bias is None:
        normalised: Tensor = norm(stream)
        return normalised
    if isinstance(norm, nn.Identity):
        return stream + rest + bias
    return finish(stream, rest, bias, norm.eps, stream.dtype, None) * norm.weight + norm.bias


def linear_of_norm(
    layer: nn.Linear, norm: nn.LayerNorm | nn.Identity, state: State, picked: Tensor | None = None
) -> Tensor:
    """A linear layer on the layer norm of what blocks gave: [..., outputs].

    Where rows are picked, int64 [K] of all tokens in their order, no two the same: [K, outputs], of those.
    """
    stream, rest, bias = state
    if rest is None or bias is None:
        tokens = stream if picked is None else take_rows(stream.flatten(0, -2), picked)
        found: Tensor = layer(norm(tokens))
        return found
    assert isinstance(norm, nn.LayerNorm), "of an objective, which has a final norm"
    dtype = compute_dtype(layer.weight)
    weight, offset = fold(layer.weight, layer.bias, norm.weight, norm.bias, dtype)
    normalised = finish(stream, rest, bias, norm.eps, dtype, picked)
    # In rows without more dimensions: otherwise the bias is added in a pass of its own.
    rows = functional.linear(normalised.flatten(0, -2), weight, offset)
    return rows.unflatten(0, normalised.shape[:-1])


class VisionTransformer(nn.Module):
    """Encoder: linear embedding of each token's pixels, positions, blocks, final norm where there is one. No
    class token."""

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        grid: Grid,
        values: int,
        position: Placing,
        uniform_power: bool = False,
        key_bias: KeyBias = "learned",
        backend: AttentionBackend = "auto",
        checkpoint_activations: bool = False,
        hidden: int | None = None,
        cosine: bool = False,
        final_norm: bool = True,
    ) -> None:
        """values: of a token, tubelet * patch * patch * 3. hidden, cosine: as of Block, Attention."""
        super().__init__()
        self.depth, self.width, self.heads = depth, width, heads
        self.grid: Grid = grid
        self.patch_embedding = nn.Linear(values, width)
        self.positions = Positions(position, grid, width, heads, uniform_power)
        self.blocks = Blocks(depth, width, heads, key_bias, backend, checkpoint_activations, hidden, cosine)
        self.norm: nn.LayerNorm | nn.Identity = (
            nn.LayerNorm(width, eps=LAYER_NORM_EPS) if final_norm else nn.Identity()
        )

    def forward(self, patches: Tensor, tokens: Tensor, lengths: Lengths = None) -> Tensor:
        """Features of the given tokens, which see one another and nothing else.

        Args:
            patches: [B, N, values]; or packed, [sum of lengths, values]. See `kernels.patchify`.
            tokens: int64, their numbers: the shape of `patches` without the last.
            lengths: tokens of each packed sequence.

        Returns:
            [..., width], normalised by the final LayerNorm.
        """
        return norm_of(self.norm, self.before_norm(patches, tokens, lengths))

    def before_norm(self, patches: Tensor, tokens: Tensor, lengths: Lengths = None) -> State:
        """What the last block gives, for `linear_of_norm` with `norm`. Arguments as in a call.

        Hooks on the transformer as a module are not called, those on its embedding are.
        """
        x = self.positions.add(self.patch_embedding(patches), tokens)
        state: State = self.blocks(x, lengths, self.positions.factors(tokens))
        return state


def compute_dtype(parameter: Tensor) -> torch.dtype:
    """What the first matrix product will run in: autocast's dtype where that is on, else the parameter's."""
    kind = parameter.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else parameter.dtype


def transformer_flops(depth: int, width: int, tokens: float, squared_tokens: float) -> float:
    """Floating-point operations of the matrix products of a stack of blocks in one forward pass.

    A multiplication with an addition counts two. With N tokens of width D a block takes 8 N D^2 for
    queries, keys, values and output, 16 N D^2 for the MLP, and 4 N^2 D for attention.

    Args:
        tokens, squared_tokens: N and N^2, or their means where N differs from clip to clip.
    """
    return depth * (24 * tokens * width**2 + 4 * squared_tokens * width)
