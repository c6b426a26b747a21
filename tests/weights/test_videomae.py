"""VideoMAE's files, of each kind, give the features of a plain restatement; SurgVISTA's too."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from surgrec.weights.errors import WeightsError
from surgrec.weights.load import load_model


def pretraining(restated: ModuleType, **form: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """A plain encoder, and the state of a pretraining with it."""
    encoder = restated.randomise(restated.Encoder(**form), 1)
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    decoder = restated.Encoder(depth=1, width=96, heads=3, hidden=384)
    state |= {
        f"decoder.{name}": value
        for name, value in decoder.state_dict().items()
        if not name.startswith("patch_embed")
    }
    state["decoder.head.weight"], state["decoder.head.bias"] = torch.randn(1536, 96), torch.randn(1536)
    return encoder, state | {
        "encoder_to_decoder.weight": torch.randn(96, 192),
        "mask_token": torch.randn(1, 1, 96),
    }


@torch.no_grad()
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_pretraining(restated: ModuleType, large_clips: Tensor, tmp_path: Path, wrapper: str) -> None:
    encoder, state = pretraining(restated)
    top = {
        "model": {wrapper + name: value for name, value in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 150,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model="pretrain_videomae_base_patch16_224"),
    }
    torch.save(top, tmp_path / "checkpoint-150.pth")
    model = load_model(tmp_path / "checkpoint-150.pth")
    wanted = encoder(large_clips, restated.sinusoid(1568, 192))
    torch.testing.assert_close(model.forward_features(large_clips), wanted, atol=1e-4, rtol=1e-4)
    floats = model.forward_features(large_clips.float() / 255)
    torch.testing.assert_close(floats, wanted, atol=1e-4, rtol=1e-4)
    assert (model.frames, model.size, model.width, model.rate) == (16, 224, 192, {"stride": 4})
    assert model.coverage is not None
    loaded = {theirs for theirs, _ in model.coverage.loaded}
    assert loaded == {f"model/{wrapper}encoder.{name}" for name in encoder.state_dict()}
    reasons = dict(model.coverage.dropped)
    assert "of training" in reasons["optimizer/*"]
    assert "pretraining" in reasons[f"model/{wrapper}decoder.*"]
    assert {"epoch", "scaler", "args", f"model/{wrapper}mask_token"} <= set(reasons)
    assert {what for what, _, _ in model.coverage.assumed} == {"heads", "frames", "size", "mean", "rate"}


@torch.no_grad()
@pytest.mark.parametrize("top", ["model", "module", ""])
def test_fine_tuned(restated: ModuleType, large_clips: Tensor, tmp_path: Path, top: str) -> None:
    encoder = restated.randomise(restated.Encoder(end="fc_norm"), 2)
    state = encoder.state_dict() | {"head.weight": torch.randn(7, 192), "head.bias": torch.randn(7)}
    torch.save({top: state, "dp_world_size": 8} if top else state, tmp_path / "mp_rank_00_model_states.pt")
    model = load_model(tmp_path / "mp_rank_00_model_states.pt")
    wanted = encoder(large_clips, restated.sinusoid(1568, 192))
    tokens = model.forward_features(large_clips)
    torch.testing.assert_close(tokens, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        model.encode(large_clips)[0], encoder.fc_norm(wanted.mean(1)), atol=1e-4, rtol=1e-4
    )
    assert model.coverage is not None
    assert "classification head" in dict(model.coverage.dropped)[f"{top}/head.*" if top else "head.*"]


@torch.no_grad()
def test_cosine_attention_of_version_2(restated: ModuleType, large_clips: Tensor, tmp_path: Path) -> None:
    """Heads are told by the scales; the MLP is of another width; one scale is above the largest."""
    encoder, state = pretraining(restated, cosine=True, heads=6, hidden=500)
    torch.save({"module": {f"_orig_mod.{name}": value for name, value in state.items()}}, tmp_path / "v2.pth")
    model = load_model(tmp_path / "v2.pth")
    wanted = encoder(large_clips, restated.sinusoid(1568, 192))
    torch.testing.assert_close(model.forward_features(large_clips), wanted, atol=1e-4, rtol=1e-4)
    assert model.coverage is not None
    assert "heads" not in {what for what, _, _ in model.coverage.assumed}


@torch.no_grad()
def test_safetensors_and_flat_names(restated: ModuleType, large_clips: Tensor, tmp_path: Path) -> None:
    encoder, state = pretraining(restated)
    save_file(state, tmp_path / "mae.safetensors")
    model = load_model(f"file:{tmp_path / 'mae.safetensors'}")
    wanted = encoder(large_clips, restated.sinusoid(1568, 192))
    torch.testing.assert_close(model.forward_features(large_clips), wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("top", ["model", "module", "model_state"])
def test_surgvista(restated: ModuleType, small_clips: Tensor, tmp_path: Path, top: str) -> None:
    """Positions that are no table of ours are taken as they are; both decoders are named."""
    encoder = restated.randomise(restated.Encoder(), 3)
    positions = torch.randn(1, 32, 192)
    state = encoder.state_dict() | {"pos_embed": positions}
    for kind in ("img", "vid"):
        state |= {
            f"mask_token_{kind}": torch.randn(1, 1, 96),
            f"pos_embed_{kind}": torch.randn(1, 32, 96),
            f"down_{kind}.weight": torch.randn(96, 192),
            f"down_{kind}.bias": torch.randn(96),
            f"decoder_{kind}.norm.weight": torch.randn(96),
            f"decoder_{kind}.blocks.0.norm1.weight": torch.randn(96),
        }
    torch.save({top: state}, tmp_path / "surgvista.pth")
    model = load_model(tmp_path / "surgvista.pth")
    wanted = encoder(small_clips, positions)
    torch.testing.assert_close(model.forward_features(small_clips), wanted, atol=1e-4, rtol=1e-4)
    assert model.coverage is not None
    named = {key for key, _ in model.coverage.dropped}
    assert {
        f"{top}/{name}" for name in ("decoder_img.*", "decoder_vid.*", "down_img.*", "pos_embed_vid")
    } <= named


@pytest.mark.parametrize(
    "lost", ["encoder.blocks.1.attn.v_bias", "encoder.norm.weight", "encoder.blocks.0.mlp.fc1.bias"]
)
def test_a_missing_key_is_an_error(restated: ModuleType, tmp_path: Path, lost: str) -> None:
    _, state = pretraining(restated)
    del state[lost]
    torch.save({"model": state}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=rf"part\.pth.*{lost} is missing"):
        load_model(tmp_path / "part.pth")


def test_unknown_and_misshaped_keys_are_errors(restated: ModuleType, tmp_path: Path) -> None:
    _, state = pretraining(restated)
    torch.save({"model": state | {"encoder.blocks.0.gamma_1": torch.ones(192)}}, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match=r"gamma_1 is unknown"):
        load_model(tmp_path / "more.pth")
    torch.save({"model": state | {"encoder.blocks.1.norm2.bias": torch.ones(191)}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"norm2.bias is \[191\]; \[192\]"):
        load_model(tmp_path / "other.pth")
    torch.save({"model": state, "ema_copy": {"weight": torch.ones(2)}}, tmp_path / "ema.pth")
    with pytest.raises(WeightsError, match=r"ema_copy/weight is unknown"):
        load_model(tmp_path / "ema.pth")


FC1 = "encoder.blocks.0.mlp.fc1.weight"
PATCHES = "encoder.patch_embed.proj.weight"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (FC1, torch.zeros(768, 192, dtype=torch.int8), r"is \[768, 192\] of torch.int8;"),
        (FC1, torch.zeros(768, 192, dtype=torch.complex64), r"is \[768, 192\] of torch.complex64;"),
        (FC1, torch.zeros(768, 192).to_sparse(), r"of the layout sparse_coo;"),
        (FC1, torch.zeros(768, 192, device="meta"), r"is \[768, 192\] without values;"),
        (FC1, torch.tensor(1.0), r"fc1.weight is \[\]; 2 dimensions"),
        (PATCHES, torch.zeros(192, 3, 2, 0, 0), r"proj.weight is \[192, 3, 2, 0, 0\]"),
        (PATCHES, torch.zeros(192, 3, 0, 16, 16), r"proj.weight is \[192, 3, 0, 16, 16\]"),
        (PATCHES, torch.zeros(0, 3, 2, 16, 16), r"proj.weight is \[0, 3, 2, 16, 16\]"),
        ("encoder.blocks.0.attn.scale", torch.tensor(1.0), r"scale is \[\]; 3 dimensions"),
        ("encoder.blocks.0.attn.scale", torch.zeros(0, 1, 1), r"scale is \[0, 1, 1\]"),
    ],
)
def test_tensors_that_are_no_weights(
    restated: ModuleType, tmp_path: Path, key: str, value: Tensor, message: str
) -> None:
    _, state = pretraining(restated)
    torch.save({"model": state | {key: value}}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=rf"odd\.pth.*{message}"):
        load_model(tmp_path / "odd.pth")


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_compressed_rows_are_no_weights(restated: ModuleType, tmp_path: Path) -> None:
    """PyTorch calls only coordinates sparse."""
    _, state = pretraining(restated)
    torch.save({"model": state | {FC1: state[FC1].to_sparse_csr()}}, tmp_path / "csr.pth")
    with pytest.raises(WeightsError, match=r"is \[768, 192\] of the layout sparse_csr;"):
        load_model(tmp_path / "csr.pth")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_other_precisions_become_float32(restated: ModuleType, tmp_path: Path, dtype: torch.dtype) -> None:
    _, state = pretraining(restated)
    torch.save({"model": state | {FC1: state[FC1].to(dtype)}}, tmp_path / "half.pth")
    found = load_model(tmp_path / "half.pth").encoder.transformer.blocks[0].mlp.fc1.weight
    torch.testing.assert_close(found, state[FC1].to(dtype).float(), rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite(
    restated: ModuleType, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    """One of a matrix: features, and what is trained of them, would be worth nothing."""
    _, state = pretraining(restated)
    matrix = state[FC1].to(dtype, copy=True)
    matrix[700, 100] = value
    torch.save({"model": state | {FC1: matrix}}, tmp_path / "diverged.pth")
    with pytest.raises(WeightsError, match=rf"diverged\.pth: model/{FC1} has values that are not finite"):
        load_model(tmp_path / "diverged.pth")


def test_a_table_of_positions_that_would_fill_the_memory(restated: ModuleType, tmp_path: Path) -> None:
    """A hostile file repeats one number 8 x 40000 x 40000 x 192 times, which takes 4 bytes of it."""
    encoder = restated.Encoder()
    endless = torch.zeros(1).expand(1, 8 * 40000**2, 192)
    torch.save({"model": encoder.state_dict() | {"pos_embed": endless}}, tmp_path / "bomb.pth")
    with pytest.raises(WeightsError, match=r"bomb\.pth.*8 x 40000 x 40000 tokens, more than 1048576"):
        load_model(tmp_path / "bomb.pth")


def test_numbers_of_a_caller_that_are_none(restated: ModuleType, tmp_path: Path) -> None:
    _, state = pretraining(restated)
    torch.save({"model": state}, tmp_path / "mae.pth")
    for options in ({"size": 0}, {"size": -16}, {"frames": True}, {"size": 22.4}, {"frames": 10**30}):
        with pytest.raises(
            WeightsError, match=r"mae\.pth: (size|frames)=.* a whole number above 0, to 16384"
        ):
            load_model(tmp_path / "mae.pth", **options)
    with pytest.raises(WeightsError, match=r"part='teacher'; it is encoder or target_encoder"):
        load_model(tmp_path / "mae.pth", part="teacher")  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=r"8 x 1024 x 1024 tokens"):
        load_model(tmp_path / "mae.pth", size=16384)


def test_a_second_copy_is_named(restated: ModuleType, tmp_path: Path) -> None:
    _, state = pretraining(restated)
    torch.save({"model": state, "model_ema": state}, tmp_path / "both.pth")
    coverage = load_model(tmp_path / "both.pth").coverage
    assert coverage is not None
    assert "model is loaded" in dict(coverage.dropped)["model_ema/*"]


@torch.no_grad()
def test_other_clips_interpolate_positions_and_say_so(restated: ModuleType, tmp_path: Path) -> None:
    encoder, state = pretraining(restated)
    torch.save({"model": state}, tmp_path / "mae.pth")
    model = load_model(f"file:{tmp_path / 'mae.pth'}#size=64,frames=8,fps=2.5")
    assert (model.size, model.frames, model.rate) == (64, 8, {"fps": 2.5})
    assert model.coverage is not None
    assert (
        "transformer.positions.table",
        "positions interpolated from 8x14x14 to 4x4x4",
    ) in model.coverage.changed
    clips = torch.randint(0, 256, (1, 8, 64, 64, 3), dtype=torch.uint8)
    cube = restated.sinusoid(1568, 192).view(1, 8, 14, 14, 192).permute(0, 4, 1, 2, 3)
    table = nn.functional.interpolate(cube, (4, 4, 4), mode="trilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.forward_features(clips), encoder(clips, table), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"this model wants \[B, 8, 64, 64, 3\]"):
        model.forward_features(clips[:, :4])


def test_width_without_published_heads(restated: ModuleType, tmp_path: Path) -> None:
    _, state = pretraining(restated, width=48, heads=4)
    state["encoder_to_decoder.weight"] = torch.randn(96, 48)
    torch.save({"model": state}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"width 48.*heads=NUMBER"):
        load_model(tmp_path / "odd.pth")
    model = load_model(f"file:{tmp_path / 'odd.pth'}#heads=4")
    assert model.width == 48
    with pytest.raises(WeightsError, match="does not divide into heads=5"):
        load_model(f"file:{tmp_path / 'odd.pth'}#heads=5")


def test_identity_tells_weights_and_options_apart(restated: ModuleType, tmp_path: Path) -> None:
    _, state = pretraining(restated)
    torch.save({"model": state}, tmp_path / "one.pth")
    (tmp_path / "copy.pth").write_bytes((tmp_path / "one.pth").read_bytes())
    changed = state | {"encoder.norm.bias": state["encoder.norm.bias"] + 1}
    torch.save({"model": changed}, tmp_path / "two.pth")
    one, copy, two = (load_model(tmp_path / f"{name}.pth").identity for name in ("one", "copy", "two"))
    assert one == copy != two
    assert load_model(tmp_path / "one.pth", size=64).identity != one
    assert load_model(tmp_path / "one.pth", size=224, frames=16).identity == one
