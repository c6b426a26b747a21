"""Python, the packages, and whether the compiled ones among them do their work here."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Callable
from importlib import metadata

from surgrec.diagnostics.check import Check, one_line

GROUP = "software"
OLDEST_PYTHON = (3, 11)
NEEDED = ("torch", "av", "numba", "numpy", "h5py", "tyro", "tensorboard", "safetensors", "pillow", "pyarrow")
CUDNN_REMEDY = "pip install 'nvidia-cudnn-frontend<1.23'"
OPTIONAL = {
    "nvidia-cudnn-frontend": f"attention is slower on Hopper; {CUDNN_REMEDY}",
    "xformers": "attention falls back to PyTorch's own; pip install xformers",
    "PyNvVideoCodec": "benchmarks compare with it; pip install PyNvVideoCodec",
}
FUSED_PRODUCTS = "quack-kernels"
FUSED_REMEDY = "MLPs are slower without; pip install 'quack-kernels[cu13]>=0.6.5,<0.7'"
FLASH4 = "flash-attn-4"
FLASH4_INSTALLED = "pip install 'flash-attn-4[cu13]==4.0.0b36'"
FLASH4_REMEDY = f"attention of long sequences is slower without; {FLASH4_INSTALLED}"
ATTENTION = {
    "cudnn": CUDNN_REMEDY,
    "flash4": FLASH4_INSTALLED,
    "xformers": "pip install an xformers that was built for this PyTorch and GPU",
    "flash": "install a PyTorch with FlashAttention for this GPU",
}
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


def version_of(name: str) -> str | None:
    """Version of an installed distribution, or None. Imports nothing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_python() -> Check:
    """The interpreter."""
    value = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.platform(terse=True)}"
    )
    wanted = ".".join(map(str, OLDEST_PYTHON))
    old = sys.version_info < OLDEST_PYTHON
    remedy = f"install Python {wanted} or newer" if old else ""
    return Check(GROUP, "Python", "missing" if old else "ok", value, remedy, required=True)


def check_package(name: str) -> Check:
    """An installed package, by its version."""
    version = version_of(name)
    if version is not None:
        return Check(GROUP, name, "ok", version, required=name in NEEDED)
    if name in NEEDED:
        return Check(GROUP, name, "missing", "not installed", f"pip install {name}", required=True)
    return Check(GROUP, name, "warn", "not installed", OPTIONAL[name])


def check_dali() -> Check:
    """DALI: a graph of two clips, cropped and resized on the CPU as the loader does it."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return Check(GROUP, "DALI", "missing", "not installed", f"pip install {DALI[0]}", required=True)
    try:
        version = run_dali()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        name = next((each for each in DALI if version_of(each)), DALI[0])
        remedy = f"reinstall it: pip install --force-reinstall --no-deps {name}"
        return Check(GROUP, "DALI", "missing", one_line(error), remedy, required=True)
    return Check(GROUP, "DALI", "ok", f"{version}, a CPU graph runs", required=True)


def run_dali() -> str:
    """Build and run a tiny CPU graph; DALI's version. Raises RuntimeError where the shape is wrong."""
    import numpy as np
    from nvidia import dali
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(batch_size=2, num_threads=1, device_id=None)
    with pipeline:
        clips = fn.external_source(name="clips", layout="FHWC")
        pipeline.set_outputs(fn.resize(clips, resize_x=16, resize_y=16))
    pipeline.build()
    pipeline.feed_input("clips", [np.zeros((2, 24, 32, 3), np.uint8)] * 2)
    (result,) = pipeline.run()
    shape = result.as_tensor().shape()
    if tuple(shape) != (2, 2, 16, 16, 3):
        raise RuntimeError(f"the graph gave shape {shape}, not (2, 2, 16, 16, 3)")
    return str(dali.__version__)


