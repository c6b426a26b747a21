"""Low-rank additions: nothing at first, what the paper says later, and the same network once they are
merged."""

from __future__ import annotations

import pytest
import torch
from surgrec.configs.model import VIT_SHAPES, JepaConfig, MaeConfig, ViTShape
from torch.nn.utils import parametrize

from surgrec.models.block_ways import set_blocks
from surgrec.models.build import build_objective
from surgrec.models.low_rank import add_low_rank, merge_low_rank
from surgrec.models.video_encoder import VideoEncoder, encoder_of

RANK, ALPHA = 3, 12.0


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setitem(VIT_SHAPES, "tiny", ViTShape(2, 48, 3))


def encoder(config: MaeConfig | JepaConfig | None = None) -> VideoEncoder:
    return encoder_of(build_objective(config or MaeConfig(size="tiny"), 3, 4, 32)).eval()


def clips(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 4, 32, 32, 3), generator=torch.Generator().manual_seed(1)).to(
        torch.uint8
    )


def disturb(network: VideoEncoder) -> None:
    """As if it had been trained."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith(".up"):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))


@pytest.mark.parametrize("config", [MaeConfig(size="tiny"), JepaConfig(size="tiny", position="rotary_3d")])
def test_additions_are_those_of_the_formula(config: MaeConfig | JepaConfig) -> None:
    plain, adapted = encoder(config), encoder(config)
    add_low_rank(adapted.transformer.blocks, RANK, ALPHA, 0)
    with torch.no_grad():
        torch.testing.assert_close(adapted(clips()), plain(clips()), rtol=0, atol=0)
    disturb(adapted)
    own = dict(adapted.named_parameters())
    with torch.no_grad():
        for name, value in plain.named_parameters():
            part = name.removesuffix("weight") + "parametrizations.weight."
            if f"{part}original" in own:
                value += ALPHA / RANK * own[f"{part}0.up"] @ own[f"{part}0.down"]
        assert not torch.equal(adapted(clips()), encoder(config)(clips()))
        torch.testing.assert_close(adapted(clips()), plain(clips()), rtol=1e-5, atol=1e-5)


def test_merged_is_the_same_network() -> None:
    network = encoder()
    add_low_rank(network.transformer.blocks, RANK, ALPHA, 0)
    disturb(network)
    with torch.no_grad():
        before = network(clips())
        merge_low_rank(network)
        assert torch.equal(network(clips()), before)
    assert network.state_dict().keys() == encoder().state_dict().keys()
    assert not any(parametrize.is_parametrized(module) for module in network.modules())


def test_only_additions_get_gradients_in_each_way_of_computing() -> None:
    found = []
    for way in ("plain", "fused"):
        network = encoder()
        add_low_rank(network.transformer.blocks, RANK, ALPHA, 0)
        disturb(network)
        set_blocks(network, way)  # type: ignore[arg-type]
        network(clips()).square().sum().backward()
        trained = {
            name: value.grad
            for name, value in network.transformer.blocks.named_parameters()
            if value.requires_grad
        }
        assert len(trained) == 2 * 4 * 2  # down and up of four matrices in two blocks
        assert all(name.endswith((".down", ".up")) for name in trained)
        found.append(trained)
    for name, value in found[0].items():
        assert value is not None
        assert value.any()
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-3)


def test_first_weights_follow_from_the_seed() -> None:
    def first(seed: int) -> torch.Tensor:
        network = encoder()
        add_low_rank(network.transformer.blocks, RANK, ALPHA, seed)
        return torch.cat([v.flatten() for n, v in network.named_parameters() if n.endswith(".down")])

    assert torch.equal(first(4), first(4))
    assert not torch.equal(first(4), first(5))


@pytest.mark.parametrize("rank", [0, 49])
def test_ranks_that_no_matrix_has(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"--rank is {rank}; it is at least 1, and at most 48"):
        add_low_rank(encoder().transformer.blocks, rank, ALPHA, 0)
