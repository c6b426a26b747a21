"""Shapes of the vision transformers and the two objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Size = Literal["tiny", "small", "base", "large", "huge"]


@dataclass(frozen=True)
class ViTShape:
    """Depth, width and heads of a transformer."""

    depth: int
    width: int
    heads: int


VIT_SHAPES: dict[str, ViTShape] = {
    "tiny": ViTShape(12, 192, 3),
    "small": ViTShape(12, 384, 6),
    "base": ViTShape(12, 768, 12),
    "large": ViTShape(24, 1024, 16),
    "huge": ViTShape(32, 1280, 16),
}
