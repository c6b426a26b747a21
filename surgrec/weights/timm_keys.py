"""The keys of timm's models, and of DINOv2's own files, which differ in a few names."""

from __future__ import annotations

import math
from typing import Any, Final

from torch import Tensor

from surgrec.weights.coverage import Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.per_frame import UNSEEN, drop_beside, network_at

PATCH: Final = "patch_embed.proj.weight"
PLACES: Final = "pos_embed"
CLASS: Final = "cls_token"
REGISTERS: Final = "register_tokens"
_DINOV2: Final = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2.", REGISTERS: "reg_token"}
"""DINOv2's own names, and what timm calls the same."""


def take_all(content: Content, taker: Taker, model: Any) -> dict[str, Tensor]:
    """All weights of `model`, by its names; what else is in the file is dropped, where it is known.

    Positions of another grid are interpolated. Raises WeightsError where that cannot be.
    """
    prefix = network_at(content, PATCH)
    theirs = {_our_name(key.removeprefix(prefix)): key for key in taker.keys(prefix)}
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {
        name: taker.take(theirs.get(name, f"{prefix}{name}"), name, shape)
        for name, shape in wanted.items()
        if name != PLACES
    }
    if PLACES in wanted:
        _take_places(taker, model, prefix, found)
    taker.drop(f"{prefix}mask_token", UNSEEN)
    for root in dict.fromkeys((prefix, prefix.removesuffix("backbone."))):
        for head in _heads(model):
            taker.drop_under(f"{root}{head}.", "a classifier's, or of the losses of pretraining")
    drop_beside(content, taker, prefix)
    return found


def take_plain(content: Content, taker: Taker, model: Any) -> dict[str, Tensor]:
    """As take_all, of any model, by its very names."""
    state = model.state_dict()
    prefix = _named_at(content, [name for name, value in state.items() if value.is_floating_point()])
    found = {}
    for name, value in state.items():
        if value.is_floating_point():
            found[name] = taker.take(f"{prefix}{name}", name, tuple(value.shape))
        else:
            taker.drop(f"{prefix}{name}", "a counter of training")
            found[name] = value
    for head in _heads(model):
        taker.drop_under(f"{prefix}{head}.", "a classifier's")
    drop_beside(content, taker, prefix)
    return found


def _named_at(content: Content, names: list[str]) -> str:
    """What stands before the names of a model, where most of them are. Raises WeightsError where two places
    have as many."""
    first = names[0]
    found = [key.removesuffix(first) for key in content.tensors if key.endswith(first)]
    counts = {
        prefix: sum(f"{prefix}{name}" in content.tensors for name in names)
        for prefix in found
        if not prefix or prefix.endswith((".", "/"))
    }
    most = [prefix for prefix, count in counts.items() if count == max(counts.values())]
    if len(most) > 1:
        raise WeightsError(
            f"{content.path}: holds {len(most)} networks, at {', '.join(map(repr, most))}; save the state"
            " dict of the one that is meant"
        )
    return most[0] if most else ""


def _take_places(taker: Taker, model: Any, prefix: str, found: dict[str, Tensor]) -> None:
    """Adds the table of positions, of the model's grid."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    key = f"{prefix}{PLACES}"
    if key not in taker:
        taker.take(key, PLACES, tuple(model.pos_embed.shape))
        return
    shape = taker.dimensions(key, 3)
    table = taker.take(key, PLACES, (1, shape[1], model.embed_dim))
    if table.is_meta:
        return
    placed = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    if f"{prefix}{REGISTERS}" in taker and placed == 0 and CLASS in found and not found[CLASS].is_meta:
        # DINOv2 has a place for its class token, where timm has none beside registers.
        found[CLASS] = found[CLASS].float() + table[:, :1].float()
        table = table[:, 1:]
        taker.change(CLASS, f"its place, the first of {PLACES}, is added to it")
    side = math.isqrt(max(table.shape[1] - placed, 0))
    if not side or side * side != table.shape[1] - placed:
        raise WeightsError(
            f"{taker.path}: {key} is {list(shape)}, whose places of patches fill no square; give the file of"
            " another model, or its right name"
        )
    rows, columns = model.patch_embed.grid_size
    if (side, side) != (rows, columns):
        table = resample_abs_pos_embed(
            table.float(), [rows, columns], old_size=[side, side], num_prefix_tokens=placed
        )
        taker.change(PLACES, f"positions interpolated from {side}x{side} to {rows}x{columns} (bicubic)")
    found[PLACES] = table


def _our_name(key: str) -> str:
    for theirs, ours in _DINOV2.items():
        key = key.replace(theirs, ours)
    return key


def _heads(model: Any) -> tuple[str, ...]:
    """Names of the classifiers that the model has been built without."""
    found = model.pretrained_cfg.get("classifier") or "head"
    return (found,) if isinstance(found, str) else tuple(found)