def check_numba() -> Check:
    """numba: compiles and runs a function."""
    try:
        import numba

        total = numba.njit(lambda n: n * (n + 1) // 2)(10)
    except (ImportError, OSError, RuntimeError) as error:
        return Check(
            GROUP, "numba compiles", "missing", one_line(error), "pip install --upgrade numba", required=True
        )
    if total != 55:
        remedy = "pip install --force-reinstall numba llvmlite"
        return Check(GROUP, "numba compiles", "missing", f"computed {total}, not 55", remedy, required=True)
    return Check(GROUP, "numba compiles", "ok", f"for {numba_target()}", required=True)


def numba_target() -> str:
    """Name of the processor that numba compiles for."""
    from llvmlite import binding

    return str(binding.get_host_cpu_name())


def check_attention(gpu: bool) -> Check:
    """Which libraries compute attention here, forward and backward, tried on a small shape."""
    if not gpu:
        return Check(GROUP, "attention", "ok", "PyTorch's scaled_dot_product_attention (no GPU)")
    outcome = try_attention()
    fastest = next(iter(outcome))
    runs = [name for name, error in outcome.items() if error is None]
    if fastest in runs:
        return Check(GROUP, "attention", "ok", f"runs by {', '.join(runs)}")
    refused = "; ".join(f"{name}: {error}" for name, error in outcome.items() if error is not None)
    value = f"runs by {', '.join(runs) or 'none but PyTorch'} ({refused})"
    return Check(GROUP, "attention", "warn", value, f"{fastest} would be faster: {ATTENTION[fastest]}")


def try_attention() -> dict[str, str | None]:
    """Packed sequences in bf16 by each library that this GPU would take, fastest first: error, or None."""
    import torch

    from surgrec.kernels.attention import attention
    from surgrec.kernels.attention_table import order_for

    outcome: dict[str, str | None] = {}
    for backend in order_for(torch.cuda.get_device_capability()[0], True, 32, 64):
        q = torch.randn(96, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        try:
            attention(q, q, q, [32, 64], backend).sum().backward()  # type: ignore[arg-type]
            torch.cuda.synchronize()
            outcome[backend] = None
        except RuntimeError as error:
            outcome[backend] = one_line(error)
    return outcome


def check_products() -> Check:
    """Matrix products with the GELU in one kernel, tried on a small shape; for a Hopper GPU."""
    return _extra(FUSED_PRODUCTS, FUSED_REMEDY, "MLPs are computed by it", try_products)


def try_products() -> str | None:
    """Both ways through an MLP of 64 columns on the GPU: why they are not fused, or None."""
    import torch

    from surgrec.kernels import mlp_products

    x = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)
    try:
        hidden, _ = mlp_products.linear_gelu(x, x, x[0])
        assert hidden is not None
        mlp_products.linear_gelu_backward(x, x, hidden)
        torch.cuda.synchronize()
    except (RuntimeError, ValueError) as error:
        return one_line(error)
    return next(iter(mlp_products.causes), None)


def check_flash4() -> Check:
    """FlashAttention 4, tried on a small shape; for a Hopper GPU."""
    return _extra(FLASH4, FLASH4_REMEDY, "attention of long sequences is computed by it", try_flash4)


def _extra(package: str, remedy: str, use: str, trial: Callable[[], str | None]) -> Check:
    """A package that is not needed, but makes a GPU faster. trial: why it does not run, or None."""
    version = version_of(package)
    if version is None:
        return Check(GROUP, package, "warn", "not installed", remedy)
    error = trial()
    if error is not None:
        return Check(GROUP, package, "warn", f"{version} ({error})", remedy)
    return Check(GROUP, package, "ok", f"{version}, {use}")


def try_flash4() -> str | None:
    """Both ways through attention of two heads on the GPU: why it does not run, or None."""
    import torch

    from surgrec.kernels.attention import attention

    q = torch.randn(1, 256, 2, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    try:
        attention(q, q, q, backend="flash4").sum().backward()
        torch.cuda.synchronize()
    except RuntimeError as error:
        return one_line(error)
    return None


def check_threads() -> Check:
    """Threads that PyTorch computes with on the CPU."""
    import torch

    return Check(GROUP, "torch threads", "ok", f"{torch.get_num_threads()} of {torch.__version__}")
