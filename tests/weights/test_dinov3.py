"""DINOv3 files against transformers' DINOv3ViTModel with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surgrec.weights.errors import WeightsError
from surgrec.weights.load import load_model
from surgrec.weights.video_model import VideoModel

WIDTH, REGISTERS = 64, 4


@pytest.fixture(params=["gelu", "swiglu"])
def reference(request: pytest.FixtureRequest) -> Any:
    """All weights random, LayerScale, registers and biases too: far from what a lost one would leave."""
    return random_model(gated=request.param == "swiglu")


def random_model(gated: bool = False, biased: bool = True) -> Any:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    model = DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=WIDTH,
            intermediate_size=96 if gated else 256,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_register_tokens=REGISTERS,
            use_gated_mlp=gated,
            hidden_act="silu" if gated else "gelu",
            query_bias=biased,
            value_bias=biased,
            image_size=64,
        )
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def official(model: Any) -> dict[str, Tensor]:
    """Under the names, and in the arrangement, of the files of the official repository."""
    source = model.state_dict()
    names = {
        "norm1": "norm1",
        "norm2": "norm2",
        "attention.o_proj": "attn.proj",
        "mlp.gate_proj": "mlp.w1",
        "mlp.up_proj": "mlp.w2" if model.config.use_gated_mlp else "mlp.fc1",
        "mlp.down_proj": "mlp.w3" if model.config.use_gated_mlp else "mlp.fc2",
    }
    found = {
        "cls_token": source["embeddings.cls_token"],
        "storage_tokens": source["embeddings.register_tokens"],
        "mask_token": source["embeddings.mask_token"][0],
        "patch_embed.proj.weight": source["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": source["embeddings.patch_embeddings.bias"],
        "norm.weight": source["norm.weight"],
        "norm.bias": source["norm.bias"],
        # The files hold them in half the precision.
        "rope_embed.periods": (1 / model.rope_embeddings.inv_freq).to(torch.bfloat16),
    }
    for layer in range(model.config.num_hidden_layers):
        theirs, ours = f"model.layer.{layer}.", f"blocks.{layer}."
        for one, other in names.items():
            for kind in ("weight", "bias"):
                if f"{theirs}{one}.{kind}" in source:
                    found[f"{ours}{other}.{kind}"] = source[f"{theirs}{one}.{kind}"]
        for number in (1, 2):
            found[f"{ours}ls{number}.gamma"] = source[f"{theirs}layer_scale{number}.lambda1"]
        q, k, v = (f"{theirs}attention.{letter}_proj." for letter in "qkv")
        found[f"{ours}attn.qkv.weight"] = torch.cat([source[f"{part}weight"] for part in (q, k, v)])
        if model.config.query_bias:
            # What stands where keys would have a bias is whatever training left there, and masked.
            junk = torch.full((WIDTH,), 7.0)
            found[f"{ours}attn.qkv.bias"] = torch.cat([source[f"{q}bias"], junk, source[f"{v}bias"]])
            mask = torch.ones(3 * WIDTH)
            mask[WIDTH : 2 * WIDTH] = 0
            found[f"{ours}attn.qkv.bias_mask"] = mask
    return {name: tensor.clone() for name, tensor in found.items()}


def expected(
    model: Any, clips: Tensor, halved: bool = True, tokens: slice = slice(1 + REGISTERS, None)
) -> Tensor:
    """[B, T, n, D], the patch tokens of each frame by transformers. halved: with periods of half the
    precision, as official files hold them."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((clips.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    exact = model.rope_embeddings.inv_freq
    if halved:
        model.rope_embeddings.inv_freq = 1 / (1 / exact).to(torch.bfloat16).float()
    with torch.no_grad():
        found = model(pixel_values=pixels.flatten(0, 1)).last_hidden_state
    model.rope_embeddings.inv_freq = exact
    return found[:, tokens].unflatten(0, clips.shape[:2])


