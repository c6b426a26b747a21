"""When a step is replayed from a CUDA graph, and that it goes on as ever around what replays it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from surgrec.configs.presets import PRESETS

from surgrec.models.build import build_objective
from surgrec.models.objective import Objective
from surgrec.training.distributed import ALONE
from surgrec.training.estimate import describe, estimate
from surgrec.training.graphed import GraphedPasses, graph_stream, graphed_passes, reason_against
from surgrec.training.passes import forward_backward
from surgrec.training.resolve import BatchShape
from surgrec.training.session import pretrain
from surgrec.training.step import train_step


def build(config) -> Objective:
    return build_objective(config.model, 0, config.data.frames, config.data.size)


@pytest.mark.parametrize(
    ("graph", "device_type", "ranks", "parallel", "reason"),
    [
        ("auto", "cuda", 1, "ddp", None),
        ("auto", "cuda", 1, "fsdp", None),
        ("auto", "cuda", 2, "ddp", None),
        ("off", "cuda", 1, "ddp", "switched off"),
        ("auto", "cpu", 1, "ddp", "no GPU"),
        ("auto", "cuda", 2, "fsdp", "divided among ranks"),
    ],
)
def test_a_graph_is_used_where_it_can_be(dry_mae, graph, device_type, ranks, parallel, reason):
    objective = build(dry_mae)
    found = reason_against(graph, objective, device_type, ranks, parallel)
    assert found is None if reason is None else reason in found


def test_without_a_stream_there_is_no_graph(dry_mae):
    assert graph_stream(dry_mae, build(dry_mae), ALONE) is None
    assert graphed_passes(dry_mae, build(dry_mae), None, BatchShape(4, 2, 2), torch.bfloat16) is None


def test_jepas_lengths_differ_from_step_to_step(dry_jepa):
    assert "differ" in str(reason_against("auto", build(dry_jepa), "cuda", 1, "ddp"))


class Rerun:
    """What GraphedPasses promises, without a graph: gradients that stay, overwritten once in a step."""

    def __init__(self, parts, count: int) -> None:
        self.parts, self.count = parts, count
        self.trained = [p for p in parts.objective.parameters() if p.requires_grad]
        self.gradients = [torch.full_like(p, float("nan")) for p in self.trained]
        self.captured = 0

    def capture(self) -> None:
        assert self.parts.batches.next_sample == 4 * self.captured  # before a batch is asked for
        self.captured += 1

    def __call__(self, frames, samples, micro):
        for parameter in self.trained:
            parameter.grad = None
        model = self.parts.objective
        loss = forward_backward(model, frames, samples, 0, False, torch.float32, self.count).loss
        for parameter, kept in zip(self.trained, self.gradients, strict=True):
            kept.copy_(parameter.grad if micro == 0 else kept + parameter.grad)
            parameter.grad = kept
        return loss


@pytest.mark.parametrize("micro", [4, 2, 1])
def test_a_step_around_replayed_passes_is_the_same_step(dry_mae, synthetic_parts, micro):
    config = replace(dry_mae, micro_batch=micro)
    plain, replayed = synthetic_parts(config), synthetic_parts(config)
    replayed.graph = Rerun(replayed, replayed.shape.accumulation)
    for step in (1, 2, 3):
        a, b = train_step(plain, step), train_step(replayed, step)
        torch.testing.assert_close(a.loss, b.loss)
        torch.testing.assert_close(a.gradient_norm, b.gradient_norm)
        # They were clipped and used where they lie.
        for parameter, kept in zip(replayed.graph.trained, replayed.graph.gradients, strict=True):
            assert parameter.grad is kept
    assert replayed.graph.captured == 3
    assert replayed.batches.next_sample == plain.batches.next_sample == 12
    for a, b in zip(plain.objective.parameters(), replayed.objective.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_batches_of_another_shape_are_refused(dry_mae):
    passes = GraphedPasses(build(dry_mae), (2, 4, 32, 32, 3), None, torch.float32, 1)
    for frames, samples in ((1, 1), (2, 1), (3, 3)):
        clips = torch.zeros(frames, 4, 32, 32, 3, dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"captured for frames \(2, 4, 32, 32, 3\)"):
            passes(clips, torch.arange(samples), 0)


def test_forward_and_backward_of_a_share(dry_mae, synthetic_parts):
    parts = synthetic_parts(dry_mae)
    batch = next(parts.batches)
    outputs = [
        forward_backward(parts.objective, batch.frames, batch.samples, 0, False, precision, count)
        for precision, count in ((torch.float32, 1), (torch.float32, 4), (torch.bfloat16, 1))
    ]
    losses = [output.loss for output in outputs]
    assert not any(loss.requires_grad for loss in losses)
    torch.testing.assert_close(losses[1] * 4, losses[0])
    torch.testing.assert_close(losses[2], losses[0], rtol=2e-2, atol=0)
    assert losses[2] != losses[0]


def test_a_run_says_whether_there_is_a_graph(mae, capsys):
    assert pretrain(replace(mae, steps=1)) == 0
    assert "CUDA graph: none, the device is no GPU" in capsys.readouterr().out
    assert json.loads((mae.out / "run.json").read_text())["starts"][0]["cuda_graph"] is False
    assert pretrain(replace(mae, steps=1, graph="off")) == 0  # another graph, the same run
    assert "nothing to do" in capsys.readouterr().out


def test_the_estimate_counts_what_auto_is_on_the_device():
    for name in ("mae-vitb", "jepa-vitl"):
        config = PRESETS[name][1]
        auto, fused, plain = (
            estimate(replace(config, blocks=way), 8, torch.bfloat16, device_type="cuda").memory.activations
            for way in ("auto", "fused", "plain")
        )
        assert auto == fused < plain
        assert estimate(config, 8, torch.bfloat16).memory.activations == plain


def test_the_estimate_counts_gradients_where_they_lie():
    """With a graph: in the memory of activations on one GPU; of several in DDP's buckets, or in both."""
    config = replace(PRESETS["mae-vitl"][1], batch=512)
    found = {
        (ranks, micro): estimate(config, micro, torch.bfloat16, ranks, "cuda").memory.gradients
        for ranks, micro in ((1, 512), (1, 8), (8, 64), (8, 8))
    }
    whole = 4.0 * estimate(config, 8, torch.bfloat16).parameters
    assert found == {(1, 512): 0.0, (1, 8): whole, (8, 64): whole, (8, 8): 2 * whole}


def test_the_estimate_counts_a_graphs_frames():
    config = PRESETS["mae-vitb"][1]
    costs = estimate(config, 8, torch.bfloat16, device_type="cuda")
    assert costs.memory.frames == 8 * 16 * 224 * 224 * 3
    assert "frames of the CUDA graph" in describe(config, costs, 8)
    without = estimate(replace(config, graph="off"), 8, torch.bfloat16, device_type="cuda")
    assert costs.memory.total - without.memory.total == costs.memory.frames
    for other in (
        estimate(config, 8, torch.bfloat16),
        estimate(replace(config, parallel="fsdp"), 8, torch.bfloat16, ranks=2, device_type="cuda"),
        estimate(PRESETS["jepa-vitl"][1], 8, torch.bfloat16, device_type="cuda"),
    ):
        assert other.memory.frames == 0
    assert "frames of" not in describe(config, without, 8)
