"""Attention by cuDNN, called through its own Python package, nvidia-cudnn-frontend.

PyTorch calls cuDNN too. Called directly it also takes packed sequences of different lengths, and it writes
the gradients of queries, keys and values side by side, where the next matrix product wants them.

A plan is made for each case, once: of equal sequences for their number and shape. Of packed ones it holds for
any lengths up to a bound, so that a new batch needs no new plan.
"""

from __future__ import annotations

import functools
import itertools
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DTYPES: Final = (torch.bfloat16, torch.float16)
LARGEST_HEAD: Final = 128
STEPS: Final = 8
"""Bounds of packed tokens are this many to each doubling."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a plan is made for.

    sequences, tokens: how many, and how many tokens the longest may have. total: tokens that packed
    sequences may have together; 0 where all have `tokens`. strides: of a token and of a head, in queries,
    keys and values.
    """

    device: torch.device
    dtype: torch.dtype
    sequences: int
    tokens: int
    total: int
    heads: int
    width: int
    strides: tuple[tuple[int, int], ...]
    differentiated: bool


def cudnn_attention(q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...] | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, each head and each sequence by itself.

    Args:
        q, k, v: bfloat16 or float16 on a GPU, [B, N, heads, d]; or, with `sizes`, [sum of sizes, heads, d].
        sizes: tokens of each packed sequence.

    Returns:
        The shape of q. The gradients of q, k and v lie side by side, [tokens, 3, heads, d].

    Raises:
        ImportError: nvidia-cudnn-frontend is not installed.
        RuntimeError: cuDNN has no kernel for this.
    """
    if not q.is_cuda or q.dtype not in DTYPES:
        raise NotImplementedError("it takes bfloat16 or float16 on a GPU")
    if q.shape[-1] % 8 or q.shape[-1] > LARGEST_HEAD:
        raise NotImplementedError(f"it takes heads of up to {LARGEST_HEAD} columns, a multiple of 8")
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if sizes is None:
        # One token after another, also from one sequence to the next, as a plan wants it.
        q, k, v = (x if x.stride(0) == x.shape[1] * x.stride(1) else x.contiguous() for x in (q, k, v))
    found: Tensor = _Attention.apply(q, k, v, sizes)
    return found


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...] | None) -> Tensor:
        case = case_of(q, k, v, sizes, any(ctx.needs_input_grad))
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        statistics = None
        if case.differentiated:
            shape = (case.sequences, case.heads, case.tokens, 1)
            statistics = torch.empty(shape, dtype=torch.float32, device=q.device)
        tensors: dict[str, Tensor | None] = {"q": q, "k": k, "v": v, "out": out, "statistics": statistics}
        _forward_plan(case).run({**tensors, **_offsets(case, sizes, q.device)})
        ctx.save_for_backward(q, k, v, out, statistics)
        ctx.case, ctx.sizes = case, sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, statistics = ctx.saved_tensors
        joined = torch.empty(*q.shape[:-2], 3, *q.shape[-2:], dtype=q.dtype, device=q.device)
        parts = joined.unbind(-3)
        tensors = {"q": q, "k": k, "v": v, "out": out, "statistics": statistics}
        tensors |= {"gradient": gradient.contiguous()}
        tensors |= dict(zip(("q_gradient", "k_gradient", "v_gradient"), parts, strict=True))
        _backward_plan(ctx.case).run(tensors | _offsets(ctx.case, ctx.sizes, q.device))
        return *parts, None


def case_of(q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...] | None, differentiated: bool) -> Case:
    """The case of these tensors; of packed ones with room for other lengths."""
    heads, width = q.shape[-2:]
    strides = tuple((x.stride(-3), x.stride(-2)) for x in (q, k, v))
    if sizes is None:
        sequences, tokens, total = len(q), q.shape[1], 0
    else:
        sequences, tokens, total = len(sizes), bound(max(sizes)), bound(len(q))
    return Case(q.device, q.dtype, sequences, tokens, total, heads, width, strides, differentiated)


def bound(tokens: int) -> int:
    """The next larger of the numbers that plans are made for."""
    step = max(64, (1 << (tokens - 1).bit_length()) // (2 * STEPS))
    return -(-tokens // step) * step


class _Plan:
    """A graph of cuDNN with its plan: `tensors` are its inputs and outputs by name."""

    def __init__(self, graph: Any, tensors: dict[str, Any], device: torch.device) -> None:
        errors = _cudnn().cudnnGraphNotSupportedError
        try:
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([_cudnn().heur_mode.A])
            graph.check_support()
            graph.build_plans()
        except errors as error:
            raise RuntimeError(f"cuDNN: {error}") from error
        self._graph, self._tensors, self._device = graph, tensors, device
        self._workspace: int = graph.get_workspace_size()

    def run(self, given: dict[str, Tensor | None]) -> None:
        """Queues it on the current stream."""
        pointers = {}
        for name, tensor in self._tensors.items():
            value = given[name]
            assert value is not None, name
            pointers[tensor] = value.data_ptr()
        workspace = torch.empty(max(1, self._workspace), dtype=torch.uint8, device=self._device)
        with _handle_lock, torch.cuda.device(self._device):
            handle = _handle(self._device)
            stream = torch.cuda.current_stream(self._device).cuda_stream
            _cudnn().set_stream(handle=handle, stream=stream)
            self._graph.execute(pointers, workspace.data_ptr(), handle=handle)


@functools.lru_cache(maxsize=256)
def _forward_plan(case: Case) -> _Plan:
    graph, tensors, options = _start(case)
    q, k, v = (_input(graph, tensors, case, name, row) for name, row in zip("qkv", case.strides, strict=True))
    out, statistics = graph.sdpa(
        q=q,
        k=k,
        v=v,
        attn_scale=case.width**-0.5,
        generate_stats=case.differentiated,
        name="attention",
        **options,
    )
    tensors |= {"q": q, "k": k, "v": v, "out": _output(graph, tensors, case, out, _dense_strides(case))}
    if case.differentiated:
        tensors["statistics"] = (
            statistics.set_output(True)
            .set_data_type(_cudnn().data_type.FLOAT)
            .set_dim(_statistics_shape(case))
            .set_stride(_statistics_strides(case))
        )
    return _Plan(graph, tensors, case.device)


@functools.lru_cache(maxsize=256)
def _backward_plan(case: Case) -> _Plan:
    graph, tensors, options = _start(case)
    q, k, v = (_input(graph, tensors, case, name, row) for name, row in zip("qkv", case.strides, strict=True))
    out, gradient = (_input(graph, tensors, case, name, _dense_strides(case)) for name in ("out", "gradient"))
    statistics = graph.tensor(
        dim=_statistics_shape(case),
        stride=_statistics_strides(case),
        data_type=_cudnn().data_type.FLOAT,
    )
    if case.total:
        options |= {"max_total_seq_len_q": case.total, "max_total_seq_len_kv": case.total}
    gradients = graph.sdpa_backward(
        q=q,
        k=k,
        v=v,
        o=out,
        dO=gradient,
        stats=statistics,
        attn_scale=case.width**-0.5,
        name="attention backward",
        **options,
    )
    tensors |= {"q": q, "k": k, "v": v, "out": out, "gradient": gradient, "statistics": statistics}
    joined = (3 * case.heads * case.width, case.width)
    for name, tensor in zip(("q_gradient", "k_gradient", "v_gradient"), gradients, strict=True):
        tensors[name] = _output(graph, tensors, case, tensor, joined)
    return _Plan(graph, tensors, case.device)


def _start(case: Case) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A graph; of its tensors those that say where packed sequences lie; and options that name them."""
    cudnn = _cudnn()
    graph = cudnn.pygraph(
        io_data_type=_data_type(case.dtype),
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=_handle(case.device),
    )
    if not case.total:
        return graph, {}, {}
    shape = (case.sequences, 1, 1, 1)
    lengths = graph.tensor(dim=shape, stride=(1, 1, 1, 1), data_type=cudnn.data_type.INT32)
    return (
        graph,
        {"lengths": lengths},
        {"use_padding_mask": True, "seq_len_q": lengths, "seq_len_kv": lengths},
    )


