"""DINOv3's vision transformers, by the names of their own files or by those of transformers.

Siméoni et al. 2025, arXiv 2508.10104. An image model, applied to each frame; the network is timm's, with the
periods of the rotary positions that the file holds.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from surgrec.models.network_form import NetworkForm
from surgrec.weights.colours import colours
from surgrec.weights.coverage import Taker
from surgrec.weights.dinov3_keys import REGISTERS, official, transformers
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.layout import Imported, Layout, ReadOptions, refuse
from surgrec.weights.per_frame import FRAMES, assume_images, imported, pooling_of, side_of

NAME: Final = "dinov3"
SIZE: Final = 224
TRANSFORMERS: Final = "dinov3_vit"


def fits(content: Content) -> bool:
    """Registers by DINOv3's own name, or a configuration of transformers'."""
    if content.config is not None:
        return content.config.get("model_type") == TRANSFORMERS
    return any(key.rpartition("/")[2].removeprefix("backbone.") == REGISTERS for key in content.tensors)


def read(content: Content, options: ReadOptions) -> Imported:
    """Raises WeightsError."""
    refuse(content, NAME, part=options.part, heads=options.heads)
    if options.inflate is not None:
        raise WeightsError(
            f"{content.path}: DINOv3 cannot be inflated to tubelets: its rotary positions, class token and"
            " registers have no place in this project's transformer; leave inflate out, it is applied to each"
            " frame"
        )
    pooling = pooling_of(content, options)
    taker = Taker(content.path, content.tensors)
    if content.config is None:
        form, weights = official(content, taker)
    else:
        form, weights = transformers(taker, content.config)
    told = (content.config or {}).get("image_size")
    usual: int = told if isinstance(told, int) and told > 0 else SIZE
    size = side_of(content, options, usual, form.patch)
    rate = assume_images(taker, options, None if usual == told else size)
    mean, std = colours(content)
    if content.preprocessor is None:
        taker.assume("mean, std", "ImageNet's", "those of DINOv3's training on natural images")
    coverage = taker.finish()
    frames = options.frames or FRAMES
    network = NetworkForm("dinov3", asdict(form), frames, size, mean, std, pooling)
    return imported(content.path, network, weights, coverage, rate)


DINOV3: Final = Layout(
    NAME, "DINOv3's image transformers (official files, or transformers' folders), on each frame", fits, read
)
