"""bench/profile_step.py: a step on the CPU, and what the report makes of a GPU's kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def bench(bench_module: Callable[[str], ModuleType]) -> ModuleType:
    return bench_module("profile_step")


def test_a_step_on_the_cpu(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(bench.Args(case="demo", batch=2, steps=1, out=tmp_path)) == 0
    said = capsys.readouterr().out
    assert "matrix products" in said
    assert "nothing to do" in said
    assert [path.name for path in tmp_path.iterdir()] == ["demo-auto-2-trace.json.gz"]
    assert bench.main(bench.Args(case="demo", peer="nobody", out=tmp_path)) == 2


def test_report_of_a_gpu(bench: ModuleType) -> None:
    kernels = {
        "sm90_xmma_gemm_bf16bf16_bf16f32": 0.040,
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop": 0.020,
        "triton_per_fused_native_layer_norm_0": 0.010,
        "_error_kernel": 0.005,
        "void at::native::multi_tensor_apply_kernel<FusedAdam>": 0.003,
        "Memcpy HtoD (Pinned -> Device)": 0.001,
        "void at::native::reduce_kernel": 0.001,
    }
    lines = bench.report(bench.Profile(0.1, kernels, 4e13, 1e15), 2)
    text = "\n".join(lines)
    for kind, share in (
        ("matrix products", 40.0),
        ("attention", 20.0),
        ("compiled elementwise", 10.0),
        ("surgrec's kernels", 5.0),
        ("optimizer", 3.0),
        ("copies", 1.0),
        ("other", 1.0),
        ("nothing to do", 20.0),
    ):
        assert f"{share:.1f}%  {kind}" in text
    assert "40.0% of the peak, 66.7% of it within matrix products and attention" in text
    assert "cudnn_generated" in lines[-1]
