"""Joint-embedding prediction: its loss restated plainly, its teacher, its two ways of batching."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from surgrec.configs.model import IMAGENET_MEAN, IMAGENET_STD, BlockGroup, JepaConfig, ViTShape
from surgrec.kernels.masking import BlockMask
from surgrec.kernels.patchify import patchify
from torch import Tensor

from surgrec.models.build import build_objective
from surgrec.models.jepa import Jepa
from surgrec.models.packing import Packed

SMALL: dict[str, Any] = {
    "size": "tiny",
    "groups": (BlockGroup(3, 0.2), BlockGroup(1, 0.6)),
    "predictor_depth": 2,
    "predictor_width": 32,
    "predictor_heads": 4,
}
SAMPLES = torch.tensor([2, 11, 3])


def build(seed: int = 0, **changes: Any) -> Jepa:
    model = build_objective(JepaConfig(**(SMALL | changes)), seed, frames=8, size=64)
    assert isinstance(model, Jepa)
    return model


def shake(model: Jepa) -> None:
    """Random biases, norms and mask tokens, and a teacher that differs from the student."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def attend(block: Any, x: Tensor, factors: Tensor | None) -> Tensor:
    """One block on one dense sequence [N, D], written out."""
    width, heads = x.shape[-1], block.attention.heads
    q, k, v = block.attention.qkv(block.norm1(x)).view(len(x), 3, heads, width // heads).unbind(1)
    if factors is not None:
        cosines, sines = factors[:, 0, None], factors[:, 1, None]

        def turn(y: Tensor) -> Tensor:
            pairs = y.view(*y.shape[:-1], -1, 2)
            partner = torch.stack([-pairs[..., 1], pairs[..., 0]], -1).view(y.shape)
            return y * cosines + partner * sines

        q, k = turn(q), turn(k)
    weights = (torch.einsum("nhd,mhd->hnm", q, k) / (width // heads) ** 0.5).softmax(-1)
    x = x + block.attention.proj(torch.einsum("hnm,mhd->nhd", weights, v).reshape(len(x), width))
    hidden = torch.nn.functional.gelu(block.mlp.fc1(block.norm2(x)))
    return x + block.mlp.fc2(hidden)


def encode(encoder: Any, pixels: Tensor, tokens: Tensor) -> Tensor:
    table, turns = encoder.positions.table, encoder.positions.turns
    x = encoder.patch_embedding(pixels[tokens])
    x = x if turns else x + table[tokens]
    for block in encoder.blocks:
        x = attend(block, x, table[tokens] if turns else None)
    return encoder.norm(x)


def plain_loss(model: Jepa, frames: Tensor, masks: list[BlockMask]) -> Tensor:
    """V-JEPA's loss clip by clip and group by group, in plain code."""
    clips = len(frames)
    every = torch.arange(64).expand(clips, -1)
    pixels = patchify(frames, every, 2, 16, IMAGENET_MEAN, IMAGENET_STD)
    predictor: Any = model.predictor
    total = torch.zeros(())
    for group, mask in enumerate(masks):
        contexts = mask.context.split(mask.context_lengths.tolist())
        targets = mask.target.split(mask.target_lengths.tolist())
        for clip in range(clips):
            context, target = contexts[clip], targets[clip]
            with torch.no_grad():
                taught = encode(model.teacher, pixels[clip], every[0])
                mean = taught.mean(-1, keepdim=True)
                taught = (taught - mean) / (taught.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            seen = predictor.embedding(encode(model.encoder, pixels[clip], context))
            asked = predictor.mask_tokens[group].expand(len(target), -1)
            tokens = torch.cat([context, target])
            x = torch.cat([seen, asked])
            table, turns = predictor.positions.table, predictor.positions.turns
            x = x if turns else x + table[tokens]
            for block in predictor.blocks:
                x = attend(block, x, table[tokens] if turns else None)
            predicted = predictor.proj(predictor.norm(x[len(context) :]))
            total = total + (predicted - taught[target]).abs().mean()
    return total / (clips * len(masks))


@pytest.mark.parametrize("equal_lengths", [False, True])
@pytest.mark.parametrize("position", ["sincos_3d", "rotary_3d"])
def test_loss_and_gradients_are_the_plain_ones(
    small: ViTShape, frames: Tensor, position: str, equal_lengths: bool
) -> None:
    model = build(position=position, equal_lengths=equal_lengths)
    shake(model)
    masks = model.masks(SAMPLES, step=4)
    if equal_lengths:
        assert all(len(set(m.context_lengths.tolist())) == 1 for m in masks)
    else:
        assert any(len(set(m.context_lengths.tolist())) > 1 for m in masks)
    loss = model(frames, SAMPLES, step=4).loss
    expected = plain_loss(model, frames, masks)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    trained = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, trained)
    for one, other in zip(ours, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)


def test_the_loss_of_a_batch_is_the_mean_of_its_clips(small: ViTShape, frames: Tensor) -> None:
    model = build()
    apart = [model(frames[i : i + 1], SAMPLES[i : i + 1], step=1).loss for i in range(3)]
    torch.testing.assert_close(model(frames, SAMPLES, step=1).loss, torch.stack(apart).mean())


def test_masks_follow_sample_and_step(small: ViTShape) -> None:
    model = build()
    again = build(seed=0).masks(SAMPLES, 3)
    other_seed = build(seed=1).masks(SAMPLES, 3)
    masks = model.masks(SAMPLES, 3)
    assert all(torch.equal(a.target, b.target) for a, b in zip(masks, again, strict=True))
    assert not all(torch.equal(a.target, b.target) for a, b in zip(masks, other_seed, strict=True))


def test_student_and_predictor_learn_and_the_teacher_does_not(small: ViTShape, frames: Tensor) -> None:
    model = build()
    shake(model)
    model(frames, SAMPLES).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    trained = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("teacher."))
    assert model.parameter_count == trained


def test_targets_reach_the_student_only_through_the_teacher(small: ViTShape, frames: Tensor) -> None:
    """Other pixels under the targets leave the predictions as they are."""
    model = build(groups=(BlockGroup(2, 0.3),))
    (mask,) = model.masks(SAMPLES, 0)
    other = frames.clone().view(3, 4, 2, 4, 16, 4, 16, 3)
    clip = torch.arange(3).repeat_interleave(mask.target_lengths)
    t, y, x = mask.target // 16, mask.target // 4 % 4, mask.target % 4
    other[clip, t, :, y, :, x] = 0
    teaching = model.teach(frames)
    assert torch.equal(
        model.loss(frames, teaching, [mask]), model.loss(other.view(frames.shape), teaching, [mask])
    )
    assert not torch.equal(model.teach(other.view(frames.shape)), teaching)


def test_momentum_and_average(small: ViTShape) -> None:
    model = build(ema_start=0.9, ema_end=1.0)
    assert [model.momentum(step, 10) for step in (0, 5, 10, 20)] == pytest.approx([0.9, 0.95, 1.0, 1.0])
    assert build(ema_start=0.99925, ema_end=0.99925).momentum(7, 10) == 0.99925
    shake(model)
    before = [p.clone() for p in model.teacher.parameters()]
    student = [p.clone() for p in model.encoder.parameters()]
    model.after_step(5, 10)
    for teacher, old, new in zip(model.teacher.parameters(), before, student, strict=True):
        torch.testing.assert_close(teacher, 0.95 * old + 0.05 * new)
    for parameter, kept in zip(model.encoder.parameters(), student, strict=True):
        assert torch.equal(parameter, kept)
    frozen = [p.clone() for p in model.teacher.parameters()]
    model.after_step(10, 10)
    assert all(torch.equal(a, b) for a, b in zip(model.teacher.parameters(), frozen, strict=True))


def test_the_teacher_starts_as_the_student(small: ViTShape) -> None:
    model = build()
    teacher = model.teacher.state_dict()
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in model.encoder.state_dict().items())
    teacher["norm.weight"].add_(1)
    assert not torch.equal(model.encoder.norm.weight, model.teacher.norm.weight)


def test_first_weights_are_v_jepas() -> None:
    model = build_objective(JepaConfig(size="tiny", predictor_depth=6), 0, frames=8, size=64)
    assert isinstance(model, Jepa)
    assert (model.predictor.mask_tokens == 0).all()
    for stack in (model.encoder.blocks, model.predictor.blocks):
        blocks: list[Any] = list(stack)
        for number, block in enumerate(blocks, start=1):
            assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.03)
            for last in (block.attention.proj, block.mlp.fc2):
                assert last.weight.std().item() == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.03)
                assert (last.bias == 0).all()


