"""The objectives on a GPU: the CPU's loss, and training steps in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from surgrec.configs.model import JepaConfig, MaeConfig

from surgrec.models.build import build_objective

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

CONFIGS = {
    "mae": MaeConfig(size="tiny"),
    "jepa": JepaConfig(size="tiny", predictor_depth=2),
    "jepa-equal": JepaConfig(size="tiny", predictor_depth=2, equal_lengths=True),
    "jepa-rotary": JepaConfig(size="tiny", predictor_depth=2, position="rotary_3d"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_equals_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (3, 8, 112, 112, 3), dtype=torch.uint8)
    samples = torch.tensor([4, 2**40, 9])
    model = build_objective(CONFIGS[name], 0, frames=8, size=112)
    expected = model(frames, samples, 3, monitor=True)
    output = model.cuda()(frames.cuda(), samples, 3, monitor=True)
    torch.testing.assert_close(output.loss.cpu(), expected.loss, atol=2e-3, rtol=2e-3)
    for key, value in expected.monitors.items():
        torch.testing.assert_close(output.monitors[key].cpu(), value, atol=2e-2, rtol=2e-2)
    there = model(frames.cuda(), samples.cuda(), 3).loss
    torch.testing.assert_close(there, output.loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_bfloat16_training_lowers_the_loss(name: str, checkpoint: bool) -> None:
    torch.manual_seed(0)
    coarse = torch.randint(0, 256, (8, 4, 7, 7, 3), dtype=torch.uint8, device="cuda")
    frames = coarse.repeat_interleave(2, 1).repeat_interleave(16, 2).repeat_interleave(16, 3)
    frames[:, :, ::2] //= 2
    config = replace(CONFIGS[name], checkpoint_activations=checkpoint)
    model = build_objective(config, 0, frames=8, size=112).cuda()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses: list[float] = []
    for _ in range(40):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(frames, torch.arange(8), 0).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert loss.dtype == torch.float32
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_does_not_wait_for_the_gpu(name: str) -> None:
    """With samples on the CPU, nothing in a forward and backward pass reads back from the device."""
    frames = torch.randint(0, 256, (4, 8, 112, 112, 3), dtype=torch.uint8, device="cuda")
    model = build_objective(CONFIGS[name], 0, frames=8, size=112).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        model(frames, torch.arange(4), 0).loss.backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(frames, torch.arange(4), 1).loss.backward()
            model.after_step(1, 10)
        finally:
            torch.cuda.set_sync_debug_mode("default")
