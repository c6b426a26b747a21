"""Attention by FlashAttention 4 on GPUs of compute capability 9.x (Hopper), from the package flash-attn-4.

Its forward and backward functions are called directly, below its public ones and PyTorch's: so the gradients
of queries, keys and values are written side by side, where the next matrix product wants them, and the
log-sum-exp of each row only where a gradient is wanted.

NVIDIA's CuTe DSL compiles its kernels at first use, one for the forward pass and three for the backward pass,
in one to two seconds each; `keep_kernels` says where they are kept.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from surgrec.kernels.join_heads import side_by_side
from surgrec.kernels.sequences import Sizes, starts_of
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import knobs

PACKAGE: Final = "flash-attn-4"
CALLED: Final = ("_flash_attn_fwd", "_flash_attn_bwd")
CAPABILITY: Final = 9
"""Major compute capability of the GPUs that it was measured on."""
DTYPES: Final = (torch.bfloat16, torch.float16)
WIDTHS: Final = (32, 64, 128)
"""Columns of a head. It says that it takes others, too; on an H100 the tests with 80 columns failed."""
LARGEST: Final = 2**31 - 1
"""Numbers in queries, keys and values together; with more it was not tried, and may count in 32 bits."""
LARGEST_BLOCK: Final = 128
"""Tokens of the backward kernels' largest block; sequences of one block have a kernel of their own."""
SHOWN: Final = 300
"""Characters of an error that are told; those of a compiler may be pages long."""


def flash4_attention(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, each head and each sequence by itself.

    Args:
        q, k, v: bfloat16 or float16 on a GPU, [B, N, heads, d]; or, with `sizes`, [sum of sizes, heads, d].
            Where they lie side by side, [tokens, 3, heads, d], they are read there.
        sizes: tokens of each packed sequence.

    Returns:
        The shape of q. Gradients of q, k and v lie side by side, [tokens, 3, heads, d].

    Raises:
        ImportError: flash-attn-4 is not installed, or does not load.
        NotImplementedError: it is not made for this, or was not measured on this GPU.
        RuntimeError: a kernel, of the backward pass too, does not compile or start.
    """
    _refuse(q)
    if side_by_side(q, k, v) is None:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    differentiated = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    found: Tensor = _Attention.apply(q, k, v, sizes, differentiated)
    return found


def _refuse(q: Tensor) -> None:
    """Raises NotImplementedError for queries that it does not take."""
    if not q.is_cuda or q.dtype not in DTYPES:
        raise NotImplementedError("it takes bfloat16 or float16 on a GPU")
    if torch.cuda.get_device_capability(q.device)[0] != CAPABILITY:
        raise NotImplementedError(f"it takes GPUs of compute capability {CAPABILITY}.x")
    if q.shape[-1] not in WIDTHS:
        raise NotImplementedError(f"it takes heads of {', '.join(map(str, WIDTHS))} columns")
    if 3 * q.numel() > LARGEST:
        raise NotImplementedError(f"it takes up to {LARGEST} numbers in queries, keys and values together")


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sizes: Sizes | None, differentiated: bool
    ) -> Tensor:
        with _told(), torch.cuda.device_of(q):
            if differentiated:  # where that fails, another backend can still be taken
                longest = q.shape[1] if sizes is None else max(sizes, default=0)
                sequences = None if sizes is None else len(sizes)
                _prepare_backward(q.device, q.dtype, q.shape[-1], sequences, min(longest, LARGEST_BLOCK + 1))
            out, statistics, *_ = _package()._flash_attn_fwd(
                q.detach(), k.detach(), v.detach(), return_lse=differentiated, **_where(sizes, q.device)
            )
        if differentiated:
            ctx.save_for_backward(q, k, v, out, statistics)
            ctx.sizes = sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, statistics = ctx.saved_tensors
        where = _where(ctx.sizes, q.device)
        return *_gradients(q, k, v, out, gradient.contiguous(), statistics, where), None, None


def _where(sizes: Sizes | None, device: torch.device) -> dict[str, Any]:
    """Where packed sequences start, and the tokens of the longest, as the package names them."""
    return {} if sizes is None else _named(starts_of(sizes, device), max(sizes, default=0))


def _named(starts: Tensor, longest: int) -> dict[str, Any]:
    return {
        "cu_seqlens_q": starts,
        "cu_seqlens_k": starts,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
    }


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    gradient: Tensor,
    statistics: Tensor,
    where: dict[str, Any],
) -> tuple[Tensor, ...]:
    """Of queries, keys and values, side by side; `gradient` is the output's, which is contiguous."""
    memory = torch.empty(*q.shape[:-2], 3, *q.shape[-2:], dtype=q.dtype, device=q.device)
    parts = memory.unbind(-3)
    with torch.cuda.device_of(q):
        _package()._flash_attn_bwd(
            q, k, v, out, gradient, statistics, dq=parts[0], dk=parts[1], dv=parts[2], **where
        )
    return parts


@functools.lru_cache(maxsize=256)
def _prepare_backward(
    device: torch.device, dtype: torch.dtype, width: int, sequences: int | None, longest: int
) -> None:
    """Compiles what the backward pass needs, or reads it from disk, by a pass over next to nothing.

    sequences: how many packed ones there are, one token each here; None for equal ones. longest: tokens.
    The kernels take any number of heads and of tokens, and any strides.
    """
    rows = (2, longest) if sequences is None else (sequences,)
    nothing = torch.zeros(*rows, 3, 2, width, dtype=dtype, device=device)
    q, k, v = nothing.unbind(-3)
    out = torch.zeros(*rows, 2, width, dtype=dtype, device=device)
    statistics = torch.zeros(*rows[:-1], 2, rows[-1], dtype=torch.float32, device=device)
    where = {}
    if sequences is not None:
        where = _named(torch.arange(sequences + 1, dtype=torch.int32, device=device), longest)
    _gradients(q, k, v, out, out, statistics, where)


@contextmanager
def _told() -> Iterator[None]:
    """Makes a RuntimeError of whatever the package or its compiler raises, so that `auto` can go on."""
    try:
        yield
    except (ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any kind
        raise RuntimeError(f"{PACKAGE}: {_short(error)}") from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN]}"


@functools.cache
def _package() -> ModuleType:
    if importlib.util.find_spec("flash_attn") is None:
        raise ImportError(f"{PACKAGE} is not installed")
    try:
        keep_kernels()
        from flash_attn.cute import interface
    except Exception as error:  # whatever it, the CuTe DSL or quack does when it is imported
        raise ImportError(f"{PACKAGE} does not load: {_short(error)}") from error
    # With each kernel that it compiles the CuTe DSL tells of an argument that the package leaves empty.
    warnings.filterwarnings("ignore", "Argument aux_data ", UserWarning)
    missing = [name for name in CALLED if not hasattr(interface, name)]
    if missing:
        raise ImportError(f"this {PACKAGE} has no {missing[0]}")
    module: ModuleType = interface
    return module


def keep_kernels() -> None:
    """Lets the package keep its kernels beside Triton's, unless its own variables say something else.

    It must be told before it is imported. Left to itself it keeps none, or keeps them where temporary files
    of all users are, and what is found there is loaded as code. It tells kernels by its own source, the CuTe
    DSL and the case, but not by quack's release, which they are made with too, nor all of them by the GPU:
    hence the folder's name. Raises ImportError where quack-kernels is not installed.
    """
    name = f"sm_{CAPABILITY}0-quack-{metadata.version('quack-kernels')}"
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(Path(knobs.cache.dir) / "flash4" / name))
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
