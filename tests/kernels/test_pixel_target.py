"""The masked autoencoder's target against a plain NumPy formula."""

from __future__ import annotations

import numpy as np
import torch
from surgrec.kernels.patchify import unpatchify
from surgrec.kernels.pixel_target import pixel_target, token_statistics

GENERATOR = torch.Generator().manual_seed(1)
FRAMES = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=GENERATOR)
TOKENS = torch.tensor([[0, 3, 6], [7, 1, 2]])


def plain(frames: np.ndarray, token: int, normalise: bool) -> np.ndarray:
    t, y, x = token // 4, token // 2 % 2, token % 2
    block = frames[2 * t : 2 * t + 2, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16].astype(np.float64) / 255
    pixels = block.reshape(512, 3)
    if normalise:
        mean = pixels.sum(0) / 512
        variance = ((pixels - mean) ** 2).sum(0) / 511
        pixels = (pixels - mean) / (np.sqrt(variance) + 1e-6)
    return pixels.reshape(1536)


def test_target_equals_the_plain_formula() -> None:
    for normalise in (True, False):
        target = pixel_target(FRAMES, TOKENS, normalise=normalise)
        assert target.dtype == torch.float32
        for b in range(2):
            for i in range(3):
                expected = plain(FRAMES[b].numpy(), int(TOKENS[b, i]), normalise)
                np.testing.assert_allclose(target[b, i].numpy(), expected, atol=2e-6)


def test_flat_and_nearly_flat_tokens() -> None:
    frames = torch.full_like(FRAMES, 77)
    frames[:, 0, 0, 0] = 78
    target = pixel_target(frames, TOKENS)
    assert torch.equal(target[1], torch.zeros(3, 1536))
    np.testing.assert_allclose(target[0, 0].numpy(), plain(frames[0].numpy(), 0, True), rtol=1e-5, atol=1e-6)


def test_statistics_undo_the_normalisation() -> None:
    target = pixel_target(FRAMES, TOKENS).unflatten(-1, (512, 3))
    mean, deviation = token_statistics(FRAMES, TOKENS)
    pixels = (target * deviation[:, :, None] + mean[:, :, None]).flatten(2)
    colours = (pixels * 255).round().to(torch.uint8)
    assert torch.equal(unpatchify(colours, TOKENS, FRAMES), FRAMES)
