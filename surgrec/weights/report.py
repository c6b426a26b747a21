"""What becomes of each tensor of a file, for the person at the terminal."""

from __future__ import annotations

from surgrec.configs.convert import ConvertConfig
from surgrec.weights.errors import WeightsError
from surgrec.weights.load import open_model
from surgrec.weights.names import KINDS
from surgrec.weights.video_model import rate_of


def report(config: ConvertConfig) -> str:
    """The coverage table of a file of any layout, and the clips that its model wants. Raises WeightsError."""
    for option in ("out", "part", "results", "license"):
        if getattr(config, option) is not None:
            behind = "; it stands behind the path's #" if option == "part" else ""
            raise WeightsError(f"--{option} is for --to{behind}; leave it out")
    named = config.model.partition(":")[0] in KINDS
    opened = open_model(config.model if named else f"file:{config.model}")
    assert opened is not None
    assert opened.coverage is not None
    clip = opened.clip
    rate = ", ".join(f"{name} {value:g}" for name, value in rate_of(clip).items()) or "spread evenly"
    return "\n".join(
        [
            opened.coverage.table(),
            f"clips of {clip.frames} frames ({rate}) of {clip.size} x {clip.size} pixels; tokens of"
            f" {clip.tubelet} x {clip.patch} x {clip.patch}, width {clip.width}",
            f"identity {opened.identity}",
        ]
    )
