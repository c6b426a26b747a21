"""Files of V-JEPA give the features of a plain restatement, those of V-JEPA 2 of transformers' model."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgrec.weights.errors import WeightsError
from surgrec.weights.load import load_model


def checkpoint(
    encoder: dict[str, Tensor], target: dict[str, Tensor] | None, mask_tokens: int | None
) -> dict[str, Any]:
    """As V-JEPA's training saves it."""
    predictor = {
        "predictor_embed.weight": torch.randn(96, 192),
        "predictor_pos_embed": torch.randn(1, 32, 96),
        "predictor_blocks.0.norm1.weight": torch.randn(96),
        "predictor_norm.weight": torch.randn(96),
        "predictor_proj.weight": torch.randn(192, 96),
    } | {f"mask_tokens.{i}": torch.zeros(1, 1, 96) for i in range(mask_tokens or 0)}
    top: dict[str, Any] = {"encoder": wrapped(encoder)}
    if target is not None:
        top["target_encoder"] = wrapped(target)
    if mask_tokens is not None:
        top["predictor"] = wrapped(predictor)
    opt = {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": []}
    return top | {"opt": opt, "scaler": None, "epoch": 300, "loss": 0.31}


def wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.backbone.{name}": value for name, value in state.items()}


def plain(restated: ModuleType, seed: int) -> nn.Module:
    return restated.randomise(restated.Encoder(split_bias=False), seed)


def theirs(seed: int) -> tuple[Any, dict[str, Tensor]]:
    """transformers' VJEPA2Model, and its encoder's weights by V-JEPA 2's own names."""
    from transformers import VJEPA2Config, VJEPA2Model

    torch.manual_seed(seed)
    config = VJEPA2Config(
        crop_size=256,
        frames_per_clip=16,
        hidden_size=192,
        num_attention_heads=3,
        num_hidden_layers=2,
        pred_hidden_size=96,
        pred_num_attention_heads=3,
        pred_num_hidden_layers=1,
    )
    model = VJEPA2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.04))
    state = model.encoder.state_dict()
    own = {
        f"patch_embed.proj.{kind}": state[f"embeddings.patch_embeddings.proj.{kind}"]
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        own[f"norm.{kind}"] = state[f"layernorm.{kind}"]
        for n in range(2):
            qkv = [state[f"layer.{n}.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            own[f"blocks.{n}.attn.qkv.{kind}"] = torch.cat(qkv)
            own[f"blocks.{n}.attn.proj.{kind}"] = state[f"layer.{n}.attention.proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                own[f"blocks.{n}.{name}.{kind}"] = state[f"layer.{n}.{name}.{kind}"]
    return model, own


def pixels(restated: ModuleType, clips: Tensor) -> Tensor:
    """[B, T, 3, S, S] as transformers takes them."""
    return ((clips.float() / 255 - restated.MEAN) / restated.STD).movedim(-1, 2)


@torch.no_grad()
def test_stored_positions_and_final_norm_are_kept(
    restated: ModuleType, small_clips: Tensor, tmp_path: Path
) -> None:
    """A silent failure elsewhere: positions and the final norm thrown away. Here the positions are no table
    that could be computed."""
    student, teacher = plain(restated, 1), plain(restated, 2)
    positions = torch.randn(1, 32, 192)
    states = [model.state_dict() | {"pos_embed": positions} for model in (student, teacher)]
    torch.save(checkpoint(*states, mask_tokens=2), tmp_path / "vitl16.pth.tar")
    for part, wanted in (("encoder", student), ("target_encoder", teacher)):
        model = load_model(f"file:{tmp_path / 'vitl16.pth.tar'}#{part}")
        expected = wanted(small_clips, positions)
        torch.testing.assert_close(model.forward_features(small_clips), expected, atol=1e-4, rtol=1e-4)
        assert model.coverage is not None
        ours = dict(model.coverage.loaded)
        assert ours[f"{part}/module.backbone.pos_embed"] == "transformer.positions.table"
        assert ours[f"{part}/module.backbone.norm.weight"] == "transformer.norm.weight"
        other = "encoder" if part == "target_encoder" else "target_encoder"
        dropped = dict(model.coverage.dropped)
        assert f"{part} was asked for" in dropped[f"{other}/*"]
        assert {"predictor/*", "opt/*", "epoch", "loss"} <= set(dropped)


@torch.no_grad()
def test_positions_that_are_ours_are_recognised(
    restated: ModuleType, small_clips: Tensor, tmp_path: Path
) -> None:
    encoder, positions = plain(restated, 1), restated.sincos(8, 2, 192)
    torch.save(checkpoint(encoder.state_dict() | {"pos_embed": positions}, None, 2), tmp_path / "jepa.pth")
    model = load_model(tmp_path / "jepa.pth")
    expected = encoder(small_clips, positions)
    torch.testing.assert_close(model.forward_features(small_clips), expected, atol=1e-4, rtol=1e-4)
    assert model.coverage is not None
    assert any("equal to our sincos_3d" in what for _, what in model.coverage.changed)
    assert "transformer.positions.table" not in model.encoder.state_dict()


@pytest.mark.parametrize("layout", ["vjepa", "vjepa2"])
def test_the_part_is_chosen_by_the_caller(restated: ModuleType, tmp_path: Path, layout: str) -> None:
    state = plain(restated, 1).state_dict() | {"pos_embed": torch.randn(1, 32, 192)}
    file = tmp_path / "both.pth"
    torch.save(checkpoint(state, state, 2 if layout == "vjepa" else 10), file)
    with pytest.raises(WeightsError, match="two encoders, encoder and target_encoder; choose one"):
        load_model(file)
    torch.save(checkpoint(state, None, 2 if layout == "vjepa" else 10), file)
    with pytest.raises(WeightsError, match="holds no target_encoder; it has encoder"):
        load_model(file, part="target_encoder")


@pytest.mark.parametrize("lost", ["norm.weight", "pos_embed", "blocks.1.attn.qkv.bias"])
def test_what_v_jepa_needs_is_missing(restated: ModuleType, tmp_path: Path, lost: str) -> None:
    state = plain(restated, 1).state_dict() | {"pos_embed": torch.randn(1, 32, 192)}
    del state[lost]
    torch.save(checkpoint(state, None, 2), tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=lost.replace(".", r"\.")):
        load_model(tmp_path / "part.pth", layout="vjepa")


@pytest.mark.parametrize("lost", ["encoder", "target_encoder", "both"])
def test_v_jepa_without_its_positions_is_not_taken_for_v_jepa_2(
    restated: ModuleType, tmp_path: Path, lost: str
) -> None:
    """Nobody names the layout: the predictor, and the other encoder, tell that positions were stored."""
    states = {
        part: plain(restated, 1).state_dict() | {"pos_embed": torch.randn(1, 32, 192)}
        for part in ("encoder", "target_encoder")
    }
    for part in states if lost == "both" else [lost]:
        del states[part]["pos_embed"]
    torch.save(checkpoint(states["encoder"], states["target_encoder"], 2), tmp_path / "part.pth")
    for part in states:
        if lost in (part, "both"):
            with pytest.raises(WeightsError, match=rf"there is no {part}/module\.backbone\.pos_embed"):
                load_model(f"file:{tmp_path / 'part.pth'}#{part}")
        else:
            assert load_model(f"file:{tmp_path / 'part.pth'}#{part}").identity.startswith("file:vjepa/")


def test_positions_of_another_grid_are_refused(restated: ModuleType, tmp_path: Path) -> None:
    state = plain(restated, 1).state_dict() | {"pos_embed": torch.randn(1, 33, 192)}
    torch.save(checkpoint(state, None, 2), tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"pos_embed is \[1, 33, 192\]; of 8 time steps"):
        load_model(tmp_path / "odd.pth")


@torch.no_grad()
def test_stored_positions_are_interpolated(restated: ModuleType, tmp_path: Path) -> None:
    encoder, positions = plain(restated, 1), torch.randn(1, 32, 192)
    torch.save(checkpoint(encoder.state_dict() | {"pos_embed": positions}, None, 2), tmp_path / "jepa.pth")
    model = load_model(tmp_path / "jepa.pth", size=64)
    cube = positions.view(1, 8, 2, 2, 192).permute(0, 4, 1, 2, 3)
    table = nn.functional.interpolate(cube, (8, 4, 4), mode="trilinear").flatten(2).transpose(1, 2)
    clips = torch.randint(0, 256, (1, 16, 64, 64, 3), dtype=torch.uint8)
    torch.testing.assert_close(model.forward_features(clips), encoder(clips, table), atol=1e-4, rtol=1e-4)
    assert model.coverage is not None
    assert any(what == "positions interpolated from 8x2x2 to 8x4x4" for _, what in model.coverage.changed)


@torch.no_grad()
@pytest.mark.parametrize("stored", [True, False])
def test_v_jepa_2_turns_and_ignores_stored_positions(
    restated: ModuleType, tmp_path: Path, stored: bool
) -> None:
    model, own = theirs(4)
    state = own | ({"pos_embed": torch.randn(1, 2048, 192)} if stored else {})
    torch.save(checkpoint(own, state, mask_tokens=10), tmp_path / "vitl.pt")
    ours = load_model(f"file:{tmp_path / 'vitl.pt'}#target_encoder")
    assert (ours.size, ours.frames, ours.rate) == (256, 16, {"fps": 4.0})
    clips = torch.randint(0, 256, (1, 16, 256, 256, 3), dtype=torch.uint8)
    expected = model(pixels(restated, clips), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(ours.forward_features(clips), expected, atol=1e-4, rtol=1e-4)
    assert ours.coverage is not None
    dropped = dict(ours.coverage.dropped)
    key = "target_encoder/module.backbone.pos_embed"
    assert ("turns queries and keys" in dropped[key]) if stored else (key not in dropped)


@torch.no_grad()
def test_v_jepa_2_on_other_clips(restated: ModuleType, tmp_path: Path) -> None:
    """Rotary positions go on; transformers takes them from the configuration's grid."""
    model, own = theirs(4)
    torch.save(checkpoint(own, None, mask_tokens=10), tmp_path / "vitl.pt")
    ours = load_model(tmp_path / "vitl.pt", frames=8)
    clips = torch.randint(0, 256, (1, 8, 256, 256, 3), dtype=torch.uint8)
    expected = model(pixels(restated, clips), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(ours.forward_features(clips), expected, atol=1e-4, rtol=1e-4)
    assert ours.coverage is not None
    assert any("rotary positions go on from 8x16x16 to 4x16x16" in what for _, what in ours.coverage.changed)


def test_without_a_predictor_nothing_tells_the_two_apart(restated: ModuleType, tmp_path: Path) -> None:
    state = plain(restated, 1).state_dict() | {"pos_embed": torch.randn(1, 32, 192)}
    torch.save(checkpoint(state, None, None), tmp_path / "encoder.pth")
    with pytest.raises(WeightsError, match=r"may be of the layout vjepa or vjepa2.*#layout=NAME"):
        load_model(tmp_path / "encoder.pth")
    for layout in ("vjepa", "vjepa2"):
        model = load_model(f"file:{tmp_path / 'encoder.pth'}#layout={layout}")
        assert model.encoder.form.position == ("stored" if layout == "vjepa" else "rotary_3d")
