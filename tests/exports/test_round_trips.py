"""Ours -> each format -> ours: equal weights, and the same features."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from surgrec.kernels.patchify import patchify
from torch import Tensor

from surgrec.exports.comparison import clips_for
from surgrec.exports.model_file import about_of, header_of, write_model
from surgrec.exports.names import convolution, fused_bias
from surgrec.exports.source import open_source
from surgrec.exports.video_vit import normalised
from surgrec.models.jepa import Jepa
from surgrec.models.video_encoder import encoder_of
from surgrec.training.tensor_file import write_tensors
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import read_file
from surgrec.weights.load import load_model

Convert = Callable[..., Path]
CASES = [
    ("mae", "safetensors", "model.safetensors", None),
    ("jepa", "safetensors", "model.safetensors", None),
    ("mae", "hub", "folder", None),
    ("jepa2", "hub", "folder", None),
    ("mae", "timm", "model.safetensors", None),
    ("jepa", "timm", "model.safetensors", None),
    ("jepa2", "timm", "model.safetensors", None),
    ("mae", "transformers-videomae", "folder", None),
    ("jepa2", "transformers-vjepa2", "folder", None),
    ("mae", "videomae", "model.pth", None),
    ("jepa", "vjepa", "model.pt", "target_encoder"),
    ("jepa2", "vjepa", "model.pt", "target_encoder"),
]


@pytest.mark.parametrize(("name", "to", "out", "part"), CASES, ids=lambda value: str(value))
def test_weights_come_back_equal(
    name: str, to: str, out: str, part: Literal["target_encoder"] | None, runs: Any, convert: Convert
) -> None:
    ours = encoder_of(runs[name].objective)
    back = load_model(convert(runs[name].path, to, out), part=part)
    found = back.encoder.state_dict()
    assert found.keys() == ours.state_dict().keys()
    for key, tensor in ours.state_dict().items():
        assert torch.equal(found[key], tensor), key
    assert (back.size, back.frames) == (runs[name].config.data.size, 16)
    clips = _clips(runs[name])
    with torch.no_grad():
        torch.testing.assert_close(back.forward_features(clips), ours(clips), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("to", ["hub", "timm", "transformers-vjepa2"])
def test_student_can_be_chosen(to: str, runs: Any, convert: Convert) -> None:
    objective = runs["jepa2"].objective
    assert isinstance(objective, Jepa)
    out = "model.safetensors" if to == "timm" else "folder"
    back = load_model(convert(runs["jepa2"].path, to, out, "--part", "encoder"))
    found = back.encoder.state_dict()["transformer.blocks.1.mlp.fc1.weight"]
    student, teacher = (part.blocks[1].mlp.fc1.weight for part in (objective.encoder, objective.teacher))
    assert torch.equal(found, student)
    assert not torch.equal(found, teacher)


@pytest.mark.parametrize("part", ["encoder", "target_encoder"])
@pytest.mark.parametrize("to", ["safetensors", "vjepa"])
def test_both_encoders_are_in_whole_files(
    to: str, part: Literal["encoder", "target_encoder"], runs: Any, convert: Convert
) -> None:
    out = convert(runs["jepa"].path, to, "model.safetensors" if to == "safetensors" else "model.pt")
    objective = runs["jepa"].objective
    ours = objective.encoder if part == "encoder" else objective.teacher
    found = load_model(out, part=part).encoder.state_dict()
    for key, tensor in ours.state_dict().items():
        assert torch.equal(found[f"transformer.{key}"], tensor), key


@pytest.mark.parametrize("name", ["mae", "jepa", "jepa2"])
def test_whole_model_comes_back_and_is_converted_on(name: str, runs: Any, convert: Convert) -> None:
    """Decoder and predictor too; a file stands for the run that it was made from."""
    file = convert(runs[name].path, "safetensors", "whole.safetensors")
    again = open_source(file)
    for key, tensor in runs[name].objective.state_dict().items():
        assert torch.equal(again.tensors[key], tensor), key
    first = convert(runs[name].path, "timm", "first.safetensors").read_bytes()
    assert convert(file, "timm", "second.safetensors").read_bytes() == first


def test_rate_and_colours_are_kept(runs: Any, convert: Convert, tmp_path: Path) -> None:
    """Nothing of our own files is assumed, and nothing of colours in transformers' folders."""
    for name, to, rate in (("mae", "hub", {"stride": 4}), ("jepa2", "hub", {"fps": 4.0})):
        model = load_model(convert(runs[name].path, to, f"{name}-{to}"))
        assert model.rate == rate
        assert model.coverage is not None
        assert model.coverage.assumed == []
    vjepa2 = load_model(convert(runs["jepa2"].path, "transformers-vjepa2", "vjepa2"))
    assert vjepa2.coverage is not None
    assert "mean" not in [what for what, _, _ in vjepa2.coverage.assumed]


