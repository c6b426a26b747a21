"""Dense peak rates of GPUs, for model FLOP utilisation."""

from __future__ import annotations

import torch

# bf16 tensor cores, dense (not the doubled sparse figure), in TFLOP/s; from the vendor's data sheets. The
# longest name that the device's name contains counts.
BF16_TFLOPS: dict[str, float] = {
    "B200": 2250.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H100": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX A6000": 154.8,
    "RTX 6000 Ada": 364.2,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Largest FLOP/s in bf16 of a device of this name; None where unknown or in another arithmetic."""
    if dtype != torch.bfloat16:
        return None
    names = [name for name in BF16_TFLOPS if _contains(device_name, name)]
    return BF16_TFLOPS[max(names, key=len)] * 1e12 if names else None


def _contains(device_name: str, name: str) -> bool:
    # Whole words: "H20" is not in "H200", "A10" not in "A100".
    words, wanted = device_name.replace("-", " ").split(), name.split()
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words)))
