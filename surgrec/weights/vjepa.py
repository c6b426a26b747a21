"""Files of V-JEPA (SurgRec-JEPA's release too) and V-JEPA 2 (SurgMotion too).

encoder, target_encoder
  module.backbone.{patch_embed.proj, blocks.N, norm}     one of the two is loaded, the other is dropped
  module.backbone.pos_embed                              V-JEPA: loaded. V-JEPA 2: dropped, it turns instead
predictor, opt, scaler, epoch                            dropped
Layouts as of their published code: Bardes et al. 2024 (arXiv 2404.08471), Assran et al. 2025 (arXiv
2506.09985).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final, get_args

from surgrec.weights.clips import finished
from surgrec.weights.coverage import Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.layout import Imported, Layout, Part, ReadOptions, refuse
from surgrec.weights.positions import stored_positions
from surgrec.weights.video_parts import (
    Published,
    Weights,
    drop_training_state,
    form_at,
    roots,
    take_blocks,
    take_layer,
    take_patches,
)

VJEPA_PUBLISHED: Final = Published(
    frames=16, size=224, stride=4, fps=None, heads={192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
)
VJEPA2_PUBLISHED: Final = Published(
    frames=16,
    size=256,
    stride=None,
    fps=4.0,
    heads={192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26},
)
PARTS: Final[tuple[Part, ...]] = get_args(Part)
MOST_OF_VJEPA: Final = 2
"""Mask tokens of V-JEPA's predictor, one for each group of masks."""
OF_VJEPA2: Final = 10
"""Mask tokens of V-JEPA 2's predictor."""
_PLACES: Final = ".predictor_pos_embed"
_MASK_TOKEN: Final = re.compile(r"predictor/.*\bmask_tokens\.\d+$")


def _fits_vjepa(content: Content) -> bool:
    return bool(_parts(content)) and _has_places(content) and _mask_tokens(content) < OF_VJEPA2


def _fits_vjepa2(content: Content) -> bool:
    if not _parts(content):
        return False
    return not _has_places(content) or not 0 < _mask_tokens(content) <= MOST_OF_VJEPA


def _read_vjepa(content: Content, asked: ReadOptions) -> Imported:
    return _read(content, asked, "vjepa", VJEPA_PUBLISHED, rotary=False)


def _read_vjepa2(content: Content, asked: ReadOptions) -> Imported:
    return _read(content, asked, "vjepa2", VJEPA2_PUBLISHED, rotary=True)


def _read(content: Content, asked: ReadOptions, layout: str, published: Published, rotary: bool) -> Imported:
    refuse(content, layout, inflate=asked.inflate, pooling=asked.pooling)
    part, root = _chosen(content, asked.part, layout)
    taker = Taker(content.path, content.tensors)
    form = replace(form_at(content, taker, root, published, asked), key_bias="learned")
    weights: Weights = {}
    if rotary:
        form = replace(form, position="rotary_3d")
        taker.drop(
            f"{root}pos_embed", "not used by V-JEPA 2, which turns queries and keys by their places instead"
        )
    else:
        form, weights = stored_positions(
            content, taker, f"{root}pos_embed", form, published.frames // form.tubelet
        )
    weights |= take_patches(taker, f"{root}patch_embed.proj.weight", f"{root}patch_embed.proj.bias", form)
    weights |= take_blocks(taker, root, form)
    weights |= take_layer(taker, f"{root}norm", "transformer.norm", (form.width,))
    pretraining = bool(taker.keys("predictor/"))
    taker.drop_under("predictor/", "predictor, of pretraining alone")
    for other in PARTS:
        if other != part:
            taker.drop_under(f"{other}/", f"{part} was asked for")
    drop_training_state(content, taker)
    encoder, clip = finished(taker, form, weights, published, asked, () if rotary else ("size",))
    return Imported(encoder, encoder.form, taker.coverage, clip, pretraining)


def _chosen(content: Content, asked: Part | None, layout: str) -> tuple[Part, str]:
    """Which of the encoders is read, and what stands before its keys."""
    found = _parts(content)
    if not found:
        raise WeightsError(
            f"{content.path}: has neither {' nor '.join(PARTS)}, so it is not of the layout {layout};"
            " leave the layout out, and it is told by the keys"
        )
    if asked is None and len(found) > 1:
        raise WeightsError(
            f"{content.path}: holds two encoders, {' and '.join(found)}; choose one, as"
            f" file:{content.path}#target_encoder, which is what V-JEPA evaluates, or part=... of load_model"
        )
    part = asked or next(iter(found))
    if part not in found:
        raise WeightsError(f"{content.path}: holds no {part}; it has {' and '.join(found)}: choose that one")
    return part, found[part]


def _parts(content: Content) -> dict[Part, str]:
    """Encoders by their names, with what stands before their keys."""
    found: dict[Part, str] = {}
    for root in roots(content):
        for part in PARTS:
            if root.startswith(f"{part}/"):
                found[part] = root
    return found


def _has_places(content: Content) -> bool:
    """Whether anything is stored that V-JEPA 2 does without: a V-JEPA of which a part is missing is still
    one."""
    stored = any(f"{root}pos_embed" in content.tensors for root in _parts(content).values())
    return stored or any(key.startswith("predictor/") and key.endswith(_PLACES) for key in content.tensors)


def _mask_tokens(content: Content) -> int:
    """Of the predictor; 0 where there is none."""
    return sum(_MASK_TOKEN.match(key) is not None for key in content.tensors)


VJEPA: Final = Layout("vjepa", "V-JEPA; SurgRec-JEPA's release", _fits_vjepa, _read_vjepa)
VJEPA2: Final = Layout("vjepa2", "V-JEPA 2; SurgMotion", _fits_vjepa2, _read_vjepa2)
