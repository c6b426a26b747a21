"""Shapes of the vision transformers and the two objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Size = Literal["mini", "tiny", "small", "base", "large", "huge"]
Position = Literal["sinusoid_1d", "sincos_3d", "rotary_3d"]
AttentionBackend = Literal["auto", "xformers", "cudnn", "triton", "flash4", "flash", "sdpa"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ViTShape:
    """Depth, width and heads of a transformer."""

    depth: int
    width: int
    heads: int


VIT_SHAPES: dict[str, ViTShape] = {
    "mini": ViTShape(4, 128, 2),
    "tiny": ViTShape(12, 192, 3),
    "small": ViTShape(12, 384, 6),
    "base": ViTShape(12, 768, 12),
    "large": ViTShape(24, 1024, 16),
    "huge": ViTShape(32, 1280, 16),
}


@dataclass(frozen=True)
class BlockGroup:
    """One group of masked blocks of JEPA: every block of a batch has one size and spans all time steps."""

    blocks: int = 8
    """Blocks per clip; the targets are their union, the context is what they leave."""
    scale: float = 0.15
    """Share of the frame's area that one block takes."""
    aspect: tuple[float, float] = (0.75, 1.5)
    """Smallest and largest height-to-width ratio of a block."""


@dataclass(frozen=True)
class MaeConfig:
    """Masked autoencoder (VideoMAE): rebuild the normalised pixels of the tokens that a tube mask hides."""

    size: Size = "base"
    """Encoder: mini, tiny, small, base, large or huge."""
    patch: int = 16
    """Height and width of a token, in pixels."""
    tubelet: int = 2
    """Frames in a token."""
    position: Position = "sinusoid_1d"
    """Positions of the encoder and of the decoder."""
    mask_ratio: float = 0.9
    """Share of the spatial positions that are hidden, the same ones in all time steps."""
    decoder_depth: int = 4
    """Layers of the decoder."""
    decoder_width: int = 384
    """Width of the decoder."""
    decoder_heads: int = 6
    """Attention heads of the decoder."""
    decoder_share: float = 1.0
    """Share of the hidden tokens of a clip that the decoder rebuilds, drawn anew for each clip: below 1 it is
    cheaper, and another objective (VideoMAE V2's, with tokens drawn at random)."""
    normalise_target: bool = True
    """Normalise each token's pixels by their own mean and standard deviation, per colour channel."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the input's colour channels, of values in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of the input's colour channels, of values in 0..1."""
    attention: AttentionBackend = "auto"
    """auto takes what is fastest for the shape on a GPU, and PyTorch's own on the CPU."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""


@dataclass(frozen=True)
class JepaConfig:
    """Joint-embedding predictive architecture (V-JEPA): predict a teacher's features of the hidden tokens."""

    size: Size = "large"
    """Encoder: mini, tiny, small, base, large or huge."""
    patch: int = 16
    """Height and width of a token, in pixels."""
    tubelet: int = 2
    """Frames in a token."""
    position: Position = "sincos_3d"
    """Positions of the encoder and of the predictor: sincos_3d is V-JEPA's, rotary_3d V-JEPA 2's."""
    uniform_power: bool = True
    """sincos_3d gives time, height and width a third of the width each; otherwise time takes half."""
    groups: tuple[BlockGroup, ...] = (BlockGroup(8, 0.15), BlockGroup(2, 0.7))
    """Mask groups; the loss is their mean, and each has its own mask token."""
    equal_lengths: bool = False
    """Cut all clips of a batch to the smallest set, as V-JEPA does; this always drops the latest tokens."""
    predictor_depth: int = 12
    """Layers of the predictor."""
    predictor_width: int = 384
    """Width of the predictor."""
    predictor_heads: int = 12
    """Attention heads of the predictor."""
    ema_start: float = 0.998
    """Momentum of the teacher at the first step."""
    ema_end: float = 1.0
    """Momentum of the teacher at the last step, linear from the start; equal ones are constant."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the input's colour channels, of values in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of the input's colour channels, of values in 0..1."""
    attention: AttentionBackend = "auto"
    """auto takes what is fastest for the shape on a GPU, and PyTorch's own on the CPU."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
