"""An image model on each frame: which tokens come out, and in what order."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from surgrec.models.frame_encoder import FrameEncoder, FramePooling

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    found = timm.create_model(
        "vit_small_patch14_reg4_dinov2", num_classes=0, img_size=28, depth=1, embed_dim=48, num_heads=3
    )
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return found.eval()


@pytest.fixture
def clips() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (2, 3, 28, 28, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize(("pooling", "count"), [("own", 12), ("all", 12), ("mean", 4), ("class", 3)])
def test_tokens_frame_by_frame(
    model: torch.nn.Module, clips: Tensor, pooling: FramePooling, count: int
) -> None:
    encoder = FrameEncoder(model, 28, MEAN, STD, pooling)
    found = encoder(clips)
    assert found.shape == (2, count, encoder.width)
    pixels = (clips[1, 2].float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    last = model.forward_features(pixels.permute(2, 0, 1)[None])[0]
    if pooling in ("own", "all"):
        torch.testing.assert_close(found[1, 8:], last[5:])
    elif pooling == "class":
        torch.testing.assert_close(found[1, 2], last[0])
    else:
        still = encoder(clips[1:, 2:].expand(-1, 3, -1, -1, -1))
        torch.testing.assert_close(still[0], last[5:])
        torch.testing.assert_close(
            found, FrameEncoder(model, 28, MEAN, STD)(clips).unflatten(1, (3, 4)).mean(1)
        )
    torch.testing.assert_close(encoder(clips.float() / 255), found)
    pooled, tokens = encoder.encode(clips)
    torch.testing.assert_close(tokens, found)
    if pooling == "own":
        pixels = (clips.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        each = model(pixels.permute(0, 1, 4, 2, 3).flatten(0, 1))
        torch.testing.assert_close(pooled, each.unflatten(0, (2, 3)).mean(1))
        assert (pooled - found.mean(1)).abs().max() > 0.01
    else:
        torch.testing.assert_close(pooled, found.mean(1))


def test_refuses_other_clips(model: torch.nn.Module) -> None:
    encoder = FrameEncoder(model, 28, MEAN, STD)
    with pytest.raises(ValueError, match=r"28 x 28 pixels; these have shape \(1, 2, 14, 28, 3\)"):
        encoder(torch.zeros(1, 2, 14, 28, 3))
    with pytest.raises(ValueError, match=r"clips are \[B, T, H, W, 3\]"):
        encoder(torch.zeros(1, 2, 28, 28, 1))


def test_class_tokens_of_a_model_that_has_none() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1, class_token=False, global_pool="avg"
    )
    with pytest.raises(ValueError, match="no class token"):
        FrameEncoder(model, 32, MEAN, STD, "class")
