"""An encoder with a head, what of it is trained, and at which learning rate."""

from __future__ import annotations

import re
from typing import Any, Final

import torch
from torch import Tensor, nn

from surgrec.configs.finetune import FinetuneConfig, HeadKind, of_mode
from surgrec.evaluation.heads import AttentiveHeads, Heads, LinearHeads, Weights
from surgrec.kernels.counter_rng import stream_key
from surgrec.models.low_rank import add_low_rank
from surgrec.models.video_encoder import VideoEncoder, set_drop_path

_BLOCK: Final = re.compile(r"encoder\.transformer\.blocks\.(\d+)\.")


class Classifier(nn.Module):
    """frames uint8 [B, T, S, S, 3] -> logits float32 [B, C]. frozen: the encoder is never trained, and stays
    in eval mode."""

    def __init__(self, encoder: VideoEncoder, heads: Heads, weights: Weights, frozen: bool = False) -> None:
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
        return self

    def head_weights(self) -> Weights:
        """Of the head, [1, ...] each, by the names that `heads` knows."""
        return {name.replace("/", "."): value for name, value in self.head.items()}

    def forward(self, frames: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.encoder(frames)
        features = tokens if isinstance(self.heads, AttentiveHeads) else self.encoder.pool(tokens)
        logits: Tensor = self.heads.logits(self.head_weights(), features)[0]
        return logits.float()


def heads_of(kind: HeadKind, width: int, classes: int, blocks: int) -> Heads:
    """The shape of a head. Raises ValueError for blocks that there are not."""
    if kind == "attentive":
        return AttentiveHeads(width, classes, blocks)
    return LinearHeads(width, classes)


def build_classifier(config: FinetuneConfig, encoder: VideoEncoder, classes: int) -> Classifier:
    """On the CPU, with first weights of the head, and of low-rank additions, that the seed tells: streams
    "probe/first weights" and "finetune/low rank". Raises ValueError for options that do not fit the
    encoder."""
    own = of_mode(config)
    heads = heads_of(config.head, encoder.width, classes, config.blocks)
    if isinstance(heads, AttentiveHeads):
        # Its query takes the place of the mean that this norm belongs to.
        encoder.pool_norm.requires_grad_(False)
    if config.mode == "lora":
        encoder.requires_grad_(False)
        key = stream_key(config.seed, "finetune/low rank") >> 1
        add_low_rank(encoder.transformer.blocks, own["rank"], own["alpha"], key)
    if own.get("drop_path"):
        set_drop_path(encoder, own["drop_path"])
    return Classifier(encoder, heads, heads.first([config.seed]), frozen=config.mode == "head")


def layer_of(name: str, depth: int) -> int:
    """Number of the layer that a parameter of a Classifier belongs to: 0 for the embedding of patches, i + 1
    for block i, depth + 1 for the final norm and the head (BEiT, Bao et al. 2021, arXiv 2106.08254:
    get_num_layer_for_vit of its code, which VideoMAE shares)."""
    block = _BLOCK.match(name)
    if block:
        return int(block[1]) + 1
    return 0 if name.startswith("encoder.transformer.patch_embedding.") else depth + 1


def trained_groups(classifier: Classifier, layer_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: {"params", "names", "decays", "scale"}, of what needs a gradient.

    scale: factor of the learning rate, layer_decay ** (depth + 1 - layer). decays: whether weight decay
    applies.
    """
    depth = classifier.encoder.transformer.depth
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in classifier.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_of(name, depth)
        decays = _decays(name, parameter)
        scale = layer_decay ** (depth + 1 - layer)
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
