"""TimeSformer and image models on the GPU, in the precision that extraction has there."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from surgrec.curation.embedders import half_precision
from surgrec.models.frame_encoder import FrameEncoder
from surgrec.models.timesformer import TimeSformer
from surgrec.weights.layout import Encoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(params=["timesformer", "dinov3"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(0)
    if request.param == "timesformer":
        found: Encoder = TimeSformer(2, 768, 12, 3072, 8, 224, 16, MEAN, STD)
        for name, parameter in found.named_parameters():
            if name in ("class_token", "place", "time"):
                nn.init.normal_(parameter, std=0.02)
    else:
        model = timm.create_model("vit_small_patch16_dinov3", num_classes=0, img_size=224, depth=2)
        found = FrameEncoder(model, 224, MEAN, STD)
    return found.eval()


@torch.no_grad()
def test_features_are_those_of_the_cpu(encoder: Encoder) -> None:
    generator = torch.Generator().manual_seed(1)
    clips = torch.randint(0, 256, (2, 8, 224, 224, 3), dtype=torch.uint8, generator=generator)
    exact = encoder.encode(clips)
    device = torch.device("cuda")
    with half_precision(device):
        found = encoder.to(device).encode(clips.to(device))
    for one, other in zip(found, exact, strict=True):
        assert torch.nn.functional.cosine_similarity(one.float().cpu(), other, dim=-1).min() > 0.99
