"""Forward and backward of a micro-batch as a CUDA graph: captured once, then replayed as one launch.

The host takes longer to launch the kernels of a step than a fast GPU to run them. Where all shapes stay the
same, the launches are written down once, with the addresses that they read and write:

    batch --copy--> frames, samples --replay--> gradients, loss --copy--> loss of this micro-batch

Frames, samples, gradients and loss stay where they are; the parameters, too, must be updated in place. Behind
the replay a step goes on as ever: clipping and AdamW are in no graph.

A step of several micro-batches has two graphs, or three. The first one puts its gradients where the last
step's were, so that none has to be set to zero; the others add to them; and under DDP the last one sums them
over ranks, bucket by bucket beside the backward pass, as DDP does. They share their memory: what is within
one is done with before the next starts. The gradients of the first lie where its activations were before,
which costs no memory at the peak; the next, captured while they are there, leaves them alone.
"""

from __future__ import annotations

import gc
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from surgrec.configs.pretrain import Graph, Parallel, PretrainConfig
from surgrec.models.objective import Objective
from surgrec.training.distributed import World
from surgrec.training.errors import UserError
from surgrec.training.parallel import accumulating
from surgrec.training.passes import forward_backward
from surgrec.training.resolve import BatchShape

WARM_UPS = 3
"""Passes before the capture. The first compile kernels, choose among libraries and make workspaces, none of
which may happen while a graph is captured."""
DDP_WARM_UPS = 11
"""DDP arranges its buckets anew after the first pass, and waits for the device to time the first ten."""


def reason_against(
    graph: Graph, objective: Objective, device_type: str, ranks: int, parallel: Parallel
) -> str | None:
    """Why steps are not replayed from a CUDA graph, in words; None where they are."""
    if graph == "off":
        return "switched off"
    if device_type != "cuda":
        return "the device is no GPU"
    if ranks > 1 and parallel == "fsdp":
        return "the weights are divided among ranks"
    if not objective.fixed_shapes:
        return "the lengths of sequences differ from step to step"
    return None


def graph_stream(config: PretrainConfig, objective: Objective, world: World) -> torch.cuda.Stream | None:
    """The stream on which a run's steps will be captured; None where `reason_against` has a reason."""
    if reason_against(config.graph, objective, world.device.type, world.size, config.parallel) is not None:
        return None
    stream = torch.cuda.Stream(world.device)
    stream.wait_stream(torch.cuda.current_stream(world.device))
    return stream


def graphed_passes(
    config: PretrainConfig,
    model: nn.Module,
    stream: torch.cuda.Stream | None,
    shape: BatchShape,
    precision: torch.dtype,
) -> GraphedPasses | None:
    """What replays a run's micro-batches, not captured yet; None where there is no stream for it.

    model: the objective, or DDP around it, made on the stream.
    """
    if stream is None:
        return None
    data = config.data
    frames = (shape.micro_batch, data.frames, data.size, data.size, 3)
    return GraphedPasses(model, frames, stream, precision, shape.accumulation)


@dataclass(frozen=True)
class _Graph:
    """A captured pass. loss: static, its replays overwrite it."""

    graph: torch.cuda.CUDAGraph
    loss: Tensor


