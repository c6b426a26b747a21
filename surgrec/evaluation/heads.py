"""Many heads as one module: every weight has a leading dimension of G heads, and no head sees another.

A head reads frozen features, which all heads share. The attentive one is V-JEPA's pooler: a learned query
attends to all tokens (cross-attention, then an MLP, both residual), and a linear layer classifies what it
found (Bardes et al., arXiv 2404.08471, appendix; V-JEPA 2, arXiv 2506.09985, puts self-attention blocks
before).

With one query, keys and values of the tokens need never be made. A token's score is

    q . W_k (gamma * x + beta) = (gamma * W_k^T q) . x + constant,

which softmax does not see, and as the weights p sum to 1, the value is W_v (gamma * sum p x + beta) + b_v.
So the tokens, normalised once for all heads, meet a head in two thin products, D x (attention heads) each
instead of D x 2 D, and twenty heads read them once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from surgrec.kernels.counter_rng import stream_key

Weights = dict[str, Tensor]
"""By name, float32 [G, ...]."""

HEAD_WIDTH: Final = 64
"""Channels of an attention head, as in ViT-S to ViT-L."""
MLP_RATIO: Final = 4
EPS: Final = 1e-6


class Heads(ABC):
    """The shape of a head. It holds no weights."""

    def __init__(self, width: int, classes: int) -> None:
        """width: of the features, D. classes: C."""
        self.width = width
        self.classes = classes

    def first(self, seeds: Sequence[int]) -> Weights:
        """Weights of a head for each seed, which depend on that seed alone. Normal with standard deviation
        0.02, cut at two of them; biases are 0, scales of norms 1."""
        every = {}
        for seed in set(seeds):
            generator = torch.Generator().manual_seed(stream_key(seed, "probe/first weights") % 2**63)
            every[seed] = {name: self._draw(name, shape, generator) for name, shape in self.shapes().items()}
        return {name: torch.stack([every[seed][name] for seed in seeds]) for name in self.shapes()}

    @staticmethod
    def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if name.endswith("scale"):
            return torch.ones(shape)
        if name.endswith("bias"):
            return torch.zeros(shape)
        return torch.nn.init.trunc_normal_(torch.empty(shape), std=0.02, a=-0.04, b=0.04, generator=generator)

    @staticmethod
    def decayed(name: str) -> bool:
        """Whether weight decay applies: not to biases, scales of norms, and the query."""
        return not name.endswith(("bias", "scale", "query"))

    @property
    def parameters(self) -> int:
        """Numbers that one head is trained in."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one head's weights, by name."""

    @abstractmethod
    def logits(self, weights: Weights, features: Tensor) -> Tensor:
        """float [G, B, C] for the features of B samples."""


class LinearHeads(Heads):
    """Linear classifiers of pooled features [B, D]."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See Heads."""
        return {"classify.weight": (self.width, self.classes), "classify.bias": (self.classes,)}

    def logits(self, weights: Weights, features: Tensor) -> Tensor:
        """See Heads."""
        weight, bias = weights["classify.weight"], weights["classify.bias"]
        # One product for all heads: [B, D] @ [D, G * C].
        joined = features @ weight.permute(1, 0, 2).flatten(1)
        return joined.unflatten(1, (len(weight), -1)).transpose(0, 1) + bias[:, None]


