"""Attention of a batch of equal sequences, or of packed sequences of any lengths.

xformers runs where q is on a GPU and one of its kernels takes the shape; PyTorch's own attention elsewhere.
Packed sequences attend within themselves only (a block-diagonal mask), without padding.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

Backend = Literal["auto", "xformers", "sdpa"]

# (device, dtype, head width, packed, differentiated) that xformers has no kernel for.
_refused: set[tuple[torch.device, torch.dtype, int, bool, bool]] = set()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int] | Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, each head and each sequence by itself.

    Args:
        q, k, v: [B, N, heads, d]; or, with `lengths`, [sum of lengths, heads, d].
        lengths: tokens of each packed sequence. Pass a sequence of ints, or a tensor that is on the CPU.
        backend: `auto` as described above; `xformers` insists on it; `sdpa` is PyTorch's.

    Returns:
        The shape of q; its dtype, or autocast's where autocast is on.

    Raises:
        ValueError: lengths do not add up to the tokens, or shapes do not fit.
        RuntimeError: backend is `xformers` and it is not installed, or has no kernel for this.
    """
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    sizes = None if lengths is None else _as_sizes(lengths)
    if q.dim() != (4 if sizes is None else 3):
        wanted = "[B, N, heads, d] without lengths" if sizes is None else "[tokens, heads, d] with lengths"
        raise ValueError(f"q has shape {tuple(q.shape)}; attention takes {wanted}")
    if sizes is not None and sum(sizes) != len(q):
        raise ValueError(f"lengths add up to {sum(sizes)} tokens; q has {len(q)}")

    if backend == "xformers":
        try:
            return _xformers_attention(q, k, v, sizes)
        except (ImportError, NotImplementedError) as error:
            raise RuntimeError(
                f"xformers has no kernel for {tuple(q.shape)} {q.dtype} on {q.device}, or is not installed "
                f"({error}); take attention backend `sdpa` or `auto`, and see `python -m surgrec.doctor`"
            ) from error
    if backend == "auto" and q.is_cuda:
        differentiated = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        case = (q.device, q.dtype, q.shape[-1], sizes is not None, differentiated)
        if case not in _refused:
            try:
                return _xformers_attention(q, k, v, sizes)
            except (ImportError, NotImplementedError):
                _refused.add(case)
    if sizes is None:
        return _sdpa(q, k, v)
    return _packed_sdpa(q, k, v, sizes)


def _as_sizes(lengths: Sequence[int] | Tensor) -> tuple[int, ...]:
    values = lengths.tolist() if isinstance(lengths, Tensor) else lengths
    return tuple(int(value) for value in values)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, N, heads, d]."""
    out = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _packed_sdpa(q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...]) -> Tensor:
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and len(set(sizes)) > 1:
        variable = _varlen()
        if variable is not None:
            starts = _starts(sizes, q.device)
            longest = max(sizes)
            out: Tensor = variable(q, k, v, starts, starts, longest, longest)
            return out
    # Neighbours of the same length go together: V-JEPA's equal lengths make one call per mask group.
    outs = []
    start = 0
    for size, run in itertools.groupby(sizes):
        count = len(list(run))
        part = slice(start, start + count * size)
        batch = [x[part].unflatten(0, (count, size)) for x in (q, k, v)]
        outs.append(_sdpa(batch[0], batch[1], batch[2]).flatten(0, 1))
        start = part.stop
    return outs[0] if len(outs) == 1 else torch.cat(outs)


@functools.lru_cache(maxsize=16)
def _starts(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """int32 [len + 1], where each sequence starts, and the end."""
    return torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int32).to(device, non_blocking=True)


@functools.cache
def _varlen() -> Any:
    """PyTorch's flash attention of packed sequences, where this PyTorch has it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


@functools.cache
def _xformers() -> ModuleType:
    # Its import takes seconds and prints warnings on machines without a GPU: only with q on one.
    import xformers.ops

    module: ModuleType = xformers.ops
    return module


@functools.lru_cache(maxsize=16)
def _block_diagonal(sizes: tuple[int, ...], device: torch.device) -> Any:
    """One mask for all layers of a pass: making it copies the lengths to the device."""
    return _xformers().fmha.BlockDiagonalMask.from_seqlens(list(sizes), device=device)


def _xformers_attention(q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...] | None) -> Tensor:
    """Raises ImportError where there is no xformers, NotImplementedError where it takes no such inputs."""
    if not q.is_cuda:
        raise NotImplementedError("it runs on GPUs only")
    ops = _xformers()
    if sizes is None:
        dense: Tensor = ops.memory_efficient_attention(q, k, v)
        return dense
    bias = _block_diagonal(sizes, q.device)
    packed: Tensor = ops.memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias)
    return packed[0]
