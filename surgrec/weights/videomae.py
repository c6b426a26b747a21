"""VideoMAE's own files (pretraining, fine-tuned, version 2, SurgRec-MAE), and SurgVISTA's, which are kin.

model | module | model_state | nothing
  [module.][_orig_mod.][encoder.]patch_embed.proj, blocks.N, norm or fc_norm      loaded
  decoder, encoder_to_decoder, mask_token, head                                   dropped
Layouts as of their published code: Tong et al. 2022 (arXiv 2203.12602), Wang et al. 2023 (arXiv 2303.16727).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from surgrec.weights.clips import finished
from surgrec.weights.coverage import Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.layout import Imported, Layout, ReadOptions, refuse
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

PUBLISHED: Final = Published(
    frames=16, size=224, stride=4, fps=None, heads={192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
)
TOPS: Final = ("model", "module", "model_state", "state_dict")
"""Where the weights are, in the order of preference."""
DECODERS: Final = (
    "decoder.",
    "encoder_to_decoder.",
    "mask_token",
    "decoder_img.",
    "decoder_vid.",
    "down_img.",
    "down_vid.",
    "mask_token_img",
    "mask_token_vid",
    "pos_embed_img",
    "pos_embed_vid",
)
MARKS: Final = DECODERS[3:]
"""Of SurgVISTA, which has two decoders."""
HEADS: Final = ("head.", "fc_dropout.", "norm_head.")

_PRETRAINING: Final = "of pretraining alone: the encoder is loaded"


def _fits_videomae(content: Content) -> bool:
    root = _root(content)
    return (
        root is not None
        and f"{root}blocks.0.attn.q_bias" in content.tensors
        and f"{root}pos_embed" not in content.tensors
        and not _marked(content, root)
    )


def _fits_surgvista(content: Content) -> bool:
    root = _root(content)
    if root is None:
        return False
    has_positions = f"{root}pos_embed" in content.tensors
    return has_positions and (f"{root}blocks.0.attn.q_bias" in content.tensors or _marked(content, root))


def _read_videomae(content: Content, asked: ReadOptions) -> Imported:
    return _read(content, asked, "videomae")


def _read_surgvista(content: Content, asked: ReadOptions) -> Imported:
    return _read(content, asked, "surgvista")


def _read(content: Content, asked: ReadOptions, layout: str) -> Imported:
    refuse(content, layout, part=asked.part, inflate=asked.inflate, pooling=asked.pooling)
    root = _root(content)
    if root is None:
        raise WeightsError(
            f"{content.path}: there is no patch_embed.proj.weight of a Conv3d in it, so it is not of"
            f" the layout {layout}; leave the layout out, and it is told by the keys"
        )
    taker = Taker(content.path, content.tensors)
    form = form_at(content, taker, root, PUBLISHED, asked)
    if f"{root}blocks.0.attn.qkv.bias" in taker:
        form = replace(form, key_bias="learned")
    weights: Weights = {}
    if layout == "surgvista" or f"{root}pos_embed" in taker:
        steps = PUBLISHED.frames // form.tubelet
        form, weights = stored_positions(content, taker, f"{root}pos_embed", form, steps)
    pooled = f"{root}fc_norm.weight" in taker
    form = replace(form, final_norm=not pooled, pool_norm="layer_norm" if pooled else "none")
    weights |= take_patches(taker, f"{root}patch_embed.proj.weight", f"{root}patch_embed.proj.bias", form)
    weights |= take_blocks(taker, root, form)
    theirs, ours = ("fc_norm", "pool_norm") if pooled else ("norm", "transformer.norm")
    weights |= take_layer(taker, root + theirs, ours, (form.width,))
    pretraining = _drop(content, taker, root)
    known = () if form.position == "sinusoid_1d" else ("size",)
    encoder, clip = finished(taker, form, weights, PUBLISHED, asked, known)
    return Imported(encoder, encoder.form, taker.coverage, clip, pretraining)


def _drop(content: Content, taker: Taker, root: str) -> bool:
    """Names what is not loaded; whether a decoder was among it."""
    base = root.removesuffix("encoder.")
    pretraining = any(taker.keys(base + name) for name in DECODERS)
    for name in DECODERS:
        if name.endswith("."):
            taker.drop_under(base + name, _PRETRAINING)
        else:
            taker.drop(base + name, _PRETRAINING)
    for name in HEADS:
        taker.drop_under(base + name, "classification head: of the classes that it was fine-tuned on")
    drop_training_state(content, taker)
    for other in roots(content):
        if other != root and other.partition("/")[0] not in ("", root.partition("/")[0]):
            top = other.partition("/")[0]
            taker.drop_under(f"{top}/", f"another copy of the model; {root.partition('/')[0]} is loaded")
    return pretraining


def _root(content: Content) -> str | None:
    """What stands before the keys of the encoder; None for a file of another kind."""
    if content.config is not None:
        return None
    found = roots(content)
    for top in TOPS:
        under = [root for root in found if root.startswith(f"{top}/")]
        if len(under) == 1:
            return under[0]
    return found[0] if len(found) == 1 and "/" not in found[0] else None


def _marked(content: Content, root: str) -> bool:
    base = root.removesuffix("encoder.")
    return any(key.startswith(tuple(base + mark for mark in MARKS)) for key in content.tensors)


VIDEOMAE: Final = Layout(
    "videomae",
    "VideoMAE and VideoMAE V2, pretraining and fine-tuned, DeepSpeed too; SurgRec-MAE's release",
    _fits_videomae,
    _read_videomae,
)
SURGVISTA: Final = Layout("surgvista", "SurgVISTA's pretraining", _fits_surgvista, _read_surgvista)
