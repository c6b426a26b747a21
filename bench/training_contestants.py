"""What train_throughput.py measures: this project's training step, and those of others, on the same clips.

A contestant is opened with a Setup and returns a function that takes one optimizer step on the next batch and
returns the seconds that it waited for the batch. All use bf16 autocast on a GPU, and AdamW.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch
    from surgrec.configs.pretrain import BlockWay, JepaPretrain, MaePretrain
    from surgrec.loaders.clip_plan import ClipRequest
    from torch import Tensor

    from surgrec.training.step import Batch

Step = Callable[[], float]


@dataclass(frozen=True)
class Setup:
    """config: of the run, its batch in one piece. batches: endless, as a ClipLoader gives them."""

    config: MaePretrain | JepaPretrain
    batches: Any
    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


class Repeated:
    """Batches `frames` on the device, one after the other, again and again, under new sample numbers."""

    def __init__(self, frames: list[Tensor]) -> None:
        self._frames = frames
        self.next_sample = 0

    def __next__(self) -> Batch:
        import torch
        from surgrec.loaders.clip_loader import Batch

        first = self.next_sample
        frames = self._frames[first // len(self._frames[0]) % len(self._frames)]
        self.next_sample += len(frames)
        samples = torch.arange(first, first + len(frames))
        requests: list[ClipRequest] = []
        return Batch(frames, samples, requests, 0, 0, 0.0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def state_dict(self) -> dict[str, Any]:
        return {"next_sample": self.next_sample}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next_sample = state["next_sample"]


def surgrec(setup: Setup, blocks: BlockWay) -> Step:
    """This project's step, as `python -m surgrec.pretrain` takes it."""
    import torch

    from surgrec.models.block_ways import set_blocks
    from surgrec.models.build import build_objective
    from surgrec.training.distributed import World
    from surgrec.training.graphed import graph_stream, graphed_passes
    from surgrec.training.optim import build_adamw
    from surgrec.training.resolve import batch_shape
    from surgrec.training.step import Parts, train_step

    config, device = setup.config, setup.device
    objective = build_objective(config.model, config.seed, config.data.frames, config.data.size).to(device)
    set_blocks(objective, blocks)
    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    optimizer = build_adamw(objective, objective.no_weight_decay, config.optim)
    world = World(0, 0, 1, device)
    shape = batch_shape(config, 1)
    graph = graphed_passes(config, objective, graph_stream(config, objective, world), shape, precision)
    parts = Parts(config, world, objective, objective, optimizer, setup.batches, shape, precision, graph)
    taken = 0

    def step() -> float:
        nonlocal taken
        taken += 1
        return train_step(parts, taken).wait_seconds

    return step


def transformers(setup: Setup, compiled: bool) -> Step:
    """transformers' VideoMAEForPreTraining on the float video, which computes its target itself."""
    import torch
    from surgrec.configs.model import VIT_SHAPES, MaeConfig
    from surgrec.kernels.masking import tube_mask
    from surgrec.kernels.patchify import token_grid
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    model_config, data = setup.config.model, setup.config.data
    assert isinstance(model_config, MaeConfig)
    shape = VIT_SHAPES[model_config.size]
    kind: Any = VideoMAEForPreTraining
    model = kind(
        VideoMAEConfig(
            image_size=data.size,
            patch_size=model_config.patch,
            tubelet_size=model_config.tubelet,
            num_frames=data.frames,
            hidden_size=shape.width,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.width,
            decoder_hidden_size=model_config.decoder_width,
            decoder_num_hidden_layers=model_config.decoder_depth,
            decoder_num_attention_heads=model_config.decoder_heads,
            decoder_intermediate_size=4 * model_config.decoder_width,
            norm_pix_loss=model_config.normalise_target,
        )
    ).to(setup.device)
    run = torch.compile(model) if compiled else model
    grid = token_grid((data.frames, data.size, data.size, 3), model_config.tubelet, model_config.patch)
    tokens = grid[0] * grid[1] * grid[2]

    def loss_of(frames: Tensor, samples: Tensor) -> Tensor:
        mask = tube_mask(0, samples.to(frames.device), grid, model_config.mask_ratio)
        hidden = torch.zeros(len(frames), tokens, dtype=torch.bool, device=frames.device)
        hidden.scatter_(1, mask.masked, True)
        mean, std = (torch.tensor(v, device=frames.device) for v in (model_config.mean, model_config.std))
        video = ((frames.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)
        loss: Tensor = run(pixel_values=video, bool_masked_pos=hidden).loss
        return loss

    return plain_step(setup, model, loss_of)


def videomae(setup: Setup, compiled: bool) -> Step:
    """VideoMAE's own step, restated (bench/restated.py), eager."""
    import restated
    from surgrec.configs.model import MaeConfig

    assert isinstance(setup.config.model, MaeConfig)
    model = restated.VideoMae(setup.config.model, setup.config.data.frames, setup.config.data.size)
    return plain_step(setup, model.to(setup.device), lambda frames, _: model(frames))


def vjepa2(setup: Setup, compiled: bool) -> Step:
    """V-JEPA 2's own step, restated (bench/restated.py), eager."""
    import restated
    from surgrec.configs.model import JepaConfig
    from surgrec.kernels.masking import multi_block_mask
    from surgrec.kernels.patchify import token_grid

    config, data = setup.config.model, setup.config.data
    assert isinstance(config, JepaConfig)
    model = restated.VJepa2(config, data.frames, data.size).to(setup.device)
    grid = token_grid((data.frames, data.size, data.size, 3), config.tubelet, config.patch)

    def loss_of(frames: Tensor, samples: Tensor) -> Tensor:
        drawn = multi_block_mask(0, samples, int(samples[0]), grid, config.groups, equal_lengths=True)
        masks = [
            tuple(part.view(len(frames), -1).to(frames.device) for part in (mask.context, mask.target))
            for mask in drawn
        ]
        loss: Tensor = model(frames, masks)
        return loss

    return plain_step(setup, model, loss_of, lambda: model.move_teacher(0.99925))


def plain_step(
    setup: Setup,
    model: torch.nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    after: Callable[[], object] = lambda: None,
) -> Step:
    """Forward, backward, AdamW as others take it."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = setup.device.type == "cuda"
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=setup.config.optim.betas, fused=fused)

    def step() -> float:
        began = time.perf_counter()
        batch = next(setup.batches)
        waited = time.perf_counter() - began
        optimizer.zero_grad(set_to_none=True)
        with setup.autocast():
            loss = loss_of(batch.frames, batch.samples)
        loss.backward()
        optimizer.step()
        after()
        return waited

    return step


@dataclass(frozen=True)
class Contestant:
    """open: from a setup, and whether to compile, to a step. objective: mae or jepa."""

    open: Callable[[Setup, bool], Step]
    compiled: bool
    objective: str
    about: str


PEERS: Final[dict[str, Contestant]] = {
    "transformers": Contestant(transformers, False, "mae", "VideoMAEForPreTraining, eager"),
    "transformers-compiled": Contestant(transformers, True, "mae", "the same, torch.compile"),
    "videomae": Contestant(videomae, False, "mae", "VideoMAE's own step, restated"),
    "vjepa2": Contestant(vjepa2, False, "jepa", "V-JEPA 2's own step, restated"),
}


def with_batch(config: MaePretrain | JepaPretrain, batch: int) -> MaePretrain | JepaPretrain:
    """The configuration with a global batch that passes through in one piece."""
    return replace(config, batch=batch, micro_batch=batch)
