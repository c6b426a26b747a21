"""The encoder by itself computes what its objective's features are; drop path leaves branches out."""

from __future__ import annotations

import copy

import pytest
import torch
from surgrec.configs.model import VIT_SHAPES, JepaConfig, MaeConfig, ViTShape

from surgrec.models.build import build_objective
from surgrec.models.video_encoder import encoder_of, set_drop_path


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setitem(VIT_SHAPES, "tiny", ViTShape(3, 48, 3))


CLIPS = torch.randint(0, 256, (2, 4, 32, 32, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.mark.parametrize("config", [MaeConfig(size="tiny"), JepaConfig(size="tiny")])
def test_it_computes_the_features_of_the_objective(config: MaeConfig | JepaConfig) -> None:
    objective = build_objective(config, 3, 4, 32)
    with torch.no_grad():
        wanted = objective.features(CLIPS)
    encoder = encoder_of(objective)
    found = encoder(CLIPS)
    assert torch.equal(found, wanted)
    found.sum().backward()
    assert all(value.grad is not None for value in encoder.parameters())
    with pytest.raises(ValueError, match="built for clips of 4 frames of 32 x 32 pixels"):
        encoder(CLIPS[:, :2])


def test_drop_path_leaves_whole_branches_out_or_scales_them() -> None:
    """One clip many times: each is the sum over the branches that stay, divided by the probability of
    staying."""
    encoder = encoder_of(build_objective(MaeConfig(size="tiny"), 3, 4, 32))
    block = encoder.transformer.blocks[2]
    set_drop_path(encoder, 0.5)
    x = torch.randn(1, 8, 48, generator=torch.Generator().manual_seed(0)).expand(400, -1, -1).contiguous()
    attended = torch.randn(1, 8, 3, 16, generator=torch.Generator().manual_seed(1)).expand(400, -1, -1, -1)
    behind = block.halves[False][1]
    torch.manual_seed(0)
    with torch.no_grad():
        found = behind(x, attended.contiguous())
        possible = []
        for first in (0, 2):
            middle = x[:1] + first * block.attention.proj(attended[:1].flatten(-2))
            possible += [middle + second * block.mlp(block.norm2(middle)) for second in (0, 2)]
        near = torch.stack([(found - each).abs().amax((1, 2)) for each in possible])
        assert (near.min(0).values < 1e-5).all()
        counts = torch.bincount(near.argmin(0), minlength=4)
        assert ((counts - 100).abs() < 4 * (400 * 0.25 * 0.75) ** 0.5).all()
        encoder.eval()
        torch.testing.assert_close(behind(x, attended.contiguous()), block.behind(x, attended))


def test_drop_path_grows_with_depth_and_is_off_in_eval_mode() -> None:
    objective = build_objective(MaeConfig(size="tiny", checkpoint_activations=True), 3, 4, 32)
    plain = copy.deepcopy(encoder_of(objective)).eval()
    encoder = encoder_of(objective)
    set_drop_path(encoder, 0.4)
    probabilities = [block.halves[False][1].args[1] for block in encoder.transformer.blocks]  # type: ignore[attr-defined]
    assert probabilities == pytest.approx([0, 0.2, 0.4])
    assert not encoder.transformer.blocks.checkpoint_activations
    with torch.no_grad():
        assert torch.equal(encoder.eval()(CLIPS), plain(CLIPS))
        torch.manual_seed(0)
        one = encoder.train()(CLIPS)
        assert not torch.equal(one, encoder(CLIPS))
        torch.manual_seed(0)
        assert torch.equal(encoder(CLIPS), one)
