"""The masked autoencoder against transformers' VideoMAE, and by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from surgrec.configs.model import IMAGENET_MEAN, IMAGENET_STD, MaeConfig, ViTShape
from surgrec.kernels.patchify import gather_tokens
from torch import Tensor, nn

from surgrec.models.build import build_objective
from surgrec.models.mae import MaskedAutoencoder

CONFIG = MaeConfig(size="tiny", mask_ratio=0.75, decoder_depth=2, decoder_width=32, decoder_heads=2)


def build(config: MaeConfig = CONFIG, seed: int = 0) -> MaskedAutoencoder:
    model = build_objective(config, seed, frames=8, size=64)
    assert isinstance(model, MaskedAutoencoder)
    return model


def blocks_of(model: MaskedAutoencoder) -> list[Any]:
    return list(model.encoder.blocks)


def shake(model: nn.Module) -> None:
    """Random biases and norms: the first ones, zeros and ones, would hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=generator) * 0.2 / parameter.shape[-1] ** 0.5
            )
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def block_to_transformers(ours: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    query, key, value = ours[f"{source}.attention.qkv.weight"].chunk(3)
    theirs = {
        "attention.attention.query.weight": query,
        "attention.attention.key.weight": key,
        "attention.attention.value.weight": value,
        "attention.attention.query.bias": ours[f"{source}.attention.q_bias"],
        "attention.attention.value.bias": ours[f"{source}.attention.v_bias"],
    }
    for theirs_name, ours_name in (
        ("attention.output.dense", "attention.proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
    ):
        for kind in ("weight", "bias"):
            theirs[f"{theirs_name}.{kind}"] = ours[f"{source}.{ours_name}.{kind}"]
    return {f"{target}.{name}": tensor for name, tensor in theirs.items()}


def to_transformers(model: MaskedAutoencoder, normalise: bool = True) -> Any:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    shape = model.encoder
    decoder = model.config
    theirs = VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=64,
            patch_size=16,
            num_frames=8,
            tubelet_size=2,
            hidden_size=shape.width,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.width,
            decoder_hidden_size=decoder.decoder_width,
            decoder_num_hidden_layers=decoder.decoder_depth,
            decoder_num_attention_heads=decoder.decoder_heads,
            decoder_intermediate_size=4 * decoder.decoder_width,
            layer_norm_eps=1e-6,
            qv_bias=True,
            use_mean_pooling=False,
            norm_pix_loss=normalise,
        )
    )
    # VideoMAE's decoder ends in a norm with 1e-6; transformers leaves PyTorch's 1e-5 there.
    theirs.decoder.norm.eps = 1e-6
    ours = model.state_dict()
    weight = ours["encoder.patch_embedding.weight"].view(-1, 2, 16, 16, 3).permute(0, 4, 1, 2, 3)
    state = {
        "videomae.embeddings.patch_embeddings.projection.weight": weight,
        "videomae.embeddings.patch_embeddings.projection.bias": ours["encoder.patch_embedding.bias"],
        "videomae.layernorm.weight": ours["encoder.norm.weight"],
        "videomae.layernorm.bias": ours["encoder.norm.bias"],
        "encoder_to_decoder.weight": ours["encoder_to_decoder.weight"],
        "mask_token": ours["decoder.mask_token"][None, None],
        "decoder.norm.weight": ours["decoder.norm.weight"],
        "decoder.norm.bias": ours["decoder.norm.bias"],
        "decoder.head.weight": ours["decoder.head.weight"],
        "decoder.head.bias": ours["decoder.head.bias"],
    }
    for n in range(shape.depth):
        state |= block_to_transformers(ours, f"encoder.blocks.{n}", f"videomae.encoder.layer.{n}")
    for n in range(decoder.decoder_depth):
        state |= block_to_transformers(ours, f"decoder.blocks.{n}", f"decoder.decoder_layers.{n}")
    theirs.load_state_dict(state, strict=True)
    return theirs.eval()


