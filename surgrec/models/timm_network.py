"""Networks of timm without weights: what they are made with, and what fine-tuning must know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

NOT_ARCHITECTURE: Final = (
    "pretrained",
    "checkpoint_path",
    "cache_dir",
    "pretrained_cfg_overlay",
    "num_classes",
    "scriptable",
    "exportable",
    "no_jit",
)
"""Keywords of timm.create_model that would fetch or read weights, or that are not the network's."""
LARGEST: Final = 1 << 14
"""Number among the keywords of an architecture, beyond which building it has no end."""
_DROPPING: Final = ("drop_path", "drop_path1", "drop_path2")


def create(name: str, arguments: Mapping[str, Any]) -> Any:
    """A model of timm without its classifier; without weights, on the meta device, where it has no buffers,
    which are no weights and must be computed.

    Raises ValueError for a keyword that is not of the architecture, or whatever timm does not take.
    """
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm {timm.__version__} has no model {name!r}")
    strange = [key for key in arguments if key in NOT_ARCHITECTURE]
    if strange:
        raise ValueError(f"{strange[0]} is no keyword of an architecture")
    for key, value in arguments.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(number, int | float) and not abs(number) <= LARGEST for number in numbers):
            raise ValueError(f"{key} is {value!r}, beyond {LARGEST}")
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0, **arguments)
        if any(True for _ in model.buffers()):
            model = timm.create_model(name, num_classes=0, **arguments)
    except Exception as error:  # of whatever a model of timm does not take
        raise ValueError(f"timm cannot make {name} ({error})") from error
    return model


def layers_of(model: Any) -> dict[str, int]:
    """The number of the layer of each parameter, from 0, as timm groups them for decay by layer. Raises
    ValueError for a model whose layers timm does not tell."""
    from timm.models import group_parameters

    if not hasattr(model, "group_matcher"):
        raise ValueError("timm does not tell its layers: give --layer-decay 1")
    found: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return found


def undecayed(model: Any) -> set[str]:
    """Parameters that have no weight decay whatever their shape, as timm has it."""
    return set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()


def set_frame_drop_path(model: nn.Module, last: float) -> None:
    """While training, the branches of block i of L are left out for a frame with probability last * i / (L -
    1), as timm does where a model is made so. Raises ValueError for a model without such branches."""
    from timm.layers.drop import DropPath

    blocks = [part for part in model.modules() if any(hasattr(part, name) for name in _DROPPING)]
    if not blocks:
        raise ValueError("it has no branches that could be left out: give --drop-path 0")
    for number, block in enumerate(blocks):
        rate = last * number / max(len(blocks) - 1, 1)
        for name in _DROPPING:
            if hasattr(block, name):
                setattr(block, name, DropPath(rate))
