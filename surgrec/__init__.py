"""SurgRec: video pretraining for surgery, from folders of operation videos to video transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgrec.weights.load import load_model
    from surgrec.weights.video_model import VideoModel

__all__ = ["VideoModel", "__version__", "load_model"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Only where it is asked for: commands answer --help without PyTorch.
    if name == "load_model":
        from surgrec.weights.load import load_model

        return load_model
    if name == "VideoModel":
        from surgrec.weights.video_model import VideoModel

        return VideoModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
