"""SurgRec: video pretraining for surgery, from folders of operation videos to video transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgrec.weights.load import VideoModel, load_model

__all__ = ["VideoModel", "__version__", "load_model"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Only where it is asked for: commands answer --help without PyTorch.
    if name in ("load_model", "VideoModel"):
        from surgrec.weights import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
