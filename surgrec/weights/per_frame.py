"""What all layouts of image models share: options, the form of a clip, and weights into a network of timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args

from torch import Tensor, nn

from surgrec.models.frame_encoder import FrameEncoder, FramePooling
from surgrec.models.network_form import NetworkForm, build_network
from surgrec.weights.coverage import Coverage, Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.layout import ClipForm, Imported, ReadOptions
from surgrec.weights.names import NUMBERS
from surgrec.weights.video_parts import drop_training_state

Colours = tuple[float, float, float]

UNSEEN: Final = "of pretraining: stands for hidden patches, and no patch is hidden here"
FRAMES: Final = 8
"""Of a clip, spread evenly over it, where nobody says how many: an image model takes any number."""


def depth_of(taker: Taker, prefix: str) -> int:
    """Layers whose keys begin with `prefix` and a number. How many they are, not how they are numbered."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({found.group(1) for key in taker.keys(prefix) if (found := pattern.match(key))})


def network_at(content: Content, mark: str) -> str:
    """What stands before the names of the one network that has a tensor `mark`; of a teacher and a student,
    the teacher's. Raises WeightsError where it is not clear which."""
    ends = (f"/{mark}", f".{mark}")
    found = [key.removesuffix(mark) for key in content.tensors if key == mark or key.endswith(ends)]
    chosen = [prefix for prefix in found if prefix.startswith("teacher/")] or found
    if len(chosen) == 1:
        return chosen[0]
    raise WeightsError(
        f"{content.path}: holds {len(found)} networks with {mark}; one, or a teacher among them, is needed."
        " Save the state dict of the one that is meant"
    )


def drop_beside(content: Content, taker: Taker, prefix: str) -> None:
    """Names as dropped what stands in other parts of a file than the network's, which is at `prefix`."""
    drop_training_state(content, taker)
    own = prefix.partition("/")[0] if "/" in prefix else None
    for name, value in content.top.items():
        if own is not None and name != own and not isinstance(value, Tensor):
            taker.drop_under(f"{name}/", "another part of the file than the network that is read")


def rate_asked(taker: Taker, options: ReadOptions) -> tuple[int | None, float | None]:
    """Stride or frames per second, where either is asked for. Raises WeightsError for both."""
    if options.stride is not None and options.fps is not None:
        raise WeightsError(
            f"{taker.path}: stride={options.stride} and fps={options.fps} contradict; give one"
        )
    if options.stride is None and options.fps is None:
        taker.assume("rate", "none", "frames are spread evenly over a clip's time; ask with stride= or fps=")
    return options.stride, options.fps


def pooling_of(
    content: Content, options: ReadOptions, known: tuple[FramePooling, ...] = get_args(FramePooling)
) -> FramePooling:
    """Raises WeightsError for a pooling that the model has not."""
    for name in known:
        if (options.pooling or "own") == name:
            return name
    raise WeightsError(
        f"{content.path}: there is no pooling {options.pooling!r} of it; choose {', '.join(known)}"
    )


def side_of(content: Content, options: ReadOptions, usual: int, patch: int) -> int:
    """The side of frames in pixels. Raises WeightsError where they do not divide into patches."""
    size = options.size or usual
    if size > (most := NUMBERS["size"][1]):
        raise WeightsError(f"{content.path}: frames of {size} pixels, more than {most}; say size=NUMBER")
    if size % patch:
        raise WeightsError(
            f"{content.path}: frames of {size} pixels do not divide into patches of {patch}; give a size that"
            f" does, as {size // patch * patch or patch}"
        )
    return size


def assume_images(taker: Taker, options: ReadOptions, size: int | None) -> tuple[int | None, float | None]:
    """Records what files of image models do not say and nobody asked for. size: None where the file says it.
    Returns stride and fps, as of rate_asked. Raises WeightsError."""
    if size is not None and options.size is None:
        taker.assume("size", str(size), "as it is mostly used; ask for another with size=")
    if options.frames is None:
        taker.assume("frames", str(FRAMES), "an image model takes any number; ask for another with frames=")
    return rate_asked(taker, options)


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives a model on the meta device its weights, float32; nothing is copied that is so already.

    Raises RuntimeError where they are not the model's: its importer took other keys than the model has.
    """
    floats = {name: v.float() if v.is_floating_point() else v for name, v in weights.items()}
    model.load_state_dict(floats, assign=True)


def check_whole(model: nn.Module) -> None:
    """Raises RuntimeError for a tensor without values: importers fill all, those that are no weights too."""
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, value in named:
            if value.is_meta:
                raise RuntimeError(f"the {kind} {name} was given no value")


def imported(
    path: Path,
    form: NetworkForm,
    weights: Mapping[str, Tensor],
    coverage: Coverage,
    rate: tuple[int | None, float | None],
) -> Imported:
    """An image model as an encoder of clips. weights: all of the model's, by its own names. Raises
    WeightsError for a pooling that it lacks."""
    try:
        encoder = build_network(form)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    assert isinstance(encoder, FrameEncoder)
    fill(encoder.model, weights)
    check_whole(encoder)
    return Imported(encoder, form, coverage, clip_of_frames(encoder, form, rate), pretraining=False)


def clip_of_frames(
    encoder: FrameEncoder, form: NetworkForm, rate: tuple[int | None, float | None]
) -> ClipForm:
    """What an image model on each frame wants to see."""
    patch = patch_of(encoder.model)
    return ClipForm(form.frames, form.size, *rate, form.mean, form.std, 1, patch, encoder.width, form.pooling)


def patch_of(model: Any) -> int | None:
    """Pixels of the side of what a token stands for, a patch or a place of a map, as far as timm tells."""
    levels = getattr(model, "feature_info", None)
    return int(levels[-1]["reduction"]) if levels else None