class AttentiveHeads(Heads):
    """Cross-attention poolers over tokens [B, N, D], behind `blocks` - 1 blocks of self-attention.

    Blocks of self-attention are computed for each head by itself, and cost as much as the encoder's.
    """

    def __init__(self, width: int, classes: int, blocks: int = 1) -> None:
        """Raises ValueError for less than 1 block, or more than 4."""
        super().__init__(width, classes)
        if not 1 <= blocks <= 4:
            raise ValueError(f"blocks is {blocks}; an attentive probe has 1 to 4")
        self.blocks = blocks
        self.heads = next(width // each for each in range(min(HEAD_WIDTH, width), 0, -1) if width % each == 0)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See Heads."""
        D, hidden = self.width, MLP_RATIO * self.width
        found: dict[str, tuple[int, ...]] = {}
        for block in range(self.blocks - 1):
            found |= {
                f"{block}.norm.scale": (D,),
                f"{block}.norm.bias": (D,),
                f"{block}.qkv.weight": (D, 3 * D),
                f"{block}.q.bias": (D,),
                f"{block}.v.bias": (D,),
            }
            found |= self._rest(f"{block}.", D, hidden)
        found |= {
            "query": (D,),
            "norm.scale": (D,),
            "norm.bias": (D,),
            "q.weight": (D, D),
            "q.bias": (D,),
            "k.weight": (D, D),
            "v.weight": (D, D),
            "v.bias": (D,),
        }
        found |= self._rest("", D, hidden)
        return found | {"classify.weight": (D, self.classes), "classify.bias": (self.classes,)}

    @staticmethod
    def _rest(prefix: str, D: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """Of a block, what follows attention."""
        return {
            f"{prefix}proj.weight": (D, D),
            f"{prefix}proj.bias": (D,),
            f"{prefix}norm2.scale": (D,),
            f"{prefix}norm2.bias": (D,),
            f"{prefix}up.weight": (D, hidden),
            f"{prefix}up.bias": (hidden,),
            f"{prefix}down.weight": (hidden, D),
            f"{prefix}down.bias": (D,),
        }

    def logits(self, weights: Weights, features: Tensor) -> Tensor:
        """See Heads."""
        x = features
        for block in range(self.blocks - 1):
            x = self._self_attention(weights, f"{block}.", x)
        pooled = self._cross_attention(weights, functional.layer_norm(x, (self.width,), eps=EPS))
        return _affine(weights, "classify", pooled)

    def _cross_attention(self, weights: Weights, x: Tensor) -> Tensor:
        """[G, B, D] of normalised tokens: [B, N, D] that all heads share, or [G, B, N, D]."""
        query, scale, bias = weights["query"], weights["norm.scale"], weights["norm.bias"]
        G, D, A = len(query), self.width, self.heads
        q = torch.baddbmm(weights["q.bias"][:, None], query[:, None], weights["q.weight"])
        q = q.reshape(G, A, 1, D // A) / math.sqrt(D // A)
        by_head = weights["k.weight"].unflatten(2, (A, D // A)).transpose(1, 2)
        asked = (by_head * q).sum(-1) * scale[:, None]  # [G, A, D]
        if x.ndim == 3:
            shares = (x @ asked.flatten(0, 1).t()).softmax(1)  # [B, N, G * A]
            found = (shares.transpose(1, 2) @ x).unflatten(1, (G, A)).transpose(0, 1)
        else:
            shares = torch.einsum("gbnd,gad->gban", x, asked).softmax(-1)
            found = shares @ x
        found = found * scale[:, None, None] + bias[:, None, None]  # [G, B, A, D]
        by_head = weights["v.weight"].unflatten(2, (A, D // A))
        value = torch.einsum("gbad,gdae->gbae", found, by_head).flatten(2) + weights["v.bias"][:, None]
        return self._finish(weights, "", query[:, None] + _affine(weights, "proj", value))

    def _self_attention(self, weights: Weights, prefix: str, x: Tensor) -> Tensor:
        """[G, B, N, D] of [B, N, D] or [G, B, N, D]: a block as in the encoder."""
        G, A = len(weights["query"]), self.heads
        x = x.expand(G, *x.shape) if x.ndim == 3 else x
        B, N, D = x.shape[1:]
        flat = x.reshape(G, B * N, D)
        # A bias of the keys would move all scores of a query alike: its gradient is rounding, which AdamW
        # blows up to full steps.
        biases = weights[f"{prefix}q.bias"], weights[f"{prefix}v.bias"]
        bias = torch.cat([biases[0], torch.zeros_like(biases[0]), biases[1]], 1)[:, None]
        qkv = torch.baddbmm(bias, _norm(weights, f"{prefix}norm", flat), weights[f"{prefix}qkv.weight"])
        q, k, v = qkv.view(G * B, N, 3, A, D // A).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(G, B * N, D)
        flat = flat + _affine(weights, f"{prefix}proj", mixed)
        return self._finish(weights, prefix, flat).view(G, B, N, D)

    @staticmethod
    def _finish(weights: Weights, prefix: str, x: Tensor) -> Tensor:
        """The MLP of a block, [G, n, D]."""
        inner = functional.gelu(_affine(weights, f"{prefix}up", _norm(weights, f"{prefix}norm2", x)))
        return x + _affine(weights, f"{prefix}down", inner)


def _affine(weights: Weights, name: str, x: Tensor) -> Tensor:
    """[G, n, out] of [G, n, in]."""
    return torch.baddbmm(weights[f"{name}.bias"][:, None], x, weights[f"{name}.weight"])


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Layer norm of [G, n, D]."""
    scaled = functional.layer_norm(x, x.shape[-1:], eps=EPS) * weights[f"{name}.scale"][:, None]
    return scaled + weights[f"{name}.bias"][:, None]