def _input(graph: Any, tensors: dict[str, Any], case: Case, name: str, strides: tuple[int, int]) -> Any:
    """A tensor [sequences, heads, tokens, width] with these strides of a token and of a head."""
    tensor = graph.tensor(
        dim=_shape(case), stride=_strides(case, strides), data_type=_data_type(case.dtype), name=name
    )
    return tensor.set_ragged_offset(_starts_of(graph, tensors, case, strides)) if case.total else tensor


def _output(graph: Any, tensors: dict[str, Any], case: Case, tensor: Any, strides: tuple[int, int]) -> Any:
    tensor.set_output(True).set_dim(_shape(case)).set_stride(_strides(case, strides))
    tensor.set_data_type(_data_type(case.dtype))
    return tensor.set_ragged_offset(_starts_of(graph, tensors, case, strides)) if case.total else tensor


def _starts_of(graph: Any, tensors: dict[str, Any], case: Case, strides: tuple[int, int]) -> Any:
    """The tensor that says at which element each packed sequence starts, one for each stride of a token."""
    name = f"starts {strides[0]}"
    if name not in tensors:
        tensors[name] = graph.tensor(
            dim=(case.sequences + 1, 1, 1, 1), stride=(1, 1, 1, 1), data_type=_cudnn().data_type.INT64
        )
    return tensors[name]


