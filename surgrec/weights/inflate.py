"""A vision transformer of images, inflated to one of video: each filter of patches becomes one of tubelets.

The filter is repeated over the frames of a tubelet and divided by their number (Carreira & Zisserman 2017,
arXiv 1705.07750), and the positions of a frame are repeated over time: a clip that stands still is seen as
its frame was. The result is this project's own transformer, to be probed, fine-tuned or exported as one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from surgrec.models.encoder_form import EncoderForm, conv_as_linear
from surgrec.models.video_encoder import build_encoder
from surgrec.weights.clips import clip_of
from surgrec.weights.coverage import Coverage
from surgrec.weights.errors import WeightsError
from surgrec.weights.layout import Imported
from surgrec.weights.per_frame import Colours

OURS: Final = "transformer."
TABLE: Final = "transformer.positions.table"
_NAMES: Final = {
    "attn.": "attention.",
    "patch_embed.proj.": "patch_embedding.",
    "pos_embed": "positions.table",
}
"""Parts of timm's names, and ours."""


def inflated(
    path: Path,
    model: Any,
    coverage: Coverage,
    tubelet: int,
    frames: int,
    rate: tuple[int | None, float | None],
    mean: Colours,
    std: Colours,
) -> Imported:
    """This project's encoder with the weights of `model`, which is one of timm's, whole. coverage: of its
    keys, by timm's names; changed to ours. Raises WeightsError where the model is another than our
    transformer."""
    _check(path, model)
    form = _form(model, tubelet, frames, mean, std)
    try:
        steps, _, _ = form.grid
    except ValueError as error:
        raise WeightsError(f"{path}: {error}; give other frames, size or inflate") from error
    weights = {}
    for name, value in model.state_dict().items():
        if not name.startswith(("cls_token", "blocks.")):
            weights[_our_name(name)] = value
    for number, block in enumerate(model.blocks):
        weights |= _block(block, f"{OURS}blocks.{number}.", coverage)
    filters = model.patch_embed.proj.weight
    weights[f"{OURS}patch_embedding.weight"] = conv_as_linear(
        filters[:, :, None].expand(-1, -1, tubelet, -1, -1) / tubelet
    )
    weights[TABLE] = model.pos_embed[0, _placed(model) :].repeat(steps, 1)
    encoder = build_encoder(form, {name: value.detach() for name, value in weights.items()})

    lost = "cls_token"
    _rename(coverage, lost)
    if model.cls_token is not None:
        coverage.dropped.append((lost, "our transformer has no class token: patches attend to patches alone"))
    coverage.changed += [
        (f"{OURS}patch_embedding.weight", f"repeated over {tubelet} frames and divided by {tubelet}"),
        (TABLE, f"repeated over {steps} steps of time"),
    ]
    return Imported(encoder, form, coverage, clip_of(form, *rate), pretraining=False)


def _check(path: Path, model: Any) -> None:
    """Raises WeightsError, naming what of the model our transformer has not."""
    from timm.layers.mlp import Mlp
    from timm.models.vision_transformer import Block, VisionTransformer

    faults = []
    if type(model) is not VisionTransformer:
        faults.append(f"it is a {type(model).__name__}")
    else:
        blocks: list[Any] = list(model.blocks)
        plain = (nn.Identity, nn.Dropout)
        norms = [part for part in model.modules() if isinstance(part, nn.LayerNorm)]
        checks = {
            "register tokens": model.num_reg_tokens > 0,
            "no learned positions": model.pos_embed is None,
            "a norm before its blocks": not isinstance(model.norm_pre, plain),
            "an attention pool": model.attn_pool is not None,
            "other blocks": any(type(block) is not Block for block in blocks),
        }
        faults += [what for what, there in checks.items() if there]
        if not faults:
            attention = [block.attn for block in blocks]
            checks = {
                "normalised queries and keys": any(not isinstance(part.q_norm, plain) for part in attention),
                "no biases of queries and keys": any(part.qkv.bias is None for part in attention),
                "a norm within attention": any(not isinstance(part.norm, plain) for part in attention),
                "another MLP": any(
                    type(block.mlp) is not Mlp
                    or not isinstance(block.mlp.act, nn.GELU)
                    or block.mlp.act.approximate != "none"
                    or not isinstance(block.mlp.norm, plain)
                    for block in blocks
                ),
                "norms of several epsilons": len({norm.eps for norm in norms}) != 1,
                "patches without biases": model.patch_embed.proj.bias is None,
            }
            faults += [what for what, there in checks.items() if there]
    if faults:
        raise WeightsError(
            f"{path}: cannot be inflated to this project's transformer ({', '.join(faults)}); leave inflate"
            " out: it is applied to each frame"
        )


def _form(model: Any, tubelet: int, frames: int, mean: Colours, std: Colours) -> EncoderForm:
    block = model.blocks[0]
    pools = isinstance(model.fc_norm, nn.LayerNorm)
    return EncoderForm(
        depth=len(model.blocks),
        width=model.embed_dim,
        heads=block.attn.num_heads,
        hidden=block.mlp.fc1.out_features,
        frames=frames,
        size=model.patch_embed.img_size[0],
        position="stored",
        key_bias="learned",
        tubelet=tubelet,
        patch=model.patch_embed.patch_size[0],
        final_norm=isinstance(model.norm, nn.LayerNorm),
        pool_norm="layer_norm" if pools else "none",
        eps=block.norm1.eps,
        mean=mean,
        std=std,
    )


def _block(block: Any, ours: str, coverage: Coverage) -> dict[str, Tensor]:
    """A block's weights by our names. LayerScale, a factor of what a branch adds, is multiplied into the
    branch's last layer."""
    weights = {
        f"{ours}{name.replace('attn.', 'attention.')}": value
        for name, value in block.state_dict().items()
        if not name.startswith(("ls1.", "ls2."))
    }
    for scale, last in ((block.ls1, "attention.proj"), (block.ls2, "mlp.fc2")):
        if isinstance(scale, nn.Identity):
            continue
        weights[f"{ours}{last}.weight"] = weights[f"{ours}{last}.weight"] * scale.gamma[:, None]
        weights[f"{ours}{last}.bias"] = weights[f"{ours}{last}.bias"] * scale.gamma
        coverage.changed.append((f"{ours}{last}", "multiplied by its LayerScale"))
    return weights


def _placed(model: Any) -> int:
    """Class tokens that have a position, before those of patches."""
    return 0 if model.no_embed_class else int(model.num_prefix_tokens)


def _our_name(name: str) -> str:
    """Of a weight of timm's in VideoEncoder."""
    if name.startswith("fc_norm."):
        return name.replace("fc_norm.", "pool_norm.")
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return f"{OURS}{name}"


def _rename(coverage: Coverage, lost: str) -> None:
    """Makes the names in an account ours; the row of `lost` goes, it is told as dropped."""
    found = [(theirs, ours) for theirs, ours in coverage.loaded if ours != lost]
    for number, (theirs, ours) in enumerate(found):
        branch = {"ls1.gamma": "attention.proj", "ls2.gamma": "mlp.fc2"}.get(ours.split(".", 2)[-1])
        place = f"{'.'.join(ours.split('.')[:2])}.{branch}" if branch else None
        found[number] = (theirs, f"{OURS}{place}" if place else _our_name(ours))
    coverage.loaded[:] = found
    known = ("transformer.", "pool_norm.")
    coverage.changed[:] = [
        (key if key.startswith(known) else _our_name(key), what) for key, what in coverage.changed
    ]
