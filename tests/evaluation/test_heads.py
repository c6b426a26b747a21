"""A grid of heads in one pass: each gets the weights that it gets alone, and is what it claims to be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from surgrec.evaluation.head_training import Candidate, one_head, probabilities, rate_at, train_heads
from surgrec.evaluation.heads import EPS, AttentiveHeads, Heads, LinearHeads, Weights

CPU = torch.device("cpu")
STEPS = 30


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def data(tokens: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (24, 10, 64) if tokens else (24, 64)
    return torch.randn(shape, generator=generator), torch.randint(0, 3, (24,), generator=generator)


def batches(tokens: bool, steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = data(tokens)
    for step in range(steps):
        at = torch.arange(step, step + 16) % len(x)
        yield x[at], y[at]


def grid(rates: tuple[float, ...]) -> list[Candidate]:
    """20 heads."""
    return [Candidate(lr, decay, seed) for lr in rates for decay in (0.0, 0.1) for seed in (0, 1)]


@pytest.mark.parametrize(
    ("heads", "rates"),
    [
        (LinearHeads(64, 3), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
        (AttentiveHeads(64, 3, 1), (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)),
        (AttentiveHeads(64, 3, 3), (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)),
    ],
    ids=["linear", "attentive-1", "attentive-3"],
)
def test_each_head_has_the_weights_of_one_trained_alone(heads: Heads, rates: tuple[float, ...]) -> None:
    tokens = isinstance(heads, AttentiveHeads)
    candidates = grid(rates)
    assert len(candidates) == 20
    together = train_heads(heads, candidates, batches(tokens), STEPS, CPU)
    for head, candidate in enumerate(candidates):
        alone = train_heads(heads, [candidate], batches(tokens), STEPS, CPU)
        for name, value in alone.items():
            torch.testing.assert_close(together[name][head], value[0], rtol=0, atol=1e-5)
    # They learned, and are not the same.
    assert len({float(value.abs().sum()) for value in together["classify.weight"]}) == 20


def test_a_linear_head_is_what_torch_trains() -> None:
    heads, candidate = LinearHeads(64, 3), Candidate(1e-3, 0.1, 0)
    ours = train_heads(heads, [candidate], batches(False), STEPS, CPU)
    layer = nn.Linear(64, 3)
    first = heads.first([0])
    with torch.no_grad():
        layer.weight.copy_(first["classify.weight"][0].T)
        layer.bias.copy_(first["classify.bias"][0])
    groups = [{"params": [layer.weight], "weight_decay": 0.1}, {"params": [layer.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for step, (x, y) in enumerate(batches(False)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate_at(step, STEPS)
        optimizer.zero_grad()
        functional.cross_entropy(layer(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(ours["classify.weight"][0].T, layer.weight.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours["classify.bias"][0], layer.bias.detach(), rtol=0, atol=1e-5)


def written_out(heads: AttentiveHeads, weights: Weights, x: Tensor) -> Tensor:
    """[B, C] of one head, with keys and values of every token, by torch's own modules' functions."""
    w = {name: value[0] for name, value in weights.items()}

    def norm(prefix: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], w[f"{prefix}.scale"], w[f"{prefix}.bias"], EPS)

    def finish(prefix: str, x: Tensor) -> Tensor:
        inner = functional.gelu(norm(f"{prefix}norm2", x) @ w[f"{prefix}up.weight"] + w[f"{prefix}up.bias"])
        return x + inner @ w[f"{prefix}down.weight"] + w[f"{prefix}down.bias"]

    def attend(q: Tensor, k: Tensor, v: Tensor, prefix: str) -> Tensor:
        q, k, v = (part.unflatten(-1, (heads.heads, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return mixed @ w[f"{prefix}proj.weight"] + w[f"{prefix}proj.bias"]

    for block in range(heads.blocks - 1):
        q, k, v = (norm(f"{block}.norm", x) @ w[f"{block}.qkv.weight"]).chunk(3, -1)
        x = x + attend(q + w[f"{block}.q.bias"], k, v + w[f"{block}.v.bias"], f"{block}.")
        x = finish(f"{block}.", x)
    seen = norm("norm", x)
    query = w["query"].expand(len(x), 1, -1)
    q = query @ w["q.weight"] + w["q.bias"]
    found = query + attend(q, seen @ w["k.weight"], seen @ w["v.weight"] + w["v.bias"], "")
    return (finish("", found) @ w["classify.weight"] + w["classify.bias"])[:, 0]


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_attention_without_keys_and_values_is_attention(blocks: int) -> None:
    heads = AttentiveHeads(128, 5, blocks)
    assert heads.heads == 2
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in heads.first([0, 1, 2]).items()
    }
    x = torch.randn(4, 9, 128, generator=generator)
    found = heads.logits(weights, x)
    for head in range(3):
        expected = written_out(heads, one_head(weights, head), x)
        assert expected.std() > 0.1
        torch.testing.assert_close(found[head], expected, rtol=1e-3, atol=1e-4)


def test_a_head_that_diverges_disturbs_no_other() -> None:
    heads = AttentiveHeads(64, 3)
    sound = Candidate(1e-3, 0.0, 0)
    alone = train_heads(heads, [sound], batches(True), STEPS, CPU)
    both = train_heads(heads, [Candidate(1e30, 0.0, 1), sound], batches(True), STEPS, CPU)
    shares = probabilities(heads, both, data(True)[0])
    assert not torch.isfinite(shares[0]).all()
    for name, value in alone.items():
        torch.testing.assert_close(both[name][1], value[0], rtol=0, atol=1e-5)


def test_first_weights_depend_on_their_seed_alone() -> None:
    heads = AttentiveHeads(64, 3)
    torch.manual_seed(11)
    one = heads.first([5, 6])
    torch.manual_seed(12)
    two = heads.first([7, 5])
    for name, value in one.items():
        assert torch.equal(value[0], two[name][1])
    assert not torch.equal(one["q.weight"][0], one["q.weight"][1])


def test_blocks_that_make_no_sense() -> None:
    for blocks in (0, 5):
        with pytest.raises(ValueError, match=f"blocks is {blocks}; an attentive probe has 1 to 4"):
            AttentiveHeads(64, 3, blocks)


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    rates = [rate_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] < 1e-3
    assert rate_at(0, 1) == 1.0
