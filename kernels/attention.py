"""Attention of a batch of equal sequences, or of packed sequences of any lengths, behind one function.

On a GPU `attention_table` says which way is fastest for a shape; where one has no kernel for a case, the next
is taken. On the CPU it is PyTorch's own. Packed sequences attend within themselves only (a block-diagonal
mask), without padding; where all are of one length, they are a batch.

| backend | equal sequences | packed sequences |
|---|---|---|
| `xformers` | `memory_efficient_attention` | the same with `BlockDiagonalMask` |
| `cudnn` | cuDNN's, see `cudnn_attention` | the same, with their lengths |
| `triton` | this project's kernels, see `triton_attention` | not |
| `flash4` | FlashAttention 4's, see `flash4_attention` | the same, with their starts |
| `flash` | PyTorch's by FlashAttention | the same, `torch.nn.attention.varlen` |
| `sdpa` | PyTorch's, whichever it takes | the same, length by length |

`flash` is version 2, or 4 or 3 where its package is installed and PyTorch can use it; never 4 on GPUs that
`flash4` takes.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import logging
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Final, Literal

import torch
from surgrec.kernels.attention_table import order_for
from surgrec.kernels.cudnn_attention import cudnn_attention
from surgrec.kernels.flash4_attention import CAPABILITY as FLASH4_CAPABILITY
from surgrec.kernels.flash4_attention import flash4_attention
from surgrec.kernels.sequences import Sizes, starts_of, stream_of
from surgrec.kernels.triton_attention import triton_attention
from torch import Tensor
from torch.nn import attention as torch_attention
from torch.nn import functional

Backend = Literal["auto", "xformers", "cudnn", "triton", "flash4", "flash", "sdpa"]

HALF: Final = (torch.bfloat16, torch.float16)
NEWER_FLASH: Final = (("FA4", "flash_attn.cute"), ("FA3", "flash_attn_interface"))
"""FlashAttention's newer versions as PyTorch calls them, and the modules that they come in."""

_log = logging.getLogger(__name__)
# (backend, device, dtype, head width, tokens, differentiated) that there is no kernel for; packed: no tokens.
_refused: set[tuple[str, torch.device, torch.dtype, int, int | None, bool]] = set()


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
        backend: `auto` takes the fastest that runs; any other insists on one (see the module).

    Returns:
        The shape of q; its dtype, or autocast's where autocast is on.

    Raises:
        ValueError: lengths do not add up to the tokens, or shapes do not fit.
        RuntimeError: the backend asked for is not installed, or has no kernel for this.
    """
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if any((x.shape, x.dtype, x.device) != (q.shape, q.dtype, q.device) for x in (k, v)):
        parts = ", ".join(f"{tuple(x.shape)} {x.dtype} on {x.device}" for x in (q, k, v))
        raise ValueError(f"queries, keys and values are unlike: {parts}")
    sizes = None if lengths is None else _as_sizes(lengths)
    if q.dim() != (4 if sizes is None else 3):
        wanted = "[B, N, heads, d] without lengths" if sizes is None else "[tokens, heads, d] with lengths"
        raise ValueError(f"q has shape {tuple(q.shape)}; attention takes {wanted}")
    if sizes is None:
        return _dense(q, k, v, backend)
    if sum(sizes) != len(q):
        raise ValueError(f"lengths add up to {sum(sizes)} tokens; q has {len(q)}")
    if len(set(sizes)) == 1:
        batch = [x.unflatten(0, (len(sizes), sizes[0])) for x in (q, k, v)]
        return _dense(batch[0], batch[1], batch[2], backend).flatten(0, 1)
    return _packed(q, k, v, sizes, backend)


def _as_sizes(lengths: Sequence[int] | Tensor) -> Sizes:
    values = lengths.tolist() if isinstance(lengths, Tensor) else lengths
    return tuple(int(value) for value in values)


def _dense(q: Tensor, k: Tensor, v: Tensor, backend: Backend) -> Tensor:
    return _by(backend, DENSE, q, k, v, False, q.shape[1])


def _packed(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes, backend: Backend) -> Tensor:
    return _by(backend, PACKED, q, k, v, True, max(sizes, default=0), sizes)


def _by(
    backend: Backend,
    ways: dict[str, Callable[..., Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: bool,
    tokens: int,
    *sizes: Sizes,
) -> Tensor:
    """Attention by one backend, or by the first of several that has a kernel."""
    if backend != "auto":
        return _insist(backend, ways, q, k, v, *sizes)
    if q.is_cuda and q.numel():
        differentiated = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        for name in order_for(_capability(q.device), packed, q.shape[-1], tokens):
            case = (name, q.device, q.dtype, q.shape[-1], None if packed else tokens, differentiated)
            if case in _refused:
                continue
            try:
                return ways[name](q, k, v, *sizes)
            except torch.OutOfMemoryError:
                raise
            except (ImportError, RuntimeError) as error:
                _refused.add(case)
                # What is not there, or not made for it, is nothing to tell; what fails is.
                expected = isinstance(error, ImportError | NotImplementedError)
                level = logging.INFO if expected else logging.WARNING
                _log.log(level, "no attention by %s for %s %s: %s", name, tuple(q.shape), q.dtype, error)
    return ways["sdpa"](q, k, v, *sizes)


def _insist(backend: str, ways: dict[str, Callable[..., Tensor]], q: Tensor, *others: Any) -> Tensor:
    try:
        return ways[backend](q, *others)
    except torch.OutOfMemoryError:
        raise
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"{backend} has no kernel for {tuple(q.shape)} {q.dtype} on {q.device}, or is not installed "
            f"({error}); take attention backend `sdpa` or `auto`, and see `python -m surgrec.doctor`"
        ) from error


@functools.cache
def _capability(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, N, heads, d]."""
    out = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.is_cuda and q.dtype not in HALF:
        raise NotImplementedError("on a GPU it takes half precision only")
    _newest_flash(q.device)
    with torch_attention.sdpa_kernel(torch_attention.SDPBackend.FLASH_ATTENTION):
        return _sdpa(q, k, v)


