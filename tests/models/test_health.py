"""The monitors say what they are named for."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgrec.models.health import collapsed, effective_rank, feature_health, relative_distance

GENERATOR = torch.Generator().manual_seed(0)


def test_effective_rank_of_known_spectra() -> None:
    basis = torch.linalg.qr(torch.randn(40, 40, generator=GENERATOR)).Q
    for rank in (1, 5, 40):
        values = torch.zeros(40)
        values[:rank] = 3.0
        assert effective_rank(basis @ torch.diag(values) @ basis.T).item() == pytest.approx(rank, rel=0.01)
    two = torch.diag(torch.tensor([0.75, 0.25]))
    entropy = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log())
    assert effective_rank(two).item() == pytest.approx(entropy.exp().item(), rel=1e-4)


def test_zero_features_are_no_accident() -> None:
    health = feature_health(torch.zeros(2, 4, 8))
    assert all(torch.isfinite(value) for value in health.values())
    assert health["feature_std"] == 0


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 6), st.integers(1, 5))
def test_clip_cosine_is_the_mean_over_pairs(clips: int, tokens: int) -> None:
    features = torch.randn(clips, tokens, 16, generator=torch.Generator().manual_seed(clips))
    means = features.mean(1)
    pairs = itertools.permutations(range(clips), 2)
    cosines = [torch.cosine_similarity(means[i], means[j], dim=0) for i, j in pairs]
    assert feature_health(features)["clip_cosine"].item() == pytest.approx(
        torch.stack(cosines).mean().item(), abs=1e-5
    )


def test_collapse_shows() -> None:
    healthy = feature_health(torch.randn(8, 64, 32, generator=GENERATOR))
    one = torch.randn(32, generator=GENERATOR)
    collapsed = feature_health(one + 1e-4 * torch.randn(8, 64, 32, generator=GENERATOR))
    assert healthy["feature_std"] > 0.9
    assert healthy["rankme"] > 25
    assert abs(healthy["clip_cosine"]) < 0.1
    assert collapsed["feature_std"] < 1e-3
    assert collapsed["rankme"] < 2
    assert collapsed["clip_cosine"] > 0.99


def test_a_single_clip_has_no_cosine() -> None:
    assert "clip_cosine" not in feature_health(torch.randn(1, 4, 8, generator=GENERATOR))


def test_relative_distance() -> None:
    teacher = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    student = [torch.tensor([3.0, 1.0]), torch.tensor([[4.0]])]
    assert relative_distance(student, teacher).item() == pytest.approx(1 / 5)


def test_collapse_is_one_vector_for_all_or_few_directions() -> None:
    def of(features: torch.Tensor) -> bool:
        normalised = torch.nn.functional.layer_norm(features, features.shape[-1:])
        return collapsed({name: float(value) for name, value in feature_health(normalised).items()})

    spread = torch.randn(4, 32, 64, generator=GENERATOR)
    one, few = torch.randn(64, generator=GENERATOR), torch.randn(3, 64, generator=GENERATOR)
    assert not of(spread)
    assert not of(one + spread)  # shared, and yet each token is itself
    assert of(one + 0.05 * spread)
    assert of(torch.randn(4, 32, 3, generator=GENERATOR) @ few)
