"""An encoder with a head, what of it is trained, and at which learning rate."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surgrec.configs.finetune import FinetuneConfig, HeadKind, of_mode
from surgrec.evaluation.heads import AttentiveHeads, Heads, LinearHeads, Weights
from surgrec.finetuning.encoders import blocks_of, layers, set_branches, undecayed_of
from surgrec.kernels.counter_rng import stream_key
from surgrec.models.low_rank import add_low_rank
from surgrec.models.timesformer import TimeSformer
from surgrec.models.video_encoder import VideoEncoder
from surgrec.weights.layout import Encoder

_PREFIX: Final = "encoder."


class Classifier(nn.Module):
    """frames uint8 [B, T, S, S, 3] -> logits float32 [B, C]. frozen: the encoder is never trained, and stays
    in eval mode; batch norms of one that is trained do, too: batches are small, and their statistics those of
    pretraining."""

    def __init__(self, encoder: Encoder, heads: Heads, weights: Weights, frozen: bool = False) -> None:
        """weights: of one head, [1, ...] each."""
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.frozen = frozen
        # Names of parameters have no dots.
        self.head = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(w) for name, w in weights.items()})
        if frozen:
            encoder.requires_grad_(False)
            encoder.eval()

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        for part in self.encoder.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
        return self

    def head_weights(self) -> Weights:
        """Of the head, [1, ...] each, by the names that `heads` knows."""
        return {name.replace("/", "."): value for name, value in self.head.items()}

    def forward(self, frames: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pooled, tokens = self.encoder.encode(frames)
        features = tokens if isinstance(self.heads, AttentiveHeads) else pooled
        logits: Tensor = self.heads.logits(self.head_weights(), features)[0]
        return logits.float()


def heads_of(kind: HeadKind, encoder: Encoder, classes: int, blocks: int) -> Heads:
    """The shape of a head behind an encoder. Raises ValueError for blocks that there are not."""
    if kind == "attentive":
        return AttentiveHeads(encoder.width, classes, blocks)
    return LinearHeads(encoder.pooled_width, classes)


def build_classifier(config: FinetuneConfig, encoder: Encoder, classes: int) -> Classifier:
    """On the CPU, with first weights of the head, and of low-rank additions, that the seed tells: streams
    "probe/first weights" and "finetune/low rank". Raises ValueError for options that do not fit the
    encoder."""
    own = of_mode(config)
    heads = heads_of(config.head, encoder, classes, config.blocks)
    if config.mode == "lora":
        encoder.requires_grad_(False)
        key = stream_key(config.seed, "finetune/low rank") >> 1
        add_low_rank(blocks_of(encoder), own["rank"], own["alpha"], key)
    if own.get("drop_path"):
        try:
            set_branches(encoder, own["drop_path"])
        except ValueError as error:
            raise ValueError(f"--model {config.model}: {error}") from error
    classifier = Classifier(encoder, heads, heads.first([config.seed]), frozen=config.mode == "head")
    _freeze_unused(classifier)
    return classifier


def _freeze_unused(classifier: Classifier) -> None:
    """Weights that the head does not read through are not trained: a norm of the mean that an attentive head
    takes the place of, or a pool of the model's own."""
    encoder = classifier.encoder
    if isinstance(encoder, VideoEncoder):
        if isinstance(classifier.heads, AttentiveHeads):
            encoder.pool_norm.requires_grad_(False)
        return
    # An image model takes any number of frames.
    frames = encoder.frames if isinstance(encoder, TimeSformer) else 1
    clip = torch.zeros(1, frames, encoder.size, encoder.size, 3, dtype=torch.uint8)
    classifier.eval()
    classifier(clip).sum().backward()
    for parameter in classifier.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
        parameter.grad = None


def trained_groups(classifier: Classifier, layer_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: {"params", "names", "decays", "scale"}, of what needs a gradient.

    scale: factor of the learning rate, layer_decay ** (layer of the head - layer). decays: whether weight
    decay applies.
    """
    numbers: dict[str, int] = {}
    last = 0
    if layer_decay != 1:
        numbers, last = layers(classifier.encoder)
    undecayed = {f"{_PREFIX}{name}" for name in undecayed_of(classifier.encoder)}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in classifier.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = numbers.get(name.removeprefix(_PREFIX), last) if name.startswith(_PREFIX) else last
        decays = _decays(name, parameter) and name not in undecayed
        scale = layer_decay ** (last - layer)
        first = {"params": [], "names": [], "decays": decays, "scale": scale}
        group = groups.setdefault((layer, decays), first)
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def _decays(name: str, parameter: nn.Parameter) -> bool:
    if name.startswith("head."):
        return Heads.decayed(name)
    return parameter.ndim > 1 and not name.endswith("bias")


def trained(classifier: Classifier) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: value for name, value in classifier.named_parameters() if value.requires_grad}
