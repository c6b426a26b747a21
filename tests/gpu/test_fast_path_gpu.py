"""The step as a GPU takes it (bf16, compiled or fused blocks, Triton, the table's attention) against plain
float32 twins.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
import torch
from surgrec.configs.presets import PRESETS
from surgrec.configs.pretrain import BlockWay
from surgrec.kernels import (
    add_norm,
    column_sums,
    feature_loss,
    fold,
    gelu,
    join_heads,
    patchify,
    pixel_loss,
    place_tokens,
    rotary,
)
from surgrec.loaders.clip_loader import ClipLoader
from torch import Tensor

from surgrec.corpus.build import build_index
from surgrec.corpus.discovery import find_entries
from surgrec.models.block_ways import set_blocks
from surgrec.models.build import build_objective
from surgrec.models.objective import Objective
from surgrec.training.optim import build_adamw, set_hyperparameters

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

STEPS, BATCH = 120, 16
WAYS: Final[tuple[BlockWay, ...]] = ("compiled", "fused")
CONFIGS: dict[str, Any] = {
    "mae": PRESETS["demo"][1],
    "mae-normalised": replace(
        PRESETS["demo"][1], model=replace(PRESETS["demo"][1].model, normalise_target=True)
    ),
    "jepa": PRESETS["demo-jepa"][1],
    "jepa-rotary": replace(
        PRESETS["demo-jepa"][1], model=replace(PRESETS["demo-jepa"][1].model, position="rotary_3d")
    ),
}


@pytest.fixture(scope="module")
def index(streams: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for kind in ("h264_default", "h264_full_range", "hevc_closed"):
        streams.make_stream(kind, folder / kind, frames=90, size=(320, 240))
    build_index(find_entries([str(folder)]), folder / "corpus.h5", workers=1)
    return folder / "corpus.h5"


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest, index: Path) -> Any:
    found = CONFIGS[request.param]
    return replace(found, data=replace(found.data, index=index, engine="cpu", threads=4), batch=BATCH)


def clips(config: Any, count: int) -> list[tuple[Tensor, Tensor]]:
    from surgrec.loaders.packet_index import PacketIndex

    with ClipLoader(PacketIndex.open(config.data.index), config.data, 0, BATCH, device="cuda") as loader:
        batches = [next(loader) for _ in range(count)]
        return [(batch.frames.clone(), batch.samples) for batch in batches]


def build(config: Any, way: BlockWay) -> Objective:
    objective = build_objective(config.model, 0, config.data.frames, config.data.size).cuda()
    set_blocks(objective, way)
    return objective


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, ends = (add_norm, column_sums, fold, gelu, join_heads), (feature_loss, patchify, pixel_loss)
    for module in (*blocks, *ends, place_tokens, rotary):
        monkeypatch.setattr(module, "on_triton", lambda device: False)


def curve(config: Any, batches: list[tuple[Tensor, Tensor]], way: BlockWay, half: bool) -> Tensor:
    """Losses of STEPS updates: float32 [STEPS]."""
    objective = build(config, way)
    optimizer = build_adamw(objective, objective.no_weight_decay, config.optim)
    losses = []
    for step in range(STEPS):
        frames, samples = batches[step % len(batches)]
        set_hyperparameters(optimizer, 3e-4, 0.05)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss = objective(frames, samples + BATCH * step, step).loss
        loss.backward()
        optimizer.step()
        objective.after_step(step, STEPS)
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


def test_loss_curves_are_those_of_float32_twins(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = clips(config, 8)
    with monkeypatch.context() as patch:
        without_kernels(patch)
        slow = curve(config, batches, "plain", False)
    for way in WAYS:
        fast = curve(config, batches, way, True)
        assert fast[0] == pytest.approx(float(slow[0]), rel=5e-3)
        # Means over ten steps: single ones differ by the rounding of all before.
        ours, theirs = fast.view(-1, 10).mean(1), slow.view(-1, 10).mean(1)
        torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0)
        assert fast[-20:].mean() < fast[:5].mean()


def test_gradients_are_within_the_rounding_of_bf16(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each tensor, by its norm; plain blocks under autocast may be as far from float32."""
    ((frames, samples),) = clips(config, 1)

    def gradients(way: BlockWay, half: bool) -> dict[str, Tensor]:
        objective = build(config, way)
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss = objective(frames, samples, 3).loss
        loss.backward()
        return {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}

    fast = {way: gradients(way, True) for way in WAYS}
    with monkeypatch.context() as patch:
        without_kernels(patch)
        exact, autocast = gradients("plain", False), gradients("plain", True)
    for way, found in fast.items():
        assert found.keys() == exact.keys()
        for name, wanted in exact.items():
            scale = wanted.norm().clamp(min=1e-8)
            ours = float((found[name] - wanted).norm() / scale)
            plain_error = float((autocast[name] - wanted).norm() / scale)
            assert ours < max(2 * plain_error, 0.02), (way, name, ours, plain_error)