def test_monitors_only_when_asked(small: ViTShape, frames: Tensor) -> None:
    model = build()
    assert model(frames, SAMPLES).monitors == {}
    output = model(frames, SAMPLES, monitor=True)
    assert set(output.monitors) == {"feature_std", "rankme", "clip_cosine", "teacher_distance"}
    assert output.monitors["teacher_distance"] == 0
    assert all(value.ndim == 0 and not value.requires_grad for value in output.monitors.values())
    shake(model)
    assert model(frames, SAMPLES, monitor=True).monitors["teacher_distance"] > 0
    assert torch.equal(output.loss, build()(frames, SAMPLES).loss)


def test_checkpointing_changes_nothing(small: ViTShape, frames: Tensor) -> None:
    gradients: list[list[Tensor]] = []
    for checkpoint in (False, True):
        model = build(checkpoint_activations=checkpoint, position="rotary_3d")
        model(frames, SAMPLES).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("position", ["sincos_3d", "rotary_3d"])
def test_bfloat16_autocast_keeps_the_loss_in_float32(small: ViTShape, frames: Tensor, position: str) -> None:
    model = build(position=position)
    exact = model(frames, SAMPLES).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert model.teach(frames).dtype == torch.float32
        loss = model(frames, SAMPLES).loss
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, atol=0.02, rtol=0.02)
    assert not torch.equal(loss, exact)