class GraphedPasses:
    """Forward and backward passes of the micro-batches of a step, from CUDA graphs."""

    def __init__(
        self,
        model: nn.Module,
        frames: tuple[int, ...],
        stream: torch.cuda.Stream,
        precision: torch.dtype,
        count: int,
    ) -> None:
        """Takes no memory yet.

        Args:
            model: an objective with `fixed_shapes`, on the device, or DDP around one; nothing may move its
                parameters any more.
            frames: shape of every micro-batch, B, T, H, W, 3.
            stream: to capture on, of the model's device.
            precision: as in `forward_backward`.
            count: micro-batches of a step.
        """
        self._model = model
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._shape = frames
        self._stream = stream
        self._precision = precision
        self._count = count
        # The micro-batches that have graphs of their own: others between first and last share the second's.
        self._kinds = sorted({0, min(1, count - 1), count - 1})
        self._graphs: dict[int, _Graph] = {}

    def capture(self) -> None:
        """Captures the graphs at the first call; later ones do nothing. Parameters keep their values.

        Call it before other threads begin to work on the device. Those that do already may allocate, copy and
        wait for their own streams meanwhile, but not for the whole device.

        Raises:
            UserError: something in the passes cannot be captured.
            torch.OutOfMemoryError: the passes do not fit into the device's memory.
        """
        if self._graphs:
            return
        device, stream = self._stream.device, self._stream
        self._frames = torch.zeros(self._shape, dtype=torch.uint8, device=device)
        self._samples = torch.zeros(self._shape[0], dtype=torch.int64, device=device)
        stream.wait_stream(torch.cuda.current_stream(device))
        distributed = isinstance(self._model, DistributedDataParallel)
        # On the stream of the capture: workspaces of cuBLAS are each stream's own.
        with torch.cuda.stream(stream):
            for _ in range(DDP_WARM_UPS if distributed else WARM_UPS):
                self._drop_gradients()
                for kind in self._kinds:
                    self._pass(kind)
        self._drop_gradients()
        # Nothing that lies in dead cycles is to be freed by this thread in the midst of a capture.
        gc.collect()
        try:
            self._capture()
        except RuntimeError as error:
            self._drop_gradients()
            self.close()
            # Ending a capture that failed fails again; the first error says why.
            cause = error.__context__ or error
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            raise UserError(
                f"forward and backward cannot be captured in a CUDA graph ({cause}). Give --graph off: the "
                f"same is computed without one."
            ) from error
        torch.cuda.current_stream(device).wait_stream(stream)
        self._gradients = [parameter.grad for parameter in self._trained]

    def close(self) -> None:
        """Gives the graphs up: NCCL does not leave a group of ranks as long as a graph holds its sums."""
        while self._graphs:
            _, captured = self._graphs.popitem()
            captured.graph.reset()

    def __call__(self, frames: Tensor, samples: Tensor, micro: int) -> Tensor:
        """Gradients of a micro-batch: the first of a step overwrites the last step's, others add theirs.

        Waits for nothing. They lie in the parameters' `grad`, whoever has set that to None meanwhile.

        Args:
            frames: uint8 [B, T, H, W, 3] on the device.
            samples: int64 [B], on the CPU or on the device.
            micro: number of the micro-batch in its step, from 0.

        Returns:
            loss / count, float32 []; it stays as it is when the next micro-batch is replayed.

        Raises:
            ValueError: frames or samples of another shape than was captured.
        """
        if tuple(frames.shape) != self._shape or tuple(samples.shape) != self._shape[:1]:
            raise ValueError(
                f"a CUDA graph was captured for frames {self._shape}; these are {tuple(frames.shape)} with "
                f"{len(samples)} sample numbers"
            )
        graph = self._graphs[micro if micro in self._graphs else 1]
        self._frames.copy_(frames, non_blocking=True)
        self._samples.copy_(samples if samples.is_cuda else samples.pin_memory(), non_blocking=True)
        graph.graph.replay()
        for parameter, gradient in zip(self._trained, self._gradients, strict=True):
            if parameter.grad is not gradient:
                parameter.grad = gradient
        return graph.loss.clone()

    def _capture(self) -> None:
        """Graphs of passes one after the other, by micro-batch."""
        pool = torch.cuda.graph_pool_handle()
        for kind in self._kinds:
            graph = torch.cuda.CUDAGraph()
            # Other threads, autograd's among them, may call what the capturing one must not.
            try:
                with torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"):
                    loss = self._pass(kind)
            except BaseException:
                with suppress(RuntimeError):  # the first error is the one to tell
                    graph.reset()
                raise
            self._graphs[kind] = _Graph(graph, loss)

    def _pass(self, micro: int) -> Tensor:
        # Autocast begins and ends within, so that no copy of a weight outlives the pass.
        with accumulating(self._model, micro == self._count - 1):
            return forward_backward(
                self._model, self._frames, self._samples, 0, False, self._precision, self._count
            ).loss

    def _drop_gradients(self) -> None:
        for parameter in self._trained:
            parameter.grad = None
