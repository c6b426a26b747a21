"""bench/projection.py: the model on numbers that can be reckoned by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def projection(bench_module: Callable[[str], ModuleType]) -> ModuleType:
    return bench_module("projection")


@pytest.fixture
def found(projection: ModuleType) -> Any:
    """Eight ranks: 1.2 GB of gradients at 210 GB/s of bus take 10 ms, of which 4 ms show beside 100 ms."""
    return projection.Measured(
        "mae-vitl",
        "ddp",
        ranks=8,
        batch=64,
        step=0.104,
        alone=0.1,
        bus=210e9,
        one=640.0,
        spread=0.0,
        gradient_bytes=1_200_000_000,
        weight_bytes=1_200_000_000,
        units=29,
        feeding=projection.Feeding(loader=900.0, read=1e6, share=0.95, one=630.0),
    )


@pytest.fixture
def ideal(projection: ModuleType) -> Any:
    """No latency; a network and storage that limit nothing."""
    return projection.Args(Path("x.json"), nic_gb_s=1e3, hop_us=0, inner_hop_us=0, storage_gb_s=1e6)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("step", [0.104, 0.15])
def test_the_measured_number_gives_the_measured_step(
    projection: ModuleType, found: Any, ideal: Any, parallel: str, step: float
) -> None:
    seen = projection.project(replace(found, parallel=parallel, step=step, spread=0.02), 8, ideal)
    assert seen.step == pytest.approx(step)
    assert seen.fed == pytest.approx(0.95 * 8 * 64 / step)
    assert seen.limit == "GPU"


def test_the_network_sets_the_time_of_communication(projection: ModuleType, found: Any, ideal: Any) -> None:
    assert projection.communication(found, 8, ideal) == pytest.approx(0.010)
    slow = replace(ideal, nic_gb_s=10)  # 80 GB/s of a machine
    among = 2 * 63 / 64 * 1.2e9 / 80e9
    assert projection.communication(found, 64, slow) == pytest.approx(among)
    assert projection.project(found, 64, slow).step == pytest.approx(0.1 + 0.4 * among)
    # What takes longer than the backward pass cannot hide behind it.
    crawling = replace(ideal, nic_gb_s=1)
    among = 2 * 63 / 64 * 1.2e9 / 8e9
    assert projection.project(found, 64, crawling).step == pytest.approx(0.1 + among - 0.2 / 3)


def test_hops_cost_their_latency(projection: ModuleType, found: Any, ideal: Any) -> None:
    late = replace(ideal, hop_us=10, inner_hop_us=2)
    buckets = math.ceil(1.2e9 / (25 * 2**20))
    hops = {"ddp": buckets * 2 * (3 * 10 + 7 * 2), "fsdp": 2 * 29 * (7 * 10 + 56 * 2)}
    for parallel, microseconds in hops.items():
        way = replace(found, parallel=parallel)
        more = projection.communication(way, 64, late) - projection.communication(way, 64, ideal)
        assert more == pytest.approx(microseconds / 1e6)


def test_fsdp_sends_weights_and_gradients_once(projection: ModuleType, found: Any, ideal: Any) -> None:
    way = replace(found, parallel="fsdp", weight_bytes=2_400_000_000)
    assert projection.communication(way, 8, ideal) == pytest.approx(7 / 8 * 3.6e9 / 210e9)


def test_stragglers_storage_and_loaders_limit(projection: ModuleType, found: Any, ideal: Any) -> None:
    unlike = projection.project(replace(found, spread=0.01), 512, ideal)
    expected = 0.001 * (math.sqrt(2 * math.log(512)) - math.sqrt(2 * math.log(8)))
    assert unlike.stragglers == pytest.approx(expected)
    poor = projection.project(found, 512, replace(ideal, storage_gb_s=40))
    assert (poor.fed, poor.limit) == (pytest.approx(40_000), "storage")
    feeding = replace(found.feeding, loader=500.0)
    slow = projection.project(replace(found, feeding=feeding), 512, ideal)
    assert (slow.fed, slow.limit) == (pytest.approx(512 * 500), "loader")


def test_what_cannot_be_projected_is_said(
    projection: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scaling.json"
    speed = {
        "name": "demo",
        "corpus": "2",
        "metric": "clips_per_s",
        "input": "synthetic",
        "parallel": "ddp",
        "batch": 2,
        "value": 10.0,
    }
    for content, reason in (
        ({"rows": [speed]}, "demo on 2 GPUs has no row bus_gb_s"),
        ({"rows": []}, "no speed of several GPUs"),
        ({}, "rows"),
    ):
        path.write_text(json.dumps(content))
        assert projection.main(projection.Args(path)) == 2
        assert reason in capsys.readouterr().err
    assert projection.main(projection.Args(tmp_path / "none.json")) == 2
