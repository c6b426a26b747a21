"""How a pretrained network is fine-tuned on a labelled split."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from surgrec.configs.extract import View
from surgrec.configs.probe import Selection
from surgrec.configs.yaml_io import ConfigError, from_plain, to_plain

Mode = Literal["full", "head", "lora"]
HeadKind = Literal["linear", "attentive"]

PER_MODE: dict[str, dict[str, Any]] = {
    "full": {"lr": 1e-4, "layer_decay": 0.75, "drop_path": 0.1},
    "head": {"lr": 1e-3},
    "lora": {"lr": 5e-4, "layer_decay": 1.0, "drop_path": 0.0, "rank": 8, "alpha": 16.0},
}
"""Values of the options that are None by default, in the modes that know them."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Train a network with a classification head on a split's train rows, straight from their videos; choose
    the epoch on val and report it once on test.

    The result is one line of JSON beside those of surgrec.probe. The trained network, its state after each
    epoch and a record of the run are kept in the run folder; the same command resumes a run that was stopped.
    """

    manifest: Path
    """The split, as `python -m surgrec.benchmark import` writes it."""
    data_root: Path
    """The folder that the manifest's paths are relative to."""
    model: str
    """ckpt:PATH: a run folder of surgrec.pretrain, or one of its checkpoints. file:PATH, hf:FOLDER: weights
    of another project; timm:MODEL, timm:MODEL@FILE: an image model, frame by frame, as in surgrec.extract.
    random:PRESET, random:RUN, random:timm:MODEL: first weights, untrained, to compare with."""
    out: Path | None = None
    """Run folder; runs/finetune-TIME by default. One that holds a run with the same options is resumed."""
    results: Path = Path("results.jsonl")
    """The result is appended to this file."""
    mode: Mode = "full"
    """full: all weights. head: those of the head alone, the encoder does not change. lora: the head, and
    low-rank additions to the matrices of attention and MLP."""
    head: HeadKind = "linear"
    """linear: of what the model pools, mostly the mean over the tokens. attentive: a learned query over the
    tokens, as in surgrec.probe."""
    blocks: int = 1
    """Blocks of an attentive head, 1 to 4, as in surgrec.probe."""
    epochs: int = 30
    """Passes over train. Each is judged on val."""
    batch: int = 16
    """Clips of a step; even with mixup or cutmix, which mix pairs. The last, smaller batch of an epoch is
    left out, and drawn in another epoch."""
    lr: float | None = None
    """Peak learning rate; 1e-4 in full, 1e-3 for a head, 5e-4 for lora."""
    warmup: float = 0.1
    """Share of the run over which the learning rate rises linearly; then it falls to 0 by a cosine."""
    weight_decay: float = 0.05
    """AdamW's; none on biases, norms, the query of a head, and an image model's positions and class token."""
    clip: float | None = 5.0
    """Largest L2 norm of all gradients together; None does not clip."""
    layer_decay: float | None = None
    """Factor of the learning rate from each block to the one before; 0.75 in full, 1 for lora."""
    drop_path: float | None = None
    """Probability with which the last block's branches are left out for a clip, in an image model for a
    frame, growing linearly from 0 at the first; 0.1 in full, 0 for lora."""
    rank: int | None = None
    """Rank of the additions, for lora; 8."""
    alpha: float | None = None
    """The additions are multiplied by alpha / rank, for lora; 16."""
    label_smoothing: float = 0.1
    """Share of a label that is spread evenly over all classes."""
    mixup: float = 0.8
    """Alpha of the beta distribution by which two clips are blended; 0 for none."""
    cutmix: float = 1.0
    """Alpha of the beta distribution by which a window of a clip comes from another; 0 for none. With mixup,
    a coin decides for each batch."""
    randaugment_ops: int = 2
    """Operations of RandAugment for a clip, the same for all of its frames; 0 for none."""
    randaugment_magnitude: int = 9
    """Strength of these, 0 to 30."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Smallest and largest share of the picture's area that a crop takes in training."""
    crop_aspect: tuple[float, float] = (0.75, 1.3333333333333333)
    """Smallest and largest width-to-height ratio of the crop, as displayed."""
    flip: bool = False
    """Mirror half of the clips in training. Not where left and right tell classes apart."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which val and test are asked with; 0 keeps none."""
    test_clips: int = 1
    """Clips of a row of test, spread evenly over its time. Val has one, at its middle."""
    test_views: tuple[View, ...] = ("centre",)
    """Views of each clip of test: the largest square at the centre, and that one mirrored."""
    select: Selection = "accuracy"
    """What an epoch is chosen by, on val; of equal ones the lowest loss decides."""
    resamples: int = 1000
    """Resamples of the bootstrap over groups."""
    seed: int = 0
    """Of first weights, order, crops, augmentation and the bootstrap."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train, on a GPU in bfloat16; auto takes a GPU where there is one."""
    workers: int = 0
    """Threads, on a GPU processes, that decode; 0 takes the cores of this machine."""


# Entries that say where and how a run is carried out, not what it computes.
PLACE = ("out", "results")
# Entries that do not change what comes out, up to rounding: a resumed run may have others.
FREE = ("device", "workers", "data_root", "manifest")


def of_mode(config: FinetuneConfig) -> dict[str, Any]:
    """lr, layer_decay, drop_path, rank and alpha, as far as the mode knows them.

    Raises ValueError where one is given that has no effect in the mode.
    """
    own = PER_MODE[config.mode]
    for name in ("layer_decay", "drop_path", "rank", "alpha"):
        if name not in own and getattr(config, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} has no effect with --mode {config.mode}; leave it out"
            )
    given = {name: getattr(config, name) for name in own}
    return {name: own[name] if value is None else value for name, value in given.items()}


def to_document(config: FinetuneConfig) -> dict[str, Any]:
    """The configuration as plain values, without the entries of PLACE."""
    values: dict[str, Any] = to_plain(config)
    return {key: value for key, value in values.items() if key not in PLACE}


def from_document(document: Any) -> FinetuneConfig:
    """The configuration that `to_document` wrote, or a person by hand. Raises ConfigError."""
    if not isinstance(document, dict):
        raise ConfigError("it is no configuration of surgrec.finetune")
    needed = [
        field.name for field in dataclasses.fields(FinetuneConfig) if field.default is dataclasses.MISSING
    ]
    lacking = [name for name in needed if name not in document]
    if lacking:
        raise ConfigError(f"config lacks {', '.join(lacking)}: it is no configuration of surgrec.finetune")
    placed = [key for key in PLACE if key in document]
    if placed:
        raise ConfigError(f"config has no entry {', '.join(placed)}: give it on the command line")
    return from_plain(FinetuneConfig, document)
