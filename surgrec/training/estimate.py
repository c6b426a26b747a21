"""What a run will cost, told before it starts: tokens, FLOPs, parameters, memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from surgrec.configs.model import VIT_SHAPES
from surgrec.configs.pretrain import JepaPretrain, MaePretrain, PretrainConfig
from surgrec.kernels.masking import hidden_positions
from surgrec.models.block_ways import way_on
from surgrec.models.build import build_objective
from surgrec.models.jepa import Jepa
from surgrec.models.mae import MaskedAutoencoder
from surgrec.training.errors import UserError
from surgrec.training.graphed import reason_against

GIB = 2**30

# Bytes that one token keeps for the backward pass, per unit of width, in one pre-norm block with attention
# that does not store its matrix: the residual stream twice in fp32 and, in the dtype of the arithmetic, both
# norms' outputs (1 + 1), q, k, v (3), attention's output (1), the GELU's input and output (4 + 4). Counted as
# in Korthikanti et al. 2022 (arXiv 2205.05198), without dropout masks.
STREAM_BYTES, KEPT = 2 * 4, 14
# Fused blocks (models/fused.py) keep no stream, and make the GELU's output again.
FUSED_KEPT = 10


@dataclass(frozen=True)
class _Block:
    """Bytes for each token and unit of width: `kept` inside of a block, `entered` of what goes into one."""

    kept: float
    entered: float


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, by use.

    gradients: beyond the memory of activations, where a CUDA graph puts them. frames: its copy of them.
    """

    weights: float
    gradients: float
    optimizer: float
    teacher: float
    activations: float
    frames: float

    @property
    def total(self) -> float:
        kept = self.weights + self.gradients + self.optimizer + self.teacher
        return kept + self.activations + self.frames


@dataclass(frozen=True)
class Estimate:
    """tokens, seen, predicted: tokens of a clip in all, that the encoder sees, that are predicted.

    For JEPA the latter two are means over masks, added up over the mask groups. Parameters are those trained.
    """

    tokens: int
    seen: float
    predicted: float
    flops_per_clip: float
    parameters: int
    memory: Memory


def build_without_memory(config: PretrainConfig) -> MaskedAutoencoder | Jepa:
    """The model on PyTorch's meta device: shapes and formulas, no values. Raises UserError for bad shapes."""
    assert isinstance(config, MaePretrain | JepaPretrain)
    try:
        with torch.device("meta"):
            model = build_objective(config.model, config.seed, config.data.frames, config.data.size)
    except ValueError as error:
        raise UserError(str(error)) from error
    assert isinstance(model, MaskedAutoencoder | Jepa)
    return model


def estimate(
    config: PretrainConfig, micro_batch: int, precision: torch.dtype, ranks: int = 1, device_type: str = "cpu"
) -> Estimate:
    """Of one of `ranks`, `micro_batch` clips at a time, in arithmetic `precision` (bfloat16 or float32)."""
    model = build_without_memory(config)
    tokens = math.prod(model.grid)
    trained = model.parameter_count
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    fused, size = way_on(device_type, config.blocks) == "fused", precision.itemsize
    block = _Block(FUSED_KEPT * size, 4 + size) if fused else _Block(STREAM_BYTES + KEPT * size, 4)
    per_clip: float
    if isinstance(model, MaskedAutoencoder):
        seen, predicted, per_clip = _mae_clip(model, tokens, precision, block)
    else:
        seen, predicted, per_clip = _jepa_clip(model, tokens, precision, block)
    # Autocast keeps a copy of every weight in its own dtype until the forward pass is over.
    copies = 2.0 * (trained + frozen) if precision == torch.bfloat16 else 0.0
    graphed = reason_against(config.graph, model, device_type, ranks, config.parallel) is None
    frames = micro_batch * config.data.frames * config.data.size**2 * 3.0 if graphed else 0.0
    activations = micro_batch * per_clip + copies
    gradients, accumulates = 4.0 * trained, config.batch > ranks * micro_batch
    if graphed and ranks == 1 and not accumulates:  # They lie where activations were before.
        gradients = max(0.0, gradients - activations)
    elif graphed and ranks > 1 and accumulates:  # Where they are added up, and once more in DDP's buckets.
        gradients *= 2
    memory = Memory(4.0 * trained, gradients, 8.0 * trained, 4.0 * frozen, activations, frames)
    if config.parallel == "fsdp" and ranks > 1:
        memory = _divided(memory, ranks, accumulates)
    return Estimate(tokens, seen, predicted, model.flops_per_clip(), trained, memory)


