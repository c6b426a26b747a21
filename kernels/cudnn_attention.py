"""Attention by cuDNN, called through its own Python package, nvidia-cudnn-frontend.

PyTorch calls cuDNN too. Called directly it also takes packed sequences of different lengths, and it writes
the gradients of queries, keys and values side by side, where the next matrix product wants them.

A plan is made for each case, once: of equal sequences for their number and shape. Of packed ones it holds for
any lengths up to a bound, so that a new batch needs no new plan.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import torch
from surgrec.kernels.join_heads import side_by_side
from surgrec.kernels.sequences import Sizes, lengths_of, starts_of
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
    sequences may have together; 0 where all have `tokens`. joined: whether queries, keys and values, and so
    their gradients, lie side by side for each token.
    """

    device: torch.device
    dtype: torch.dtype
    sequences: int
    tokens: int
    total: int
    heads: int
    width: int
    joined: bool
    differentiated: bool


def cudnn_attention(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, each head and each sequence by itself.

    Args:
        q, k, v: bfloat16 or float16 on a GPU, [B, N, heads, d]; or, with `sizes`, [sum of sizes, heads, d].
        sizes: tokens of each packed sequence.

    Returns:
        The shape of q. Where q, k and v lie side by side, [tokens, 3, heads, d], so do their gradients.

    Raises:
        ImportError: nvidia-cudnn-frontend is not installed.
        NotImplementedError: cuDNN has no kernel for this.
    """
    if not q.is_cuda or q.dtype not in DTYPES:
        raise NotImplementedError("it takes bfloat16 or float16 on a GPU")
    if q.shape[-1] % 8 or q.shape[-1] > LARGEST_HEAD:
        raise NotImplementedError(f"it takes heads of up to {LARGEST_HEAD} columns, a multiple of 8")
    joined = side_by_side(q, k, v) is not None
    if not joined:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    found: Tensor = _Attention.apply(q, k, v, sizes, joined)
    return found


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sizes: Sizes | None, joined: bool) -> Tensor:
        case = case_of(q, sizes, joined, any(ctx.needs_input_grad))
        if case.differentiated:
            _backward_plan(case)  # where there is none, another backend can still be taken
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
        if ctx.case.joined:
            memory = torch.empty(*q.shape[:-2], 3, *q.shape[-2:], dtype=q.dtype, device=q.device)
            parts = memory.unbind(-3)
        else:
            parts = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        tensors = {"q": q, "k": k, "v": v, "out": out, "statistics": statistics}
        tensors |= {"gradient": gradient.contiguous()}
        tensors |= dict(zip(("q_gradient", "k_gradient", "v_gradient"), parts, strict=True))
        _backward_plan(ctx.case).run(tensors | _offsets(ctx.case, ctx.sizes, q.device))
        return *parts, None, None


def case_of(q: Tensor, sizes: Sizes | None, joined: bool, differentiated: bool) -> Case:
    """The case of such queries; of packed ones with room for other lengths."""
    heads, width = q.shape[-2:]
    if sizes is None:
        sequences, tokens, total = len(q), q.shape[1], 0
    else:
        sequences, tokens, total = len(sizes), bound(max(sizes)), bound(len(q))
    return Case(q.device, q.dtype, sequences, tokens, total, heads, width, joined, differentiated)


def bound(tokens: int) -> int:
    """The next larger of the numbers that plans are made for."""
    step = max(64, (1 << (tokens - 1).bit_length()) // (2 * STEPS))
    return -(-tokens // step) * step


class _Plan:
    """A graph of cuDNN with its plan: `tensors` are its inputs and outputs by name."""

    def __init__(self, graph: Any, tensors: dict[str, Any], device: torch.device) -> None:
        try:
            with _handle_lock, torch.cuda.device(device):
                graph.validate()
                graph.build_operation_graph()
                graph.create_execution_plans([_cudnn().heur_mode.A])
                graph.check_support()
                graph.build_plans()
        except _cudnn().cudnnGraphNotSupportedError as error:
            raise NotImplementedError(f"cuDNN: {error}") from error
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
    for name in ("q", "k", "v"):
        tensors[name] = _like_input(graph, tensors, case, case.joined, name)
    out, statistics = graph.sdpa(
        q=tensors["q"],
        k=tensors["k"],
        v=tensors["v"],
        attn_scale=case.width**-0.5,
        generate_stats=case.differentiated,
        name="attention",
        **options,
    )
    tensors["out"] = _made_output(tensors, case, False, out)
    if case.differentiated:
        shape, strides = _statistics(case)
        statistics.set_output(True).set_data_type(_cudnn().data_type.FLOAT).set_dim(shape).set_stride(strides)
        tensors["statistics"] = statistics
    return _Plan(graph, tensors, case.device)


@functools.lru_cache(maxsize=256)
def _backward_plan(case: Case) -> _Plan:
    graph, tensors, options = _start(case)
    for name, joined in (("q", case.joined), ("k", case.joined), ("v", case.joined), ("out", False)):
        tensors[name] = _like_input(graph, tensors, case, joined, name)
    tensors["gradient"] = _like_input(graph, tensors, case, False, "gradient")
    shape, strides = _statistics(case)
    kind = _cudnn().data_type.FLOAT
    tensors["statistics"] = graph.tensor(dim=shape, stride=strides, data_type=kind, name="statistics")
    if case.total:
        options |= {"max_total_seq_len_q": case.total, "max_total_seq_len_kv": case.total}
    gradients = graph.sdpa_backward(
        q=tensors["q"],
        k=tensors["k"],
        v=tensors["v"],
        o=tensors["out"],
        dO=tensors["gradient"],
        stats=tensors["statistics"],
        attn_scale=case.width**-0.5,
        name="attention backward",
        **options,
    )
    for name, tensor in zip(("q_gradient", "k_gradient", "v_gradient"), gradients, strict=True):
        tensors[name] = _made_output(tensors, case, case.joined, tensor)
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

    def numbers(count: int, kind: Any, name: str) -> Any:
        return graph.tensor(dim=(count, 1, 1, 1), stride=(1, 1, 1, 1), data_type=kind, name=name)

    tensors = {"lengths": numbers(case.sequences, cudnn.data_type.INT32, "lengths")}
    for joined in {False, case.joined}:
        name = _starts_name(joined)
        tensors[name] = numbers(case.sequences + 1, cudnn.data_type.INT64, name)
    lengths = tensors["lengths"]
    return graph, tensors, {"use_padding_mask": True, "seq_len_q": lengths, "seq_len_kv": lengths}


def _like_input(graph: Any, tensors: dict[str, Any], case: Case, joined: bool, name: str) -> Any:
    """A tensor [sequences, heads, tokens, width], one head after the other, or one of three side by side."""
    shape, strides = _layout(case, joined)
    tensor = graph.tensor(dim=shape, stride=strides, data_type=_data_type(case.dtype), name=name)
    return tensor.set_ragged_offset(tensors[_starts_name(joined)]) if case.total else tensor


def _made_output(tensors: dict[str, Any], case: Case, joined: bool, tensor: Any) -> Any:
    """The same of what an operation gives."""
    shape, strides = _layout(case, joined)
    tensor.set_output(True).set_data_type(_data_type(case.dtype)).set_dim(shape).set_stride(strides)
    return tensor.set_ragged_offset(tensors[_starts_name(joined)]) if case.total else tensor


def _starts_name(joined: bool) -> str:
    """Of the tensor that says at which element each packed sequence starts."""
    return "starts of joined" if joined else "starts"


def _offsets(case: Case, sizes: Sizes | None, device: torch.device) -> dict[str, Tensor]:
    """Lengths and starts of packed sequences, as plans of the case name them."""
    if sizes is None:
        return {}
    found = {"lengths": lengths_of(sizes, device)}
    for joined in {False, case.joined}:
        stride = _token_stride(case, joined)
        found[_starts_name(joined)] = starts_of(sizes, device, torch.int64, stride)
    return found


def _token_stride(case: Case, joined: bool) -> int:
    return (3 if joined else 1) * case.heads * case.width


def _layout(case: Case, joined: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides."""
    token = _token_stride(case, joined)
    shape = case.sequences, case.heads, case.tokens, case.width
    return shape, (case.tokens * token, case.width, token, 1)


def _statistics(case: Case) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of what the forward pass leaves for the backward pass."""
    shape = case.sequences, case.heads, case.tokens, 1
    return shape, (case.heads * case.tokens, case.tokens, 1, 1)


def _data_type(dtype: torch.dtype) -> Any:
    kinds = _cudnn().data_type
    return kinds.BFLOAT16 if dtype == torch.bfloat16 else kinds.HALF


@functools.cache
def _cudnn() -> ModuleType:
    try:
        import cudnn
    except (OSError, AssertionError, ValueError) as error:  # it looks for cuDNN's library as it likes
        raise ImportError(f"nvidia-cudnn-frontend does not load: {error}") from error
    module: ModuleType = cudnn
    return module


_handle_lock = threading.RLock()


@functools.cache
def _handle(device: torch.device) -> Any:
    """One for each GPU; a call sets its stream, and so holds the lock."""
    with _handle_lock, torch.cuda.device(device):
        return _cudnn().create_handle()
