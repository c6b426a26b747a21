"""Vision transformers of timm as encoders of clips, against timm itself on single frames."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor

from surgrec.convert import main
from surgrec.models.video_encoder import VideoEncoder
from surgrec.weights.errors import WeightsError
from surgrec.weights.load import load_model, open_model
from surgrec.weights.video_model import VideoModel

PLAIN = "vit_tiny_patch16_224"
SIZE = 32
MODELS = {
    PLAIN: {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_small_patch14_dinov2": {},
    "vit_small_patch16_dinov3": {},
    "beit_base_patch16_224": {},
    "vit_base_patch16_clip_224": {},
}
"""With registers, LayerScale, rotary positions, relative ones, and a norm before the blocks."""


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """All models of timm have two blocks here."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **{"depth": 2, **options}))


def reference(name: str, size: int, **options: Any) -> Any:
    """All weights random, and what is no weight as it is."""
    model = timm.create_model(name, num_classes=0, img_size=size, **options).eval()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def clips_of(size: int, frames: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(10)
    return torch.randint(0, 256, (2, frames, size, size, 3), dtype=torch.uint8, generator=generator)


def expected(model: Any, clips: Tensor) -> Tensor:
    """[B, T, n, D], patches of each frame."""
    with torch.no_grad():
        tokens = model.forward_features(pixels_of(model, clips).flatten(0, 1))
    return tokens[:, model.num_prefix_tokens :].unflatten(0, clips.shape[:2])


def pixels_of(model: Any, clips: Tensor) -> Tensor:
    """[B, T, 3, S, S], as the model's configuration normalises them."""
    cfg = model.pretrained_cfg
    pixels = (clips.float() / 255 - torch.tensor(cfg["mean"])) / torch.tensor(cfg["std"])
    return pixels.permute(0, 1, 4, 2, 3)


def assert_same(model: VideoModel, clips: Tensor, tokens: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(clips), tokens, atol=1e-4, rtol=1e-4)


def hub_folder(folder: Path, name: str, tensors: Mapping[str, Tensor], size: int, **entries: Any) -> str:
    """As timm writes it for the Hugging Face hub."""
    folder.mkdir()
    save_file(dict(tensors), folder / "model.safetensors")
    cfg = {
        "input_size": [3, size, size],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "classifier": "head",
    }
    config = {"architecture": name, "pretrained_cfg": cfg, "model_args": {"img_size": size}, **entries}
    (folder / "config.json").write_text(json.dumps(config))
    return f"hf:{folder}"


@pytest.mark.parametrize("name", MODELS)
def test_features_of_each_frame_are_timms(tmp_path: Path, name: str) -> None:
    size = 28 if "patch14" in name else SIZE
    model = reference(name, size)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    found = load_model(f"timm:{name}@{tmp_path / 'model.safetensors'}", size=size, frames=2)
    assert (found.frames, found.size, found.width) == (2, size, model.num_features)
    assert found.mean == tuple(model.pretrained_cfg["mean"])
    clips = clips_of(size)
    assert_same(found, clips, expected(model, clips).flatten(1, 2))
    with torch.no_grad():
        pooled, _ = found.encode(clips)
        each = model(pixels_of(model, clips).flatten(0, 1)).unflatten(0, clips.shape[:2])
    torch.testing.assert_close(pooled, each.mean(1), atol=1e-4, rtol=1e-4)
    assert found.coverage is not None
    assert {key for key, _ in found.coverage.loaded} == set(model.state_dict())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv3_small_050"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_any_model_of_timm_pools_as_timm(
    tmp_path: Path, name: str, wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks of convolutions: maps of places, and pools that are wider than these."""
    monkeypatch.undo()
    model = timm.create_model(name, num_classes=3).eval()
    generator = torch.Generator().manual_seed(13)
    state = {
        key: torch.rand(value.shape, generator=generator) * 0.2 + 0.1 if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    path = tmp_path / "model.pth"
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    found = load_model(f"timm:{name}@{path}", frames=2)
    size = model.pretrained_cfg["input_size"][1]
    clips = clips_of(size)
    pixels = pixels_of(model, clips).flatten(0, 1)
    with torch.no_grad():
        pooled, tokens = found.encode(clips)
        maps = model.forward_features(pixels)
        each = model.forward_head(maps, pre_logits=True).unflatten(0, (2, 2))
    torch.testing.assert_close(pooled, each.mean(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        tokens, maps.flatten(2).mT.unflatten(0, (2, 2)).flatten(1, 2), atol=1e-4, rtol=1e-4
    )
    assert found.width == tokens.shape[2] == model.num_features
    assert found.encoder.pooled_width == pooled.shape[1]
    assert found.coverage is not None
    head = model.pretrained_cfg["classifier"]
    assert (f"{'state_dict/' * wrapped}{head}.*", "a classifier's (tensors: 2)") in found.coverage.dropped
    lost = [key for key, value in state.items() if value.is_floating_point() and not key.startswith(head)][-1]
    del state[lost]
    torch.save({"state_dict": state} if wrapped else state, path)
    with pytest.raises(WeightsError, match=rf"layout: \S*{re.escape(lost)} is missing\. Give"):
        load_model(f"timm:{name}@{path}")


def test_two_networks_of_convolutions_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "both.pth")
    with pytest.raises(WeightsError, match="holds 2 networks, at 'state_dict/', 'state_dict_ema/'"):
        load_model(f"timm:test_resnet@{tmp_path / 'both.pth'}")


def test_first_weights_are_told_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    opened = [open_model("random:timm:test_vit#frames=2", seed=seed) for seed in (0, 0, 1)]
    models = [each.load(torch.device("cpu")) for each in opened if each is not None]
    clips = clips_of(models[0].size)
    with torch.no_grad():
        one, two, other = (model.encode(clips)[0] for model in models)
    assert torch.equal(one, two)
    assert (one - other).abs().max() > 1e-3
    assert models[0].identity == models[1].identity != models[2].identity
    with pytest.raises(WeightsError, match="inflate=2 does not apply"):
        load_model("random:timm:test_vit#inflate=2")


def test_the_pooling_is_part_of_what_features_are(tmp_path: Path) -> None:
    """Features that were made when the mean of the patches was the rule are known by `pooling=all`."""
    model = reference(PLAIN, SIZE)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    name = f"timm:{PLAIN}@{tmp_path / 'model.safetensors'}#size={SIZE},frames=2"
    own, said, every = (load_model(f"{name}{more}") for more in ("", ",pooling=own", ",pooling=all"))
    assert own.identity == said.identity != every.identity
    assert (own.clip.pooling, every.clip.pooling) == ("own", "all")
    clip = {"frames": 2, "size": SIZE, "stride": None, "fps": None, "mean": own.mean, "std": own.std}
    clip |= {"tubelet": 1, "patch": 16, "width": 192}
    before = [{"heads": None, "inflate": None, "part": None, "pooling": None}, clip]
    digest = xxhash.xxh3_128_hexdigest(json.dumps(before, sort_keys=True).encode())
    assert every.identity.rpartition("/")[2] == digest


def test_a_folder_of_the_hub_says_what_it_is(tmp_path: Path) -> None:
    model = reference(PLAIN, SIZE)
    head = {"head.weight": torch.zeros(3, 192), "head.bias": torch.zeros(3)}
    name = hub_folder(tmp_path / "hub", PLAIN, {**model.state_dict(), **head}, SIZE)
    found = load_model(name, frames=2)
    assert (found.size, found.mean, found.std) == (SIZE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    model.pretrained_cfg["mean"], model.pretrained_cfg["std"] = found.mean, found.std
    assert_same(found, clips_of(SIZE), expected(model, clips_of(SIZE)).flatten(1, 2))
    assert found.coverage is not None
    assert dict(found.coverage.dropped) == {
        "head.*": "a classifier's, or of the losses of pretraining (tensors: 2)"
    }


@pytest.mark.parametrize(
    ("entries", "cause"),
    [
        ({"model_args": [1, 2]}, "config.json is not as timm writes it"),
        ({"pretrained_cfg": "vit"}, "config.json is not as timm writes it"),
        ({"pretrained_cfg": {"mean": "abc"}}, "mean is 'abc' in config.json"),
        ({"pretrained_cfg": {"std": [1, 2]}}, r"std is \[1, 2\] in config.json"),
        ({"pretrained_cfg": {"input_size": [3, 32, None]}}, "input_size is .* in config.json"),
        ({"model_args": {"no_such_argument": 1}}, "timm cannot make vit_tiny_patch16_224 .*no_such_argument"),
        ({"model_args": {"img_size": -5}}, "hub"),
        ({"model_args": {"depth": 10**9}}, "depth is 1000000000, beyond 16384"),
        ({"model_args": {"img_size": [10**7, 10**7]}}, "img_size is .* beyond 16384"),
        ({"pretrained_cfg": {"std": [1, 0, 1]}}, r"std is \[1, 0, 1\] in config.json"),
        ({"pretrained_cfg": {"classifier": 5}}, "classifier is 5 in config.json"),
        ({"pretrained_cfg": {"classifier": ["head", 3]}}, r"classifier is \['head', 3\] in config.json"),
        ({"model_args": {"pretrained": True}}, "pretrained is no keyword of an architecture"),
        ({"model_args": {"checkpoint_path": "other.pth"}}, "checkpoint_path is no keyword"),
        ({"architecture": "vit_of_nobody"}, "no model 'vit_of_nobody'"),
    ],
)
def test_folders_of_the_hub_that_lie(tmp_path: Path, entries: dict[str, Any], cause: str) -> None:
    name = hub_folder(tmp_path / "hub", PLAIN, reference(PLAIN, SIZE).state_dict(), SIZE, **entries)
    with pytest.raises(WeightsError, match=cause):
        load_model(name)


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_giant_patch14_reg4_dinov2"])
def test_dinov2_by_the_names_of_its_own_files(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's own reading of them, which names nothing, is the reference."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    if "giant" in name:
        narrow = {"embed_dim": 96, "num_heads": 2}
        create = timm.create_model
        monkeypatch.setattr(timm, "create_model", lambda name, **given: create(name, **{**narrow, **given}))
    model = reference(name, 28)
    theirs = dict(model.state_dict())
    theirs["register_tokens"] = theirs.pop("reg_token")
    place = torch.randn(1, 1, model.num_features)
    theirs["pos_embed"] = torch.cat([place, theirs["pos_embed"]], dim=1)
    theirs["mask_token"] = torch.zeros(1, model.num_features)
    if "giant" in name:
        pairs = (("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3"))
        for ours, own in pairs:
            theirs = {key.replace(ours, own): value for key, value in theirs.items()}
    path = tmp_path / "dinov2.pth"
    torch.save(theirs, path)
    model.load_state_dict(checkpoint_filter_fn(dict(theirs), model))
    found = load_model(f"timm:{name}@{path}", size=28, frames=2)
    assert_same(found, clips_of(28), expected(model, clips_of(28)).flatten(1, 2))
    assert found.coverage is not None
    assert ("cls_token", "its place, the first of pos_embed, is added to it") in found.coverage.changed
    assert [key for key, _ in found.coverage.dropped] == ["mask_token"]
    assert {key for key, _ in found.coverage.loaded} == set(theirs) - {"mask_token"}


def test_positions_of_other_frames_are_interpolated_and_said(tmp_path: Path) -> None:
    from timm.models.vision_transformer import checkpoint_filter_fn

    small = reference(PLAIN, SIZE)
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    large = timm.create_model(PLAIN, num_classes=0, img_size=64).eval()
    large.load_state_dict(checkpoint_filter_fn(dict(small.state_dict()), large))
    found = load_model(f"timm:{PLAIN}@{tmp_path / 'small.safetensors'}", size=64, frames=2)
    assert_same(found, clips_of(64), expected(large, clips_of(64)).flatten(1, 2))
    assert found.coverage is not None
    assert found.coverage.changed == [("pos_embed", "positions interpolated from 2x2 to 4x4 (bicubic)")]


@pytest.mark.parametrize("lost", ["cls_token", "pos_embed", "blocks.1.ls1.gamma", "reg_token", "norm.weight"])
def test_nothing_is_lost_in_silence(tmp_path: Path, lost: str) -> None:
    name = "vit_small_patch14_reg4_dinov2"
    tensors = dict(reference(name, 28).state_dict())
    del tensors[lost]
    path = tmp_path / "part.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=rf"part\.safetensors: .*{lost} is missing"):
        load_model(f"timm:{name}@{path}", size=28)


def test_weights_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(reference("vit_small_patch14_dinov2", 28).state_dict(), path)
    with pytest.raises(
        WeightsError, match=r"patch_embed\.proj\.weight is \[384, 3, 14, 14\]; \[192, 3, 16, 16\]"
    ):
        load_model(f"timm:{PLAIN}@{path}")
    save_file(reference("vit_small_patch16_224", SIZE, init_values=1).state_dict(), path)
    with pytest.raises(WeightsError, match=r"blocks\.0\.ls1\.gamma is unknown"):
        load_model(f"timm:vit_small_patch16_224@{path}", size=SIZE)


@pytest.mark.parametrize(("name", "width"), [(PLAIN, 192), ("vit_small_patch16_dinov3", 384)])
def test_a_file_alone_does_not_say_its_heads_and_colours(tmp_path: Path, name: str, width: int) -> None:
    path = tmp_path / "vit.pth"
    torch.save(reference(name, SIZE).state_dict(), path)
    with pytest.raises(WeightsError, match=rf"vit\.pth: .*width {width}, patches of 16 .* timm:MODEL@FILE"):
        load_model(path)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("timm:vit_tiny_patch16_225", "no model 'vit_tiny_patch16_225'; did you mean"),
        ("timm:test_resnet@{path}#inflate=2", r"cannot be inflated .*it is a ResNet"),
        ("timm:test_resnet@{path}#pooling=class", "no class token"),
        ("timm:test_resnet@{path}#size=64", "timm cannot make test_resnet"),
        (f"timm:{PLAIN}@{{path}}#pooling=max", "no pooling 'max' of it"),
        (f"timm:{PLAIN}@{{path}}#encoder", "part=encoder does not apply"),
        (f"timm:{PLAIN}@{{path}}#layout=vjepa", "leave layout=vjepa out"),
        (f"timm:{PLAIN}@{{path}}#inflate=2,pooling=mean", "pooling=mean does not apply"),
        (f"timm:{PLAIN}@{{path}}#inflate=3", "do not divide into tokens of 3 frames"),
        (f"timm:{PLAIN}@nowhere.pth", "nowhere.pth"),
    ],
)
def test_what_cannot_be_had(tmp_path: Path, name: str, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vit.safetensors"
    model = reference(PLAIN, 224)
    if "resnet" in name:
        monkeypatch.undo()
        model = timm.create_model("test_resnet", num_classes=0)
    save_file(model.state_dict(), path)
    with pytest.raises(WeightsError, match=cause):
        load_model(name.format(path=path))


def test_pretrained_weights_are_fetched_by_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What timm would fetch is made here: the registry's own path with other weights."""
    create = timm.create_model
    asked = []

    def fetch(name: str, pretrained: bool = False, **options: Any) -> Any:
        asked.append((name, pretrained, options))
        model = create(name, **options)
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                parameter.fill_(0.01 * (number % 7))
        return model.requires_grad_(True)

    monkeypatch.setattr(timm, "create_model", fetch)
    found = load_model(f"timm:{PLAIN}.augreg_in21k", size=SIZE, frames=2)
    assert asked[-2] == (f"{PLAIN}.augreg_in21k", True, {"num_classes": 0, "img_size": SIZE})
    assert [pretrained for _, pretrained, _ in asked] == [False, True, False], "fetched once"
    assert (found.size, found.frames) == (SIZE, 2)
    assert found.identity.startswith(f"timm:{PLAIN}.augreg_in21k/")
    other = load_model(f"timm:{PLAIN}.augreg_in21k", size=SIZE, frames=3)
    assert other.identity != found.identity


# Inflation.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (PLAIN, {"class_token": False, "global_pool": "avg"}),
        ("vit_small_patch14_dinov2", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    ],
)
def test_a_clip_that_stands_still_is_seen_as_its_frame(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    """Without a class token the inflated network is, on such a clip, the image model itself."""
    size = 28 if "patch14" in name else SIZE
    model = reference(name, size, **options)
    args = {**options, "img_size": size}
    folder = hub_folder(tmp_path / "hub", name, model.state_dict(), size, model_args=args)
    found = load_model(f"{folder}#inflate=2,frames=6")
    assert isinstance(found.encoder, VideoEncoder)
    assert (found.frames, found.clip.tubelet) == (6, 2)
    frame = clips_of(size, 1)
    model.pretrained_cfg["mean"], model.pretrained_cfg["std"] = found.mean, found.std
    tokens = expected(model, frame)[:, 0]
    if isinstance(model.fc_norm, torch.nn.LayerNorm):
        # The norm behind the mean is of the pool then.
        with torch.no_grad():
            whole, _ = found.encode(frame.expand(-1, 6, -1, -1, -1))
            torch.testing.assert_close(whole, model.fc_norm(tokens.mean(1)), atol=1e-4, rtol=1e-4)
    assert_same(found, frame.expand(-1, 6, -1, -1, -1), tokens.repeat(1, 3, 1))


def test_what_inflation_changes_and_drops_is_named(tmp_path: Path) -> None:
    name = "vit_small_patch14_dinov2"
    model = reference(name, 28)
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    found = load_model(f"timm:{name}@{path}#inflate=2,size=28")
    assert found.coverage is not None
    assert dict(found.coverage.dropped)["cls_token"].startswith("our transformer has no class token")
    changed = dict(found.coverage.changed)
    assert changed["transformer.patch_embedding.weight"] == "repeated over 2 frames and divided by 2"
    assert changed["transformer.positions.table"] == "repeated over 8 steps of time"
    assert changed["transformer.blocks.1.mlp.fc2"] == "multiplied by its LayerScale"
    ours = set(found.encoder.state_dict())
    loaded = {target for _, target in found.coverage.loaded}
    assert ours <= loaded
    assert {target for target in loaded if not any(key.startswith(target) for key in ours)} == set()
    assert {key for key, _ in found.coverage.loaded} == set(model.state_dict()) - {"cls_token"}


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("vit_small_patch14_reg4_dinov2", "register tokens"),
        ("vit_small_patch16_dinov3", "it is a Eva"),
        ("vit_base_patch16_clip_224", "a norm before its blocks"),
    ],
)
def test_what_does_not_fit_is_not_inflated(tmp_path: Path, name: str, cause: str) -> None:
    size = 28 if "patch14" in name else SIZE
    path = tmp_path / "model.safetensors"
    save_file(reference(name, size).state_dict(), path)
    with pytest.raises(WeightsError, match=rf"model\.safetensors: cannot be inflated .*{cause}"):
        load_model(f"timm:{name}@{path}#inflate=2,size={size}")