def test_a_few_steps_lower_the_loss(small: ViTShape, frames: Tensor) -> None:
    """With a teacher that stands still the student must be able to predict it."""
    model = build(ema_start=1.0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses: list[float] = []
    for step in range(60):
        loss = model(frames, SAMPLES, step=0).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(step, 60)
        losses.append(loss.item())
    assert losses[-1] < 0.87 * losses[0]


def test_weight_decay_spares_biases_and_norms(small: ViTShape) -> None:
    model = build()
    spared = {name for name, p in model.named_parameters() if model.no_weight_decay(name, p)}
    expected = {name for name, _ in model.named_parameters() if "norm" in name or name.endswith("bias")}
    assert spared == expected


def test_flops_equal_the_counter_of_pytorch(small: ViTShape, frames: Tensor) -> None:
    """With blocks of the same number of tokens for all clips the mean over masks is exact."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = build(groups=(BlockGroup(1, 0.5, (1.0, 1.0)),))
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        teaching = model.teach(frames)
    teacher = counter.get_total_flops()
    with sdpa_kernel(SDPBackend.MATH), counter:
        model.loss(frames, teaching, model.masks(SAMPLES, 0))
    # The formula projects the predictor's context in and its targets out, as the model does.
    expected = (teacher + 3 * counter.get_total_flops()) / len(frames)
    assert model.flops_per_clip() == pytest.approx(expected, rel=1e-6)


def test_no_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one group"):
        build(groups=())


def test_packed_repeats_rows() -> None:
    packed = Packed.join(
        [torch.tensor([4, 5, 6]), torch.tensor([1])],
        [torch.tensor([1, 2]), torch.tensor([0, 1])],
        torch.device("cpu"),
    )
    assert packed.lengths == (1, 2, 0, 1)
    assert packed.tokens.tolist() == [4, 5, 6, 1]
    assert packed.repeat(torch.tensor([10, 20, 30, 40])).tolist() == [10, 20, 20, 40]
