"""The results of the paper, to stand beside one's own."""

from __future__ import annotations

from typing import Final

SOURCE: Final = "arXiv 2603.29966, Table 2"
CAUTION: Final = (
    "Top-1 accuracy in % on the published splits, without intervals. Of these splits ten have val = test, and"
    " several share patients or operations between train and test: figures on another split cannot be"
    " compared with them."
)
MODELS: Final = (
    "DINOv3",
    "DINOv3-SurgeNetXL",
    "VideoMAE",
    "MAE without balance",
    "V-JEPA",
    "SurgRec-MAE",
    "SurgRec-JEPA",
)
TOP1: Final[dict[str, tuple[float, ...]]] = {
    "AIxSuture": (32.61, 39.13, 39.13, 39.13, 39.13, 43.48, 39.13),
    "AutoLaparo": (17.74, 19.35, 19.35, 17.74, 20.97, 22.58, 17.74),
    "cat-21": (15.69, 15.69, 15.69, 15.69, 15.69, 15.69, 15.69),
    "cataract-101": (17.97, 19.53, 19.53, 21.09, 24.22, 35.16, 23.44),
    "cataract-1k": (9.90, 14.85, 11.88, 16.83, 19.80, 18.81, 17.82),
    "Cholec80": (22.34, 16.12, 14.65, 24.18, 26.01, 29.30, 31.14),
    "Colonoscopic": (53.33, 53.33, 53.33, 53.33, 53.33, 73.33, 53.33),
    "Hyper-Kvasir": (43.03, 41.81, 25.11, 36.91, 41.65, 55.28, 42.27),
    "JIGSAWS": (18.12, 17.11, 15.67, 21.23, 29.72, 47.49, 32.24),
    "Kvasir-Capsule": (46.34, 47.56, 19.51, 46.34, 48.78, 73.17, 60.98),
    "LapGyn4": (62.68, 65.63, 62.68, 67.07, 60.66, 68.13, 64.13),
    "LDPolypVideo": (90.35, 90.35, 90.35, 90.35, 90.35, 90.76, 90.42),
    "M2CAI16": (23.01, 25.66, 12.39, 30.09, 26.55, 38.05, 38.05),
    "MultiBypass140": (38.62, 42.63, 20.54, 51.56, 12.88, 56.92, 56.47),
    "SurgicalActions160": (6.25, 6.25, 6.25, 18.75, 12.50, 18.75, 6.25),
    "SAR-RARP50": (23.01, 26.88, 25.97, 24.37, 22.10, 37.59, 36.67),
}
"""Top-1 accuracy in %, by data set, in the order of MODELS."""
MEAN: Final = (32.56, 33.87, 28.25, 35.92, 34.02, 45.28, 39.11)
"""The paper's mean over the sixteen, in the order of MODELS."""


def published_name(dataset: str) -> str | None:
    """The paper's name of a data set, whatever its case and punctuation; None where the paper lacks it."""
    wanted = _letters(dataset)
    return next((name for name in TOP1 if _letters(name) == wanted), None)


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