@pytest.fixture
def clips() -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randint(0, 256, (2, 3, 64, 64, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("how", ["official", "trained", "folder"])
def test_features_are_those_of_the_reference(reference: Any, clips: Tensor, tmp_path: Path, how: str) -> None:
    name = write(reference, tmp_path, how)
    model = load_model(f"{name}#size=64,frames=3")
    assert (model.size, model.frames, model.width, model.rate) == (64, 3, WIDTH, {})
    tokens = expected(reference, clips, halved=how != "folder")
    assert_same(model, clips, tokens.flatten(1, 2))
    assert_same(model, clips.float() / 255, tokens.flatten(1, 2))


def test_features_at_another_size(reference: Any, tmp_path: Path) -> None:
    """Rotary positions are computed for any grid, and nothing is interpolated."""
    name = write(reference, tmp_path, "official")
    clips = torch.randint(0, 256, (1, 2, 96, 96, 3), dtype=torch.uint8)
    model = load_model(name, size=96, frames=2)
    assert_same(model, clips, expected(reference, clips).flatten(1, 2))
    assert model.coverage is not None
    assert model.coverage.changed == []


def test_frames_are_pooled_as_chosen(reference: Any, clips: Tensor, tmp_path: Path) -> None:
    name = write(reference, tmp_path, "official")
    patches, whole = expected(reference, clips), expected(reference, clips, tokens=slice(1))
    for pooling, tokens in (
        ("own", patches.flatten(1, 2)),
        ("all", patches.flatten(1, 2)),
        ("mean", patches.mean(1)),
        ("class", whole[:, :, 0]),
    ):
        model = load_model(f"{name}#size=64,frames=3,pooling={pooling}")
        assert_same(model, clips, tokens)
        with torch.no_grad():
            pooled, _ = model.encode(clips)
        # As transformers' pooler_output and DINOv3's own forward.
        wanted = whole.mean((1, 2)) if pooling == "own" else tokens.mean(1)
        torch.testing.assert_close(pooled, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(WeightsError, match="no pooling 'max' of it; choose own, all, mean, class"):
        load_model(f"{name}#pooling=max")


def test_what_the_file_does_not_say(reference: Any, tmp_path: Path) -> None:
    model = load_model(write(reference, tmp_path, "official"))
    assert (model.size, model.frames, model.mean) == (224, 8, (0.485, 0.456, 0.406))
    assert model.coverage is not None
    assert [what for what, _, _ in model.coverage.assumed] == ["size", "frames", "rate", "mean, std"]


def test_what_a_folder_says(tmp_path: Path, clips: Tensor) -> None:
    name = write(random_model(), tmp_path, "folder")
    colours = {"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}
    (tmp_path / "folder" / "preprocessor_config.json").write_text(json.dumps(colours))
    model = load_model(name)
    assert (model.size, model.mean, model.std) == (64, (0.43, 0.411, 0.296), (0.213, 0.156, 0.143))
    assert model.coverage is not None
    assert [what for what, _, _ in model.coverage.assumed] == ["frames", "rate"]
    with torch.no_grad():
        other = load_model(name).encoder(clips)
        (tmp_path / "folder" / "preprocessor_config.json").unlink()
        assert (load_model(name, frames=3).forward_features(clips) - other).abs().max() > 0.01


def test_every_key_is_accounted_for(reference: Any, tmp_path: Path) -> None:
    model = load_model(write(reference, tmp_path, "trained"))
    assert model.coverage is not None
    keys = {key for key, _ in model.coverage.loaded}
    dropped = dict(model.coverage.dropped)
    assert {"teacher/backbone.mask_token", "teacher/backbone.local_cls_norm.*"} < set(dropped)
    assert dropped["teacher/dino_head.*"] == "of pretraining: a head of its losses (tensors: 1)"
    stored = {f"teacher/backbone.{key}" for key in official(reference)}
    assert keys == stored - {"teacher/backbone.mask_token"}
    assert len(keys) == len(model.coverage.loaded)


@pytest.mark.parametrize(
    "lost",
    [
        "blocks.1.ls1.gamma",
        "blocks.2.ls2.gamma",
        "rope_embed.periods",
        "cls_token",
        "storage_tokens",
        "blocks.0.attn.qkv.bias_mask",
        "norm.bias",
        "blocks.2.attn.qkv.bias",
    ],
)
def test_nothing_is_lost_in_silence(tmp_path: Path, lost: str) -> None:
    tensors = official(random_model())
    del tensors[lost]
    torch.save(tensors, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=rf"part\.pth: .*{lost}"):
        load_model(f"file:{tmp_path / 'part.pth'}#layout=dinov3")


@pytest.mark.parametrize(
    "key", ["blocks.1.ls1.gamma", "cls_token", "storage_tokens", "blocks.0.attn.qkv.bias"]
)
def test_every_kind_of_weight_matters(clips: Tensor, tmp_path: Path, key: str) -> None:
    """A silent loss would leave the features as they are."""
    before = official(random_model())
    after = {**before, key: before[key] * -0.5}
    found = []
    for number, tensors in enumerate((before, after)):
        torch.save(tensors, tmp_path / f"{number}.pth")
        model = load_model(tmp_path / f"{number}.pth", size=64, frames=3)
        with torch.no_grad():
            found.append(model.forward_features(clips))
    assert (found[0] - found[1]).abs().max() > 0.01


def test_stored_periods_turn_the_queries(clips: Tensor, tmp_path: Path) -> None:
    model = random_model()
    model.rope_embeddings.inv_freq = model.rope_embeddings.inv_freq * 0.7
    torch.save(official(model), tmp_path / "turned.pth")
    assert_same(
        load_model(tmp_path / "turned.pth", size=64, frames=3), clips, expected(model, clips).flatten(1, 2)
    )


def test_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    tensors = {**official(random_model()), "blocks.0.attn.gate.weight": torch.zeros(3)}
    torch.save(tensors, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match=r"more\.pth: .*blocks\.0\.attn\.gate\.weight is unknown"):
        load_model(tmp_path / "more.pth")


def test_another_shape_is_an_error(tmp_path: Path) -> None:
    tensors = {**official(random_model()), "blocks.1.attn.proj.weight": torch.zeros(64, 32)}
    torch.save(tensors, tmp_path / "bent.pth")
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.proj\.weight is \[64, 32\]; \[64, 64\]"):
        load_model(tmp_path / "bent.pth")


def test_other_masks_of_biases_are_an_error(tmp_path: Path) -> None:
    tensors = official(random_model())
    tensors["blocks.1.attn.qkv.bias_mask"] = torch.ones(3 * WIDTH)
    torch.save(tensors, tmp_path / "mask.pth")
    with pytest.raises(WeightsError, match=r"mask\.pth: blocks\.1\.attn\.qkv\.bias_mask hides other biases"):
        load_model(tmp_path / "mask.pth")


def test_without_biases(clips: Tensor, tmp_path: Path) -> None:
    """As the model of 7 billion weights is."""
    reference = random_model(gated=True, biased=False)
    for how in ("official", "folder"):
        model = load_model(write(reference, tmp_path, how), size=64, frames=3)
        assert_same(model, clips, expected(reference, clips, halved=how == "official").flatten(1, 2))


@pytest.mark.parametrize(
    ("entry", "value", "cause"),
    [
        ("key_bias", True, "key_bias is True in config.json"),
        ("hidden_act", "relu", "hidden_act is 'relu'"),
        ("num_attention_heads", "two", "num_attention_heads is 'two'"),
        ("num_attention_heads", 5, "does not divide into heads"),
        ("rope_theta", "x", "rope_theta is 'x'"),
        ("rope_theta", None, "rope_theta is None"),
        ("rope_theta", 0, "rope_theta is 0 "),
        ("layer_norm_eps", -1e-5, "layer_norm_eps is -1e-05"),
        ("layer_norm_eps", "1e-5", "layer_norm_eps is '1e-5'"),
        ("num_hidden_layers", 4, "num_hidden_layers is 4 in config.json, and 3 by the tensors"),
        ("hidden_size", 1024, "hidden_size is 1024 in config.json"),
        ("num_register_tokens", 0, "num_register_tokens is 0 in config.json, and 4 by the tensors"),
        ("image_size", 1 << 30, "frames of 1073741824 pixels, more than 16384"),
    ],
)
def test_configurations_that_nobody_published(tmp_path: Path, entry: str, value: object, cause: str) -> None:
    write(random_model(), tmp_path, "folder")
    config = tmp_path / "folder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), entry: value}))
    with pytest.raises(WeightsError, match=cause):
        load_model(f"hf:{tmp_path / 'folder'}")


def test_options_that_do_not_apply(tmp_path: Path) -> None:
    name = write(random_model(), tmp_path, "official")
    with pytest.raises(WeightsError, match="cannot be inflated to tubelets: its rotary positions"):
        load_model(f"{name}#inflate=2")
    with pytest.raises(WeightsError, match="part=encoder does not apply"):
        load_model(f"{name}#encoder")
    with pytest.raises(WeightsError, match=r"100 pixels do not divide into patches of 16; .* as 96"):
        load_model(name, size=100)


def test_two_networks_in_a_file(tmp_path: Path) -> None:
    tensors = official(random_model())
    for parts in (("student", "teacher"), ("one", "other")):
        both = {part: {f"backbone.{key}": value for key, value in tensors.items()} for part in parts}
        torch.save(both, tmp_path / f"{parts[0]}.pth")
    with pytest.raises(WeightsError, match="holds 2 networks with storage_tokens"):
        load_model(tmp_path / "one.pth")
    model = load_model(tmp_path / "student.pth")
    assert model.coverage is not None
    assert "student/*" in dict(model.coverage.dropped)


def write(model: Any, folder: Path, how: str) -> str:
    """A file or a folder of the model; returns its name."""
    if how == "folder":
        model.save_pretrained(folder / "folder")
        return f"hf:{folder / 'folder'}"
    tensors = official(model)
    if how == "official":
        torch.save(tensors, folder / "dinov3.pth")
        return f"file:{folder / 'dinov3.pth'}"
    teacher = {f"backbone.{key}": value for key, value in tensors.items()}
    teacher["backbone.local_cls_norm.weight"] = torch.ones(WIDTH)
    teacher["dino_head.last_layer.weight"] = torch.ones(8, WIDTH)
    torch.save({"teacher": teacher}, folder / "checkpoint.pth")
    return f"file:{folder / 'checkpoint.pth'}"


def assert_same(model: VideoModel, clips: Tensor, tokens: Tensor) -> None:
    with torch.no_grad():
        found = model.forward_features(clips)
    torch.testing.assert_close(found, tokens, atol=1e-4, rtol=1e-4)