def _offsets(case: Case, sizes: tuple[int, ...] | None, device: torch.device) -> dict[str, Tensor]:
    """Lengths and starts of packed sequences, as plans of the case name them."""
    if sizes is None:
        return {}
    dense, joined = case.heads * case.width, 3 * case.heads * case.width
    strides = {stride for stride, _ in case.strides} | {dense, joined}
    found = {f"starts {stride}": _starts(sizes, stride, device) for stride in strides}
    return found | {"lengths": _lengths(sizes, device)}


@functools.lru_cache(maxsize=64)
def _starts(sizes: tuple[int, ...], stride: int, device: torch.device) -> Tensor:
    starts = torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int64) * stride
    # Only from pinned memory does the copy not wait for what the GPU is doing.
    return starts.pin_memory().to(device, non_blocking=True)


@functools.lru_cache(maxsize=64)
def _lengths(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(sizes, dtype=torch.int32).pin_memory().to(device, non_blocking=True)


def _shape(case: Case) -> tuple[int, ...]:
    return case.sequences, case.heads, case.tokens, case.width


def _strides(case: Case, strides: tuple[int, int]) -> tuple[int, ...]:
    token, head = strides
    return case.tokens * token, head, token, 1


def _dense_strides(case: Case) -> tuple[int, int]:
    return case.heads * case.width, case.width


def _statistics_shape(case: Case) -> tuple[int, ...]:
    return case.sequences, case.heads, case.tokens, 1


def _statistics_strides(case: Case) -> tuple[int, ...]:
    return case.heads * case.tokens, case.tokens, 1, 1


def _data_type(dtype: torch.dtype) -> Any:
    kinds = _cudnn().data_type
    return kinds.BFLOAT16 if dtype == torch.bfloat16 else kinds.HALF


@functools.cache
def _cudnn() -> ModuleType:
    import cudnn

    module: ModuleType = cudnn
    return module


_handle_lock = threading.RLock()


@functools.cache
def _handle(device: torch.device) -> Any:
    """One for each GPU; a call sets its stream, and so holds the lock."""
    with _handle_lock, torch.cuda.device(device):
        return _cudnn().create_handle()
