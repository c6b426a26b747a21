"""Encoders by their forms: plain values that come back, weights that must fit, and blocks of every form that
compute alike in each way."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from surgrec.models.block_ways import set_blocks
from surgrec.models.encoder_form import EncoderForm, document_of, form_from, transformer_of
from surgrec.models.video_encoder import VideoEncoder, build_encoder

FORM = EncoderForm(
    depth=2, width=48, heads=3, hidden=80, frames=4, size=32, position="sincos_3d", key_bias="learned"
)
CLIPS = torch.randint(0, 256, (2, 4, 32, 32, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def weights_of(form: EncoderForm) -> dict[str, Tensor]:
    with torch.device("meta"):
        empty = VideoEncoder(transformer_of(form), form).state_dict()
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(value.shape, generator=generator) * (0.3 if value.ndim == 1 else 0.1)
        for name, value in empty.items()
    }


def test_a_form_comes_back_from_json() -> None:
    form = replace(FORM, mean=(0.5, 0.25, 0.125), pool_norm="layer_norm", final_norm=False, eps=1e-12)
    assert form_from(json.loads(json.dumps(document_of(form)))) == form


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 0},
        {"width": "48"},
        {"width": 48.0},
        {"cosine": 1},
        {"heads": True},
        {"eps": float("nan")},
        {"position": "learned"},
        {"key_bias": None},
        {"pool_norm": "batch_norm"},
        {"mean": [0.5, 0.5]},
        {"std": [0.5, 0.5, "0.5"]},
        {"other": 3},
    ],
)
def test_a_form_that_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="an encoder's form"):
        form_from(document_of(FORM) | change)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"final_norm": False, "pool_norm": "layer_norm"},
        {"eps": 1e-3, "hidden": 200},
        {"position": "stored", "key_bias": "zero"},
        {"position": "rotary_3d"},
        {"cosine": True},
    ],
)
def test_fused_blocks_compute_what_plain_ones_do(change: dict[str, Any]) -> None:
    form = replace(FORM, **change)
    encoder = build_encoder(form, weights_of(form)).eval()
    plain = encoder(CLIPS)
    pooled = encoder.pool(plain)
    set_blocks(encoder, "fused")
    torch.testing.assert_close(encoder(CLIPS), plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder(CLIPS.float() / 255), plain, atol=1e-5, rtol=1e-4)
    assert plain.shape == (2, 8, 48)
    assert pooled.shape == (2, 48)
    if form.pool_norm == "layer_norm":
        torch.testing.assert_close(pooled, encoder.pool_norm(plain.mean(1)))
    else:
        torch.testing.assert_close(pooled, plain.mean(1))


@torch.no_grad()
def test_every_choice_of_a_form_shows() -> None:
    """Weights that two forms share give other features where the forms differ."""
    first = build_encoder(FORM, weights_of(FORM))(CLIPS)
    for change in ({"heads": 4}, {"eps": 1e-2}, {"mean": (0.1, 0.2, 0.3)}, {"uniform_power": False}):
        other = replace(FORM, **change)  # type: ignore[arg-type]
        assert (build_encoder(other, weights_of(other))(CLIPS) - first).abs().max() > 1e-4, change


def test_weights_that_do_not_fit() -> None:
    weights = weights_of(FORM)
    with pytest.raises(RuntimeError, match="Missing key"):
        build_encoder(FORM, {name: value for name, value in weights.items() if "norm2" not in name})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        build_encoder(FORM, weights | {"pool_norm.weight": torch.ones(48)})
    with pytest.raises(ValueError, match="does not divide into 5 heads"):
        build_encoder(replace(FORM, heads=5), weights)


def test_weights_are_taken_and_not_copied() -> None:
    weights = weights_of(FORM)
    encoder = build_encoder(FORM, weights)
    assert encoder.transformer.norm.weight.data_ptr() == weights["transformer.norm.weight"].data_ptr()
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in encoder.parameters())
    assert not encoder.transformer.positions.table.is_meta