@functools.cache
def _newest_flash(device: torch.device) -> None:
    """Lets PyTorch's flash attention, of equal and of packed sequences, run the newest version installed."""
    activate = getattr(torch_attention, "activate_flash_attention_impl", None)
    if activate is None or device.type != "cuda":
        return
    direct = _capability(device) == FLASH4_CAPABILITY
    for name, module in NEWER_FLASH:
        if (name == "FA4" and direct) or not _is_there(module):
            continue
        try:
            activate(name)
            return
        except (ImportError, RuntimeError, ValueError) as error:
            _log.warning("%s is installed, but PyTorch cannot use it as %s: %s", module, name, error)


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _packed_sdpa(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes) -> Tensor:
    """Neighbours of the same length go together."""
    outs = []
    start = 0
    for size, run in itertools.groupby(sizes):
        count = len(list(run))
        part = slice(start, start + count * size)
        batch = [x[part].unflatten(0, (count, size)) for x in (q, k, v)]
        outs.append(_sdpa(batch[0], batch[1], batch[2]).flatten(0, 1))
        start = part.stop
    return torch.cat(outs)


def _varlen(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if not q.is_cuda or q.dtype not in HALF:
        raise NotImplementedError("it takes half precision on GPUs only")
    _newest_flash(q.device)
    starts, longest = starts_of(sizes, q.device), max(sizes)
    out = varlen_attn(q, k, v, starts, starts, longest, longest)
    assert isinstance(out, Tensor)
    return out


@functools.cache
def _xformers() -> ModuleType:
    # Its import takes seconds and prints warnings on machines without a GPU: only with q on one.
    try:
        import xformers.ops
    except (OSError, ValueError) as error:
        raise ImportError(f"xformers does not load: {error}") from error
    module: ModuleType = xformers.ops
    return module


@functools.lru_cache(maxsize=16)
def _block_diagonal(sizes: Sizes, device: torch.device, stream: int) -> Any:
    """One mask for all layers of a pass on a stream."""
    mask = _xformers().fmha.BlockDiagonalMask.from_seqlens(list(sizes), device=torch.device("cpu"))
    # It would copy the starts from pageable memory, and so wait for all that the GPU has yet to do.
    starts = starts_of(sizes, device)
    for info in (mask.q_seqinfo, mask.k_seqinfo):
        info.seqstart = starts
    return mask


def _xformers_dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not q.is_cuda:
        raise NotImplementedError("it runs on GPUs only")
    out: Tensor = _xformers().memory_efficient_attention(q, k, v)
    return out


def _xformers_packed(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes) -> Tensor:
    if not q.is_cuda:
        raise NotImplementedError("it runs on GPUs only")
    bias = _block_diagonal(sizes, q.device, stream_of(q.device))
    out: Tensor = _xformers().memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias)
    return out[0]


def _triton_packed(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes) -> Tensor:
    raise NotImplementedError("it takes sequences of one length only")


DENSE: Final[dict[str, Callable[..., Tensor]]] = {
    "xformers": _xformers_dense,
    "cudnn": cudnn_attention,
    "triton": triton_attention,
    "flash4": flash4_attention,
    "flash": _flash,
    "sdpa": _sdpa,
}
"""By backend: q, k, v [B, N, heads, d] -> [B, N, heads, d]."""
PACKED: Final[dict[str, Callable[..., Tensor]]] = {
    "triton": _triton_packed,
    "cudnn": cudnn_attention,
    "flash4": flash4_attention,
    "xformers": _xformers_packed,
    "flash": _varlen,
    "sdpa": _packed_sdpa,
}
"""By backend: q, k, v [sum of lengths, heads, d] and the lengths -> [sum of lengths, heads, d]."""
