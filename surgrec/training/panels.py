"""Pictures of what an MAE sees, what is hidden from it, and what it makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BORDER = 2
MAX_COLUMNS = 8


def panel(shown: Tensor, masked: Tensor, rebuilt: Tensor, tubelet: int) -> NDArray[np.uint8]:
    """One picture, u8 [height, width, 3]: rows input, masked, reconstruction of each clip; time runs right.

    shown, masked, rebuilt: u8 [B,T,H,W,3]. One frame a tubelet, at most 8, evenly spaced.
    """
    frames = shown.shape[1]
    columns = list(range(0, frames, tubelet))
    if len(columns) > MAX_COLUMNS:
        columns = [columns[int(i)] for i in torch.linspace(0, len(columns) - 1, MAX_COLUMNS).round()]
    rows = torch.stack([shown, masked, rebuilt], dim=1)[:, :, columns].cpu().numpy()
    clips, kinds, count, height, width, _ = rows.shape
    # A wider gap between clips than between the rows of one.
    clip_height = kinds * (height + BORDER) + 3 * BORDER
    picture = np.full((clips * clip_height, count * (width + BORDER), 3), 255, np.uint8)
    for clip in range(clips):
        for kind in range(kinds):
            top = clip * clip_height + kind * (height + BORDER)
            for column in range(count):
                left = column * (width + BORDER)
                picture[top : top + height, left : left + width] = rows[clip, kind, column]
    return picture[: -4 * BORDER, :-BORDER]


def save_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write u8 [height, width, 3] as a PNG file."""
    from PIL import Image

    Image.fromarray(picture).save(path)
