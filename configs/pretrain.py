"""What a pretraining run is: model, data, optimizer, batch, records."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from surgrec.configs.data import DataConfig
from surgrec.configs.model import JepaConfig, MaeConfig
from surgrec.configs.yaml_io import ConfigError, from_plain, to_plain

BlockWay = Literal["auto", "plain", "compiled", "fused"]
Graph = Literal["auto", "off"]
Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedules."""

    lr: float = 1.5e-4
    """Peak learning rate."""
    start_lr: float = 1e-6
    """Learning rate from which the warm-up starts."""
    final_lr: float = 1e-5
    """Learning rate at which the cosine ends."""
    lr_per_256: bool = True
    """The three learning rates are for 256 clips, and are multiplied by global batch / 256."""
    warmup: float = 0.1
    """Length of the linear warm-up: a share of the run below 1, a number of steps from 1 upwards."""
    weight_decay: float = 0.05
    """Weight decay of the first step; none on biases, norms and MAE's mask token."""
    final_weight_decay: float = 0.05
    """Weight decay of the last step, by a cosine."""
    stretch: float = 1.0
    """Lay cosines and EMA out for this many times the run and cut them off at its end (V-JEPA: 1.25)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    clip: float | None = None
    """Largest L2 norm of all gradients together; None does not clip."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which stay."""

    every: int = 1000
    """Steps between checkpoints; the last step always writes one."""
    keep_last: int = 3
    """Keep this many of the newest."""
    keep_every: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0 keeps none."""
    fall_back: bool = False
    """Where the newest checkpoint is damaged, set it aside and resume from the one before."""


@dataclass(frozen=True)
class LogConfig:
    """What is recorded, and how often."""

    every: int = 10
    """Steps between points in TensorBoard, metrics.jsonl and the console."""
    panels_every: int = 500
    """Steps between pictures of input, mask and reconstruction (MAE); 0 draws none."""
    panels: int = 4
    """Clips in a picture."""


@dataclass(frozen=True)
class PretrainConfig:
    """What both objectives have in common. A run is a MaePretrain or a JepaPretrain."""

    name: str = "pretrain"
    """Name of the run; the run folder is runs/NAME-TIME unless --out names one."""
    steps: int = 10_000
    """Updates of the weights."""
    batch: int = 256
    """Clips per update over all ranks: micro batch x accumulation x ranks."""
    micro_batch: int | None = None
    """Clips that one rank passes through the model at a time. It must divide the rank's share of the batch; a
    share that is smaller, and any share where this is None, goes through whole."""
    seed: int = 0
    """Seed of all random streams: weights, clips, crops, masks, drop path."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes the GPU where there is one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic under autocast; `auto` is bf16 on a GPU and fp32 on the CPU. Weights are fp32 always."""
    parallel: Parallel = "ddp"
    """How several ranks share the work: `ddp` gives each the whole model, `fsdp` (FSDP2) divides weights,
    gradients and optimizer state among them. One process does without either."""
    blocks: BlockWay = "auto"
    """How the transformer's blocks compute: `plain`, operation by operation; `compiled`, by torch.compile,
    whose result PyTorch keeps for later starts; `fused`, by functions with gradients of their own around the
    matrix products, which on an H100 or H200 are quack-kernels' where it is installed, with the GELU within
    them. `auto` is fused on a GPU, plain elsewhere."""
    graph: Graph = "auto"
    """`auto` captures forward and backward of a micro-batch in a CUDA graph and replays it, where that can
    be: on GPUs, one or several under DDP, for an objective whose shapes never change (MAE). `off` launches
    kernel by kernel."""
    max_bad_steps: int = 0
    """Steps with a loss or gradient that is not finite which are skipped before the run stops."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    out: Path | None = None
    """Run folder. One that holds a run with the same configuration is resumed."""
    resume: str = "auto"
    """`auto` resumes from the newest checkpoint in the run folder; `none` insists on a new run; or the
    PATH of a checkpoint."""
    dry_run: bool = False
    """Print the resolved configuration, tokens, FLOPs, parameters and memory, and end."""


@dataclass(frozen=True)
class MaePretrain(PretrainConfig):
    """Pretraining of a masked autoencoder."""

    model: MaeConfig = field(default_factory=MaeConfig)


@dataclass(frozen=True)
class JepaPretrain(PretrainConfig):
    """Pretraining with a joint-embedding predictive architecture."""

    model: JepaConfig = field(default_factory=JepaConfig)


OBJECTIVES: dict[str, type[PretrainConfig]] = {"mae": MaePretrain, "jepa": JepaPretrain}

# Entries that say where and how a run is carried out, not what it computes.
PLACE = ("out", "resume", "dry_run")

# Entries that a resumed run may change: the same updates of the same weights come out, up to rounding.
FREE = (
    "name",
    "device",
    "micro_batch",
    "parallel",
    "blocks",
    "graph",
    "max_bad_steps",
    "checkpoint",
    "log",
    "data.index",
    "data.engine",
    "data.threads",
    "data.sessions",
    "data.session_mib",
    "data.picture_mib",
    "data.decoder_timeout",
    "data.crop",
    "data.prefetch",
    "data.drop_disposable",
    "data.max_failures",
    "model.attention",
    "model.checkpoint_activations",
)


def to_document(config: PretrainConfig) -> dict[str, Any]:
    """The configuration as plain values, `objective` first, without the entries of PLACE."""
    objective = next(name for name, kind in OBJECTIVES.items() if type(config) is kind)
    values: dict[str, Any] = to_plain(config)
    return {"objective": objective} | {key: value for key, value in values.items() if key not in PLACE}


def from_document(document: Any) -> PretrainConfig:
    """The configuration that `to_document` wrote, or a person by hand. Raises ConfigError."""
    if not isinstance(document, dict) or document.get("objective") not in OBJECTIVES:
        raise ConfigError(f"config.objective must be one of {', '.join(OBJECTIVES)}")
    values = {key: value for key, value in document.items() if key != "objective"}
    placed = [key for key in PLACE if key in values]
    if placed:
        raise ConfigError(f"config has no entry {', '.join(placed)}: give it on the command line")
    return from_plain(OBJECTIVES[document["objective"]], values)


def flatten(document: Any, name: str = "") -> dict[str, Any]:
    """Dotted names of all entries, in order: {"data.size": 224, ...}."""
    if not isinstance(document, dict):
        return {name: document}
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= flatten(value, f"{name}.{key}" if name else key)
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the entries of two documents that differ, with both values; missing is None."""
    a, b = flatten(old), flatten(new)
    return {key: (a.get(key), b.get(key)) for key in [*a, *(b.keys() - a.keys())] if a.get(key) != b.get(key)}


def digest(document: dict[str, Any]) -> str:
    """Checksum of the entries that a resumed run may not change, in hexadecimal."""
    kept = {key: value for key, value in flatten(document).items() if not is_free(key)}
    return hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=16).hexdigest()


def is_free(entry: str) -> bool:
    """Whether a resumed run may change the entry of this dotted name."""
    return any(entry == free or entry.startswith(free + ".") for free in FREE)
