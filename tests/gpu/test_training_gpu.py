"""The training loop on a GPU: bf16, the flag that skips a step without waiting, resuming, memory."""

from __future__ import annotations

import copy
import gc
import json
from dataclasses import replace

import pytest
import torch
from surgrec.configs.data import DataConfig
from surgrec.configs.model import JepaConfig, MaeConfig
from surgrec.configs.presets import PRESETS
from surgrec.loaders.clip_loader import Batch
from surgrec.loaders.clip_plan import ClipRequest

from surgrec.models.block_ways import set_blocks
from surgrec.models.build import build_objective
from surgrec.training.checkpoint import load_checkpoint
from surgrec.training.distributed import World
from surgrec.training.errors import UserError
from surgrec.training.estimate import estimate
from surgrec.training.guard import BadStepError, FiniteGuard
from surgrec.training.optim import build_adamw, optimizer_tensors, prepare_state
from surgrec.training.peaks import peak_flops
from surgrec.training.resolve import batch_shape
from surgrec.training.run_folder import RunFolder
from surgrec.training.saver import Saver
from surgrec.training.step import Parts, train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


class Clips:
    """The same random clips in every micro-batch, numbered as a loader would."""

    def __init__(self, data: DataConfig, rows: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (rows, data.frames, data.size, data.size, 3)
        self.frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).cuda()
        self.next_sample = 0

    def __next__(self) -> Batch:
        first, rows = self.next_sample, len(self.frames)
        self.next_sample += rows
        requests = [ClipRequest(first + row, 0, tuple(range(self.frames.shape[1]))) for row in range(rows)]
        return Batch(self.frames, torch.arange(first, first + rows), requests, 0, 0, 0.0)


def make_parts(config, precision=torch.bfloat16) -> Parts:
    world = World(0, 0, 1, torch.device("cuda", 0))
    shape = batch_shape(config, 1)
    objective = build_objective(config.model, 0, config.data.frames, config.data.size).cuda()
    set_blocks(objective, "plain" if config.blocks == "auto" else config.blocks)
    optimizer = build_adamw(objective, objective.no_weight_decay, config.optim)
    batches = Clips(config.data, shape.micro_batch)
    return Parts(config, world, objective, objective, optimizer, batches, shape, precision)


DEMOS = [PRESETS["demo"][1], PRESETS["demo-jepa"][1]]


@pytest.mark.parametrize("config", DEMOS, ids=["mae", "jepa"])
def test_loss_falls_in_bf16(config):
    parts = make_parts(replace(config, steps=40))
    losses = []
    for step in range(1, 41):
        parts.batches.next_sample = 0
        losses.append(float(train_step(parts, step).loss))
    assert losses[-1] < 0.95 * losses[0]
    assert all(p.dtype == torch.float32 for p in parts.objective.parameters())


@pytest.mark.parametrize("config", DEMOS, ids=["mae", "jepa"])
def test_bf16_is_near_fp32(config):
    low, high = make_parts(config), make_parts(config, torch.float32)
    a, b = train_step(low, 1), train_step(high, 1)
    torch.testing.assert_close(a.loss, b.loss, rtol=2e-2, atol=1e-3)
    torch.testing.assert_close(a.gradient_norm, b.gradient_norm, rtol=0.1, atol=1e-3)


def test_a_bad_step_is_skipped_on_the_device_and_found_a_step_later(tmp_path):
    parts = make_parts(DEMOS[0])
    guard = FiniteGuard(RunFolder(tmp_path), parts.world, ["video.mp4"], max_bad_steps=0)
    guard.add(train_step(parts, 1))
    before = copy.deepcopy(parts.objective.state_dict())
    state = copy.deepcopy(optimizer_tensors(parts.optimizer))
    weight = next(p for p in parts.objective.parameters() if p.requires_grad)
    handle = weight.register_hook(lambda gradient: gradient * float("inf"))
    guard.add(train_step(parts, 2))
    handle.remove()
    for a, b in zip(before.values(), parts.objective.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for name, value in optimizer_tensors(parts.optimizer).items():
        assert torch.equal(state[name], value), name
    # The flag of step 2 is looked at when step 3 has been queued.
    after = train_step(parts, 3)
    with pytest.raises(BadStepError, match="step 2"):
        guard.add(after)
    assert (
        json.loads((tmp_path / "nan-step-2.json").read_text())["ranks"][0]["clips"][0]["path"] == "video.mp4"
    )


@pytest.mark.filterwarnings("ignore:.*called a synchronizing CUDA operation")
def test_a_step_does_not_wait_for_the_device():
    parts = make_parts(DEMOS[0])
    for step in (1, 2):
        train_step(parts, step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(parts, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_optimizer_state_moves_to_the_host_and_back():
    one, other = make_parts(DEMOS[0]), make_parts(DEMOS[0])
    train_step(one, 1)
    saved = {name: value.cpu() for name, value in optimizer_tensors(one.optimizer).items()}
    for name, room in prepare_state(other.optimizer, {name: t.shape for name, t in saved.items()}).items():
        room.copy_(saved[name])
    other.objective.load_state_dict({k: v.cpu() for k, v in one.objective.state_dict().items()})
    other.batches.next_sample = one.batches.next_sample
    train_step(one, 2)
    train_step(other, 2)
    for a, b in zip(one.objective.parameters(), other.objective.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_checkpoint_is_of_its_step_though_nobody_waits_for_the_copies(tmp_path):
    parts = make_parts(DEMOS[1])
    saver = Saver(tmp_path, parts.world, parts.objective, parts.optimizer, parts.config.checkpoint)
    for step in (1, 2):
        train_step(parts, step)
        weights = {name: value.clone() for name, value in parts.objective.state_dict().items()}
        moments = {name: value.clone() for name, value in optimizer_tensors(parts.optimizer).items()}
        saver.save(step, {})
        train_step(parts, step + 1)
        saver.wait()
        read = load_checkpoint(tmp_path / f"step-{step:08d}")
        for found, expected in ((read.model, weights), (read.optimizer, moments)):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], value.cpu()) for name, value in expected.items())


@pytest.mark.parametrize(
    ("name", "model", "micro"),
    [("mae-vitb", MaeConfig(size="base"), 16), ("jepa-vitl", JepaConfig(size="large"), 4)],
)
@pytest.mark.parametrize("way", ["plain", "compiled", "fused"])
def test_memory_estimate_is_within_a_third_of_the_peak(name, model, micro, way):
    config = replace(PRESETS[name][1], model=model, batch=micro, micro_batch=micro, blocks=way)
    gc.collect()  # What earlier tests left in cycles, and would be freed meanwhile.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    floor = torch.cuda.memory_allocated()
    parts = make_parts(config)
    for step in (1, 2, 3):
        train_step(parts, step)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - floor
    expected = estimate(config, micro, torch.bfloat16).memory.total
    print(f"{name}: estimate {expected / 2**30:.2f} GiB, peak {peak / 2**30:.2f} GiB")
    assert 0.75 < expected / peak < 1.33


def test_this_gpu_has_a_known_peak_or_none():
    peak = peak_flops(torch.cuda.get_device_name(0), torch.bfloat16)
    assert peak is None or peak > 1e13


def test_a_rank_without_a_gpu_is_told():
    from surgrec.training.distributed import choose_device

    with pytest.raises(UserError, match="this machine shows"):
        choose_device("cuda", torch.cuda.device_count())