def test_the_report_of_convert_takes_names_of_timm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(reference(PLAIN, SIZE).state_dict(), path)
    assert main([f"timm:{PLAIN}@{path}#inflate=2,size=32", "--report"]) == 0
    out = capsys.readouterr().out
    assert "cls_token" in out
    assert "our transformer has no class token" in out
    assert "clips of 16 frames (stride 4) of 32 x 32 pixels; tokens of 2 x 16 x 16, width 192" in out


def test_weights_that_cannot_be_fetched_are_not_reported_as_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until they are needed nothing is fetched; a report needs them."""
    create = timm.create_model

    def fetch(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("there is no network")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", fetch)
    name = f"timm:{PLAIN}.augreg_in21k"
    opened = open_model(name)
    assert opened is not None
    with pytest.raises(WeightsError, match="cannot be had: there is no network"):
        opened.load(torch.device("cpu"))
    assert main([name, "--report"]) == 1
    said = capsys.readouterr()
    assert (said.out, "cannot be had: there is no network" in said.err) == ("", True)


def test_two_networks_of_one_name_share_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(reference(PLAIN, SIZE).state_dict(), path)
    opened = open_model(f"timm:{PLAIN}@{path}#size=32,frames=2")
    assert opened is not None
    cpu = torch.device("cpu")
    one, other = opened.load(cpu), opened.load(cpu)
    with torch.no_grad():
        before = other.forward_features(clips_of(SIZE))
        for parameter in one.parameters():
            parameter.zero_()
        torch.testing.assert_close(other.forward_features(clips_of(SIZE)), before)
    save_file(reference(PLAIN, 64).state_dict(), path)
    with pytest.raises(WeightsError, match="has changed since it was opened"):
        opened.load(cpu)
