"""Tokens from frames: against Conv3d, against plain loops, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from surgrec.configs.model import IMAGENET_MEAN, IMAGENET_STD
from surgrec.kernels.patchify import gather_tokens, patchify, patchify_packed, token_grid, unpatchify
from torch import Tensor, nn


@pytest.fixture
def frames() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 4, 32, 48, 3), dtype=torch.uint8, generator=generator)


def some_tokens(count: int) -> Tensor:
    return torch.stack(
        [torch.randperm(12, generator=torch.Generator().manual_seed(i))[:count] for i in range(3)]
    )


def test_values_are_in_the_order_time_row_column_channel(frames: Tensor) -> None:
    tokens = some_tokens(5)
    gathered = gather_tokens(frames, torch.arange(3)[:, None], tokens)
    pixels = frames.numpy()
    for b in range(3):
        for i, token in enumerate(tokens[b].tolist()):
            t, y, x = token // 6, token // 3 % 2, token % 3
            block = pixels[b, 2 * t : 2 * t + 2, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
            np.testing.assert_array_equal(gathered[b, i].numpy(), block)


@pytest.mark.parametrize(("tubelet", "patch"), [(2, 16), (1, 8), (4, 16)])
def test_embedding_equals_conv3d(frames: Tensor, tubelet: int, patch: int) -> None:
    conv = nn.Conv3d(3, 24, (tubelet, patch, patch), stride=(tubelet, patch, patch))
    video = (frames.float() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    expected = conv(video.permute(0, 4, 1, 2, 3)).flatten(2).transpose(1, 2)
    grid = token_grid(frames.shape, tubelet, patch)
    tokens = torch.arange(grid[0] * grid[1] * grid[2]).expand(3, -1)
    patches = patchify(frames, tokens, tubelet, patch, IMAGENET_MEAN, IMAGENET_STD)
    weight = conv.weight.permute(0, 2, 3, 4, 1).flatten(1)
    torch.testing.assert_close(patches @ weight.T + conv.bias, expected, atol=1e-5, rtol=1e-5)


def test_packed_equals_each_clip(frames: Tensor) -> None:
    tokens, lengths = torch.tensor([1, 5, 0, 2, 3, 11, 4]), torch.tensor([2, 0, 1, 0, 3, 1])
    packed = patchify_packed(frames, tokens, lengths, 2, 16, IMAGENET_MEAN, IMAGENET_STD)
    parts = []
    for row, part in enumerate(tokens.split(lengths.tolist())):
        clip = frames[row % 3][None]
        parts.append(patchify(clip, part[None], 2, 16, IMAGENET_MEAN, IMAGENET_STD)[0])
    assert torch.equal(packed, torch.cat(parts))


def test_dtype_is_the_asked_one(frames: Tensor) -> None:
    exact = patchify(frames, some_tokens(4), 2, 16, IMAGENET_MEAN, IMAGENET_STD)
    half = patchify(frames, some_tokens(4), 2, 16, IMAGENET_MEAN, IMAGENET_STD, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.bfloat16())


def test_unpatchify_puts_tokens_back(frames: Tensor) -> None:
    tokens = some_tokens(7)
    values = gather_tokens(frames, torch.arange(3)[:, None], tokens).flatten(2)
    base = torch.zeros_like(frames)
    rebuilt = unpatchify(values, tokens, base)
    assert not base.any()
    everywhere = torch.arange(12).expand(3, -1)
    hidden = torch.ones(3, 12, dtype=torch.bool).scatter(1, tokens, False)
    back = gather_tokens(rebuilt, torch.arange(3)[:, None], everywhere).flatten(2)
    whole = gather_tokens(frames, torch.arange(3)[:, None], everywhere).flatten(2)
    assert torch.equal(back, whole.masked_fill(hidden[..., None], 0))
    assert torch.equal(unpatchify(whole, everywhere, base), frames)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32, 3), (1, 4, 40, 32, 3), (1, 4, 32, 32, 4)])
def test_clips_that_do_not_divide_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not divide"):
        token_grid(shape)