def test_changed_file_of_ours_is_refused(runs: Any, convert: Convert, tmp_path: Path) -> None:
    file = convert(runs["mae"].path, "safetensors", "model.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(content)
    for read in (load_model, open_source):
        with pytest.raises(WeightsError, match=r"changed.safetensors: damaged, or changed by hand"):
            read(changed)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"frames": 1 << 30}, "tokens, more than 1048576"),
        ({"size": 1 << 25}, "tokens, more than 1048576"),
        ({"frames": 15}, "do not divide into tokens"),
    ],
)
@pytest.mark.parametrize("to", ["safetensors", "timm"])
def test_headers_that_lie_of_clips(
    to: str, data: dict[str, int], message: str, runs: Any, convert: Convert, tmp_path: Path
) -> None:
    """Whoever changes a header can also make its digest fit."""
    file = convert(runs["mae"].path, to, "model.safetensors")
    content = read_file(file)
    about = about_of(header_of(content.about))
    changed = replace(about, pretraining=about.pretraining | {"data": about.pretraining["data"] | data})
    bad = tmp_path / "bad.safetensors"
    if to == "safetensors":
        write_model(bad, changed, content.tensors)
    else:
        header = header_of(content.about) | changed.plain()
        save_file(dict(content.tensors), bad, {"surgrec": json.dumps(header)})
    for read in (load_model, open_source) if to == "safetensors" else (load_model,):
        with pytest.raises(WeightsError, match=rf"bad\.safetensors: damaged.*{message}"):
            read(bad)


def test_positions_of_another_table_are_kept(runs: Any, convert: Convert, tmp_path: Path) -> None:
    """A file of timm's, trained on with positions of its own: they are taken, and that is said."""
    from safetensors import safe_open

    file = convert(runs["mae"].path, "timm", "model.safetensors")
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no dict
        about = opened.metadata()
    tensors["pos_embed"] = tensors["pos_embed"].flip(1)
    write_tensors(tmp_path / "moved.safetensors", tensors, about)
    model = load_model(tmp_path / "moved.safetensors")
    assert model.coverage is not None
    assert any("kept as they are" in what for _, what in model.coverage.changed)
    clips = _clips(runs["mae"])
    with torch.no_grad():
        ours = encoder_of(runs["mae"].objective)(clips)
        assert (model.forward_features(clips) - ours).abs().max() > 0.01


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**31))
def test_convolution_is_the_patch_embedding(tubelet: int, patch: int, grid: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, tubelet * patch * patch * 3, generator=generator)
    shape = (2, tubelet * grid, patch * grid, patch * grid, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    mean, std = (0.1, 0.4, 0.7), (0.3, 0.2, 0.5)
    tokens = torch.arange(grid**3).expand(2, -1)
    ours = patchify(frames, tokens, tubelet, patch, mean, std) @ weight.T
    kernel = convolution(weight, tubelet, patch)
    stride = (tubelet, patch, patch)
    theirs = torch.nn.functional.conv3d(normalised(frames, mean, std), kernel, stride=stride)
    torch.testing.assert_close(ours, theirs.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 9), st.integers(0, 4))
def test_fused_bias_holds_the_parts(width: int, blocks: int) -> None:
    tensors: dict[str, Tensor] = {"norm.weight": torch.ones(width)}
    for number in range(blocks):
        tensors[f"blocks.{number}.attn.q_bias"] = torch.full((width,), 1.0 + number)
        tensors[f"blocks.{number}.attn.v_bias"] = torch.full((width,), -1.0 - number)
    fused = fused_bias(tensors)
    assert set(fused) == {"norm.weight", *(f"blocks.{n}.attn.qkv.bias" for n in range(blocks))}
    for number in range(blocks):
        q, k, v = fused[f"blocks.{number}.attn.qkv.bias"].chunk(3)
        assert torch.equal(q, tensors[f"blocks.{number}.attn.q_bias"])
        assert torch.equal(v, tensors[f"blocks.{number}.attn.v_bias"])
        assert not k.any()


def _clips(run: Any) -> Tensor:
    return clips_for(open_source(run.path), 2)