def their_loss(theirs: Any, model: MaskedAutoencoder, frames: Tensor, samples: Tensor) -> Tensor:
    pixels = (frames.float() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    masked = torch.zeros(len(frames), 64, dtype=torch.bool).scatter(1, model.mask(samples).masked, True)
    loss: Tensor = theirs(pixels.permute(0, 1, 4, 2, 3), bool_masked_pos=masked).loss
    return loss


@pytest.mark.parametrize("normalise", [True, False])
def test_loss_equals_transformers(frames: Tensor, normalise: bool) -> None:
    """ViT-Ti in full depth, all weights random."""
    model = build(MaeConfig(size="tiny", mask_ratio=0.75, normalise_target=normalise))
    shake(model)
    samples = torch.tensor([3, 2**40, 17])
    loss = model(frames, samples).loss
    expected = their_loss(to_transformers(model, normalise), model, frames, samples)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


def test_gradients_equal_transformers(small: ViTShape, frames: Tensor) -> None:
    model = build()
    shake(model)
    theirs = to_transformers(model)
    samples = torch.arange(3)
    model(frames, samples).loss.backward()
    their_loss(theirs, model, frames, samples).backward()
    for layer, block in zip(theirs.videomae.encoder.layer, blocks_of(model), strict=True):
        inner = layer.attention.attention
        weight = torch.cat([inner.query.weight.grad, inner.key.weight.grad, inner.value.weight.grad])
        torch.testing.assert_close(block.attention.qkv.weight.grad, weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(block.attention.q_bias.grad, inner.query.bias.grad, atol=1e-5, rtol=1e-4)


def test_transformers_keeps_and_uses_the_biases(small: ViTShape, frames: Tensor, tmp_path: Path) -> None:
    """Some of its versions silently set the query and value biases to zero; the above would prove little."""
    from transformers import VideoMAEForPreTraining

    model = build()
    shake(model)
    theirs = to_transformers(model)
    samples = torch.arange(3)
    expected = their_loss(theirs, model, frames, samples)
    theirs.save_pretrained(tmp_path)
    loaded: Any = VideoMAEForPreTraining.from_pretrained(tmp_path)
    loaded.decoder.norm.eps = 1e-6
    assert torch.equal(their_loss(loaded, model, frames, samples), expected)
    with torch.no_grad():
        for layer in loaded.videomae.encoder.layer:
            assert (layer.attention.attention.query.bias != 0).all()
            assert (layer.attention.attention.value.bias != 0).all()
            layer.attention.attention.value.bias.zero_()
    assert (their_loss(loaded, model, frames, samples) - expected).abs() > 1e-4


def test_every_parameter_learns(small: ViTShape, frames: Tensor) -> None:
    model = build()
    model(frames, torch.arange(3)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_masked_pixels_are_not_seen(small: ViTShape, frames: Tensor) -> None:
    model = build()
    samples = torch.arange(3)
    mask = model.mask(samples)
    other = frames.clone().view(3, 4, 2, 4, 16, 4, 16, 3)
    t, y, x = mask.masked // 16, mask.masked // 4 % 4, mask.masked % 4
    other[torch.arange(3)[:, None], t, :, y, :, x] = 0
    before, after = model.predict(frames, mask), model.predict(other.view(frames.shape), mask)
    assert torch.equal(before, after)
    assert not torch.equal(model.predict(255 - frames, mask), before)


def test_the_loss_of_a_batch_is_the_mean_of_its_clips(small: ViTShape, frames: Tensor) -> None:
    model = build()
    samples = torch.tensor([5, 6, 7])
    apart = [model(frames[i : i + 1], samples[i : i + 1]).loss for i in range(3)]
    torch.testing.assert_close(model(frames, samples).loss, torch.stack(apart).mean())


@pytest.mark.parametrize("position", ["sinusoid_1d", "sincos_3d", "rotary_3d"])
def test_positions_matter(small: ViTShape, frames: Tensor, position: Any) -> None:
    model = build(MaeConfig(size="tiny", position=position, decoder_width=48, decoder_heads=3))
    features = model.features(frames)
    assert features.shape == (3, 64, 48)
    # The top row of tokens goes to the bottom; without positions the features would only move along.
    moved = model.features(frames.roll(-16, dims=2)).view(3, 4, 4, 4, 48).roll(1, dims=2).view(3, 64, 48)
    assert (moved - features).abs().max() > 1e-3


def test_checkpointing_changes_nothing(small: ViTShape, frames: Tensor) -> None:
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    for checkpoint in (False, True):
        model = build(
            MaeConfig(size="tiny", decoder_width=32, decoder_heads=2, checkpoint_activations=checkpoint)
        )
        loss = model(frames, torch.arange(3)).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(blocks_of(model)[0].attention.qkv.weight.grad)
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(gradients[0], gradients[1])


def test_bfloat16_autocast_keeps_the_loss_in_float32(small: ViTShape, frames: Tensor) -> None:
    model = build()
    exact = model(frames, torch.arange(3)).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(frames, torch.arange(3)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, atol=0.02, rtol=0.02)
    assert not torch.equal(loss, exact)


@pytest.mark.parametrize("normalise", [True, False])
def test_pictures_of_a_perfect_prediction_are_the_input(
    small: ViTShape, frames: Tensor, normalise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgrec.kernels.pixel_target import pixel_target

    model = build(
        MaeConfig(size="tiny", decoder_width=32, decoder_heads=2, mask_ratio=0.5, normalise_target=normalise)
    )
    monkeypatch.setattr(
        model, "predict", lambda clips, mask: pixel_target(clips, mask.masked, normalise=normalise)
    )
    shown, masked, rebuilt = model.reconstruct(frames, torch.arange(3))
    assert torch.equal(shown, frames)
    assert torch.equal(rebuilt, frames)
    mask = model.mask(torch.arange(3))
    rows = torch.arange(3)[:, None]
    assert (gather_tokens(masked, rows, mask.masked) == 127).all()
    seen = gather_tokens(masked, rows, mask.visible)
    assert torch.equal(seen, gather_tokens(frames, rows, mask.visible))


def test_reconstruction_is_a_picture(small: ViTShape, frames: Tensor) -> None:
    model = build()
    rebuilt = model.reconstruct(frames, torch.arange(3))[2]
    assert rebuilt.dtype == torch.uint8
    assert rebuilt.shape == frames.shape
    rows = torch.arange(3)[:, None]
    mask = model.mask(torch.arange(3))
    assert not torch.equal(rebuilt, frames)
    visible = gather_tokens(rebuilt, rows, mask.visible)
    assert torch.equal(visible, gather_tokens(frames, rows, mask.visible))


def test_other_clips_are_refused(small: ViTShape, frames: Tensor) -> None:
    with pytest.raises(ValueError, match="was built for clips of 8 frames"):
        build()(frames[:, :6], torch.arange(3))


def test_weight_decay_spares_biases_norms_and_the_mask_token(small: ViTShape) -> None:
    model = build()
    spared = {name for name, p in model.named_parameters() if model.no_weight_decay(name, p)}
    expected = {
        name
        for name, _ in model.named_parameters()
        if "norm" in name or name.endswith(("bias", "mask_token"))
    }
    assert spared == expected
    assert "encoder.blocks.0.attention.q_bias" in spared


def test_flops_of_vit_b_by_hand() -> None:
    """12 blocks of 160 tokens, 4 of 1568, embedding and head; backward twice the forward."""
    model = build_objective(MaeConfig(), 0)
    encoder = 12 * (24 * 160 * 768**2 + 4 * 160**2 * 768)
    decoder = 4 * (24 * 1568 * 384**2 + 4 * 1568**2 * 384)
    ends = 2 * 160 * 1536 * 768 + 2 * 160 * 768 * 384 + 2 * 1408 * 384 * 1536
    assert model.flops_per_clip() == pytest.approx(3 * (encoder + decoder + ends))


def test_flops_equal_the_counter_of_pytorch(small: ViTShape, frames: Tensor) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = build()
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model.predict(frames, model.mask(torch.arange(3)))
    assert counter.get_total_flops() == pytest.approx(model.flops_per_clip() / 3 * len(frames), rel=1e-6)


def test_a_decoder_may_rebuild_a_share_of_the_hidden_tokens(small: ViTShape, frames: Tensor) -> None:
    """The loss is that of the same model over these tokens alone; the decoder sees none of the others."""
    config = replace(CONFIG, decoder_share=0.25)
    part, whole = build(config), build()
    part.load_state_dict(whole.state_dict())
    samples = torch.arange(3) + 7
    mask, everything = part.rebuilt_mask(samples), whole.mask(samples)
    hidden = everything.masked.shape[1]
    assert part.rebuilt == mask.masked.shape[1] == round(hidden / 4)
    assert torch.equal(mask.visible, everything.visible)
    assert part(frames, samples).loss == whole.loss(frames, mask)
    assert 0 < part.flops_per_clip() < whole.flops_per_clip()
    assert torch.equal(whole.rebuilt_mask(samples).masked, everything.masked)