def _divided(memory: Memory, ranks: int, accumulates: bool) -> Memory:
    """Under FSDP2: a rank's shards, and the weights whole beside them from forward to backward.

    Gradients are whole only while they accumulate; else each block's are summed and divided at once.
    """
    return Memory(
        memory.weights * (1 + 1 / ranks),
        memory.gradients * (accumulates + 1 / ranks),
        memory.optimizer / ranks,
        memory.teacher * (1 + 1 / ranks),
        memory.activations,
        memory.frames,
    )


def _mae_clip(
    model: MaskedAutoencoder, tokens: int, precision: torch.dtype, block: _Block
) -> tuple[float, float, float]:
    """Tokens seen and predicted, and bytes of activations, of one clip."""
    config, shape = model.config, VIT_SHAPES[model.config.size]
    hidden = hidden_positions(model.grid, config.mask_ratio) * model.grid[0]
    seen, rebuilt = tokens - hidden, model.rebuilt
    size = precision.itemsize
    kept = _stack(shape.depth, shape.width, seen, block, config.checkpoint_activations)
    kept += _stack(
        config.decoder_depth, config.decoder_width, seen + rebuilt, block, config.checkpoint_activations
    )
    kept += seen * model.values * size
    # The prediction and its gradient; without the kernel, in fp32, the target and their difference besides.
    kept += rebuilt * model.values * (2 * size if precision == torch.bfloat16 else size + 3 * 4)
    return seen, rebuilt, kept


def _jepa_clip(model: Jepa, tokens: int, precision: torch.dtype, block: _Block) -> tuple[float, float, float]:
    """Tokens seen and predicted, and bytes of activations, of one clip: means over 128 masks."""
    config, shape = model.config, VIT_SHAPES[model.config.size]
    clips, seen, predicted = 0, 0.0, 0.0
    for step in range(8):
        samples = torch.arange(16) + 16 * step
        clips += len(samples)
        for mask in model.masks(samples, step):
            seen += float(mask.context_lengths.sum())
            predicted += float(mask.target_lengths.sum())
    seen, predicted = seen / clips, predicted / clips
    kept = _stack(shape.depth, shape.width, seen, block, config.checkpoint_activations)
    kept += _stack(
        config.predictor_depth,
        config.predictor_width,
        seen + predicted,
        block,
        config.checkpoint_activations,
    )
    size = precision.itemsize
    kept += (seen + tokens) * model.values * size
    # The teacher's features, the prediction and its gradient; without the kernel, in fp32, in place of the
    # gradient a copy of the features at the targets, and the error.
    kept += tokens * shape.width * 4
    kept += predicted * shape.width * (2 * size if precision == torch.bfloat16 else size + 2 * 4)
    return seen, predicted, kept


def _stack(depth: int, width: int, tokens: float, block: _Block, recompute: bool) -> float:
    """Bytes that a stack of blocks keeps for the backward pass."""
    if recompute:
        return tokens * width * (depth * block.entered + block.kept)
    return tokens * width * depth * block.kept


def describe(config: PretrainConfig, costs: Estimate, micro_batch: int) -> str:
    """The estimate as lines for the terminal."""
    memory = costs.memory
    kinds = "seen by the encoder", "predicted"
    if isinstance(config, JepaPretrain):
        kinds = f"seen by the student in {len(config.model.groups)} mask groups (mean)", "predicted (mean)"
    parts = (
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("AdamW", memory.optimizer),
        ("EMA teacher", memory.teacher),
        (f"activations of {micro_batch} clips", memory.activations),
        ("frames of the CUDA graph", memory.frames),
    )
    lines = [
        f"tokens a clip: {costs.tokens:,}; {costs.seen:,.0f} {kinds[0]}, {costs.predicted:,.0f} {kinds[1]}",
        f"FLOPs a clip, forward and backward: {costs.flops_per_clip:.4g}",
        f"FLOPs in all: {costs.flops_per_clip * config.batch * config.steps:.4g} "
        f"({config.steps:,} steps of {config.batch:,} clips)",
        f"parameters: {costs.parameters:,} trained",
        f"memory a rank, estimated: {memory.total / GIB:.2f} GiB",
        *(f"  {name}: {amount / GIB:.2f} GiB" for name, amount in parts if amount),
    ]
    return "\n".join(lines)
