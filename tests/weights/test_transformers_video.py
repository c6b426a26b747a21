"""Folders as transformers saves them give the features of transformers' own models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from surgrec.weights.errors import WeightsError
from surgrec.weights.load import load_model

SHAPE: dict[str, Any] = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}


def randomised(model: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.04
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def videomae(kind: str, **options: Any) -> Any:
    import transformers

    config = transformers.VideoMAEConfig(
        image_size=32,
        intermediate_size=96,
        decoder_hidden_size=24,
        decoder_intermediate_size=48,
        decoder_num_attention_heads=2,
        decoder_num_hidden_layers=1,
        **SHAPE,
        **options,
    )
    return randomised(getattr(transformers, kind)(config))


def vjepa2(kind: str = "VJEPA2Model", **options: Any) -> Any:
    import transformers

    config = transformers.VJEPA2Config(
        crop_size=32,
        frames_per_clip=16,
        mlp_ratio=3.0,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        **SHAPE,
        **options,
    )
    return randomised(getattr(transformers, kind)(config))


def pixels(restated: ModuleType, clips: Tensor) -> Tensor:
    return ((clips.float() / 255 - restated.MEAN) / restated.STD).movedim(-1, 2)


@torch.no_grad()
@pytest.mark.parametrize("final_norm", [True, False])
def test_videomae(restated: ModuleType, small_clips: Tensor, tmp_path: Path, final_norm: bool) -> None:
    theirs = videomae("VideoMAEModel", use_mean_pooling=not final_norm)
    theirs.save_pretrained(tmp_path / "hf")
    ours = load_model(tmp_path / "hf")
    expected = theirs(pixels(restated, small_clips)).last_hidden_state
    torch.testing.assert_close(ours.forward_features(small_clips), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_pretraining_drops_its_decoder_by_name(
    restated: ModuleType, small_clips: Tensor, tmp_path: Path
) -> None:
    theirs = videomae("VideoMAEForPreTraining", use_mean_pooling=False)
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="100KB")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 1
    ours = load_model(f"hf:{tmp_path / 'hf'}")
    expected = theirs.videomae(pixels(restated, small_clips)).last_hidden_state
    torch.testing.assert_close(ours.forward_features(small_clips), expected, atol=1e-4, rtol=1e-4)
    assert ours.coverage is not None
    assert {"decoder.*", "encoder_to_decoder.*", "mask_token"} == {key for key, _ in ours.coverage.dropped}


@torch.no_grad()
def test_fine_tuned_pools_as_theirs(restated: ModuleType, small_clips: Tensor, tmp_path: Path) -> None:
    theirs = videomae("VideoMAEForVideoClassification", num_labels=5)
    theirs.save_pretrained(tmp_path / "hf")
    ours = load_model(tmp_path / "hf")
    logits = theirs.classifier(ours.encode(small_clips)[0])
    expected = theirs(pixels(restated, small_clips)).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_fine_tuned_model_without_the_norm_of_its_mean_is_refused(tmp_path: Path) -> None:
    videomae("VideoMAEForVideoClassification", num_labels=5).save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    state = {key: value for key, value in load_file(file).items() if not key.startswith("fc_norm.")}
    save_file(state, file)
    with pytest.raises(WeightsError, match=r"fc_norm\.weight is missing, fc_norm\.bias is missing"):
        load_model(tmp_path / "hf")


@torch.no_grad()
def test_biases_of_either_storing_are_loaded(
    restated: ModuleType, small_clips: Tensor, tmp_path: Path
) -> None:
    """A silent failure elsewhere: biases stored under the old names became zeros."""
    theirs = videomae("VideoMAEModel")
    theirs.save_pretrained(tmp_path / "hf")
    expected = theirs(pixels(restated, small_clips)).last_hidden_state
    state = load_file(tmp_path / "hf" / "model.safetensors")
    others = {"q_bias": "query.bias", "v_bias": "value.bias"}
    renamed = {}
    for key in state:
        old, new = key, key
        for one, other in others.items():
            old, new = old.replace(f"attention.{other}", f"attention.{one}"), new.replace(one, other)
        renamed[key] = (old, new)
    for number in (0, 1):
        file = tmp_path / "hf" / "model.safetensors"
        save_file({renamed[key][number]: value for key, value in state.items()}, file)
        ours = load_model(tmp_path / "hf")
        torch.testing.assert_close(ours.forward_features(small_clips), expected, atol=1e-4, rtol=1e-4)
        assert ours.encoder.transformer.blocks[0].attention.q_bias.abs().sum() > 0
    lacking = {
        renamed[key][1]: value for key, value in state.items() if not key.endswith(("q_bias", "query.bias"))
    }
    save_file(lacking, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"query\.bias is missing"):
        load_model(tmp_path / "hf")


@torch.no_grad()
def test_no_biases_by_configuration(restated: ModuleType, small_clips: Tensor, tmp_path: Path) -> None:
    theirs = videomae("VideoMAEModel", qv_bias=False)
    theirs.save_pretrained(tmp_path / "hf")
    ours = load_model(tmp_path / "hf")
    expected = theirs(pixels(restated, small_clips)).last_hidden_state
    torch.testing.assert_close(ours.forward_features(small_clips), expected, atol=1e-4, rtol=1e-4)
    assert ours.coverage is not None
    assert any("`qv_bias`" in what for _, what in ours.coverage.changed)


@torch.no_grad()
def test_vjepa2(restated: ModuleType, small_clips: Tensor, tmp_path: Path) -> None:
    theirs = vjepa2()
    theirs.save_pretrained(tmp_path / "hf")
    ours = load_model(tmp_path / "hf")
    expected = theirs(pixels(restated, small_clips), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(ours.forward_features(small_clips), expected, atol=1e-4, rtol=1e-4)
    assert (ours.size, ours.frames) == (32, 16)
    assert ours.coverage is not None
    assert "predictor.*" in dict(ours.coverage.dropped)


@torch.no_grad()
def test_vjepa2_classifier(restated: ModuleType, small_clips: Tensor, tmp_path: Path) -> None:
    theirs = vjepa2("VJEPA2ForVideoClassification", num_pooler_layers=1)
    theirs.save_pretrained(tmp_path / "hf")
    ours = load_model(tmp_path / "hf")
    expected = theirs.vjepa2(pixels(restated, small_clips), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(ours.forward_features(small_clips), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_preprocessor_says_the_colours(restated: ModuleType, small_clips: Tensor, tmp_path: Path) -> None:
    theirs = vjepa2()
    theirs.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5]})
    )
    ours = load_model(tmp_path / "hf")
    values = (small_clips.float() / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.25, 0.5])
    expected = theirs(values.movedim(-1, 2), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(ours.forward_features(small_clips), expected, atol=1e-4, rtol=1e-4)


def test_a_preprocessor_that_does_not_normalise(tmp_path: Path) -> None:
    vjepa2().save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": False, "rescale_factor": 0.00392156862745098, "image_std": [9, 9, 9]})
    )
    ours = load_model(tmp_path / "hf")
    assert (ours.mean, ours.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"image_std": [0.2, 0, 0.2]}, "image_std"),
        ({"image_std": [0.2, -1, 0.2]}, "image_std"),
        ({"image_std": [0.2, True, 0.2]}, "image_std"),
        ({"image_mean": [0.5, math.nan, 0.5]}, "image_mean"),
        ({"image_mean": [0.5, 10**400, 0.5]}, "image_mean"),
        ({"image_mean": 0.5}, "image_mean"),
        ({"do_rescale": False}, "multiplies values by 1 "),
        ({"rescale_factor": 1 / 127.5}, "multiplies values by 0.0078"),
        ({"rescale_factor": "1/255"}, "multiplies values by '1/255'"),
    ],
)
def test_preprocessors_that_cannot_be_followed(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    vjepa2().save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(WeightsError, match=f"preprocessor_config.*{message}|{message}.*preprocessor_config"):
        load_model(tmp_path / "hf")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mlp_ratio": math.nan}, "mlp_ratio"),
        ({"mlp_ratio": 1e300}, "mlp_ratio"),
        ({"crop_size": 1 << 19, "frames_per_clip": 1 << 19}, "more than 1048576"),
        ({"hidden_act": "gelu_new"}, "hidden_act.*'gelu_new'"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"num_hidden_layers": 3}, r"encoder\.layer\.2\.\S+ is missing"),
        ({"num_hidden_layers": 1}, r"encoder\.layer\.1\.\S+ is unknown"),
        ({"layer_norm_eps": 2.0}, "layer_norm_eps"),
        ({"qkv_bias": False}, "qkv_bias"),
        ({"crop_size": 30}, "do not divide"),
        ({"num_attention_heads": 5}, "does not divide into 5 heads"),
    ],
)
def test_configurations_that_cannot_be_computed(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    vjepa2().save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(WeightsError, match=message):
        load_model(tmp_path / "hf")


def test_a_file_without_its_configuration(tmp_path: Path) -> None:
    vjepa2().save_pretrained(tmp_path / "hf")
    with pytest.raises(WeightsError, match=r"config\.json beside it; give the folder"):
        load_model(tmp_path / "hf" / "model.safetensors", layout="transformers-vjepa2")
