"""Files of this project: what `python -m surgrec.convert` writes with --to safetensors, hub and timm.

Their header holds the configuration, so that nothing is assumed. See exports/model_file.py for the first two.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from surgrec.configs.pretrain import JepaPretrain, MaePretrain, from_document
from surgrec.configs.yaml_io import ConfigError
from surgrec.exports.model_file import FORMAT_NAME, TIMM_FORMAT, about_of, checked, grid_of, header_of
from surgrec.models.encoder_form import EncoderForm, transformer_of
from surgrec.models.video_encoder import form_of
from surgrec.weights.clips import finished
from surgrec.weights.coverage import Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import CONFIG, Content
from surgrec.weights.layout import Imported, Layout, ReadOptions, refuse
from surgrec.weights.positions import check_count
from surgrec.weights.video_parts import Published, Weights, take_layer, take_patches

POSITIONS: Final = "transformer.positions.table"
_AGAIN: Final = "convert the model again with `python -m surgrec.convert`"


def _fits(content: Content) -> bool:
    return header_of(content.about).get("format") == FORMAT_NAME


def _fits_timm(content: Content) -> bool:
    return header_of(content.about).get("format") == TIMM_FORMAT


def _read(content: Content, asked: ReadOptions) -> Imported:
    """Of a whole model the encoder that is asked for, by default MAE's or the teacher, as everywhere here."""
    refuse(content, SURGREC.name, inflate=asked.inflate, pooling=asked.pooling, heads=asked.heads)
    about = checked(content.path, content.about, content.tensors)
    config, form = _form(content, about.pretraining)
    taker = Taker(content.path, content.tensors)
    if content.config is not None:
        # A folder for the Hub holds one encoder, and says in its configuration which.
        refuse(content, SURGREC.name, part=asked.part)
        root = "encoder."
    else:
        teacher = isinstance(config, JepaPretrain) and asked.part != "encoder"
        root = "teacher." if teacher else "encoder."
        if asked.part == "target_encoder" and not teacher:
            raise WeightsError(f"{content.path}: MAE has one encoder; leave the part out")
    shapes = transformer_of(form).state_dict()
    weights = {
        f"transformer.{name}": taker.take(root + name, f"transformer.{name}", tensor.shape)
        for name, tensor in shapes.items()
    }
    pretraining = any(taker.keys(name) for name in ("decoder.", "predictor."))
    for name in ("encoder.", "teacher."):
        if name != root:
            taker.drop_under(name, f"{root.removesuffix('.')} is loaded")
    for name in ("decoder.", "encoder_to_decoder.", "predictor."):
        taker.drop_under(name, "of pretraining alone")
    return _imported(taker, config, form, weights, asked, pretraining)


def _read_timm(content: Content, asked: ReadOptions) -> Imported:
    """The one encoder, whose bias of the keys is zero where it comes from MAE."""
    options = {"part": asked.part, "inflate": asked.inflate, "pooling": asked.pooling, "heads": asked.heads}
    refuse(content, SURGREC_TIMM.name, **options)
    try:
        about = about_of(header_of(content.about))
    except ValueError as error:
        raise WeightsError(f"{content.path}: damaged, or changed by hand ({error}); {_AGAIN}") from error
    config, form = _form(content, about.pretraining)
    taker = Taker(content.path, content.tensors)
    weights: Weights = take_patches(taker, "patch_embed.proj.weight", "patch_embed.proj.bias", form)
    biases = {}
    for number in range(form.depth):
        theirs, ours = f"blocks.{number}.", f"transformer.blocks.{number}."
        square, width = (form.width, form.width), form.width
        for name in ("norm1", "norm2"):
            weights |= take_layer(taker, theirs + name, ours + name, (width,))
        weights |= take_layer(taker, f"{theirs}attn.proj", f"{ours}attention.proj", square)
        weights |= take_layer(taker, f"{theirs}mlp.fc1", f"{ours}mlp.fc1", (form.hidden, width))
        weights |= take_layer(taker, f"{theirs}mlp.fc2", f"{ours}mlp.fc2", (width, form.hidden))
        qkv = f"{ours}attention.qkv"
        weights[f"{qkv}.weight"] = taker.take(f"{theirs}attn.qkv.weight", f"{qkv}.weight", (3 * width, width))
        biases[f"{ours}attention."] = taker.take(f"{theirs}attn.qkv.bias", f"{qkv}.bias", (3 * width,))
    weights |= take_layer(taker, "norm", "transformer.norm", (form.width,))
    weights |= _biases(form, biases)
    form, positions = _positions(taker, form)
    return _imported(taker, config, form, weights | positions, asked, False)


def _biases(form: EncoderForm, biases: dict[str, Tensor]) -> Weights:
    if form.key_bias == "learned":
        return {f"{name}qkv.bias": bias for name, bias in biases.items()}
    split: Weights = {}
    for name, bias in biases.items():
        split[f"{name}q_bias"], _, split[f"{name}v_bias"] = bias.chunk(3)
    return split


def _positions(taker: Taker, form: EncoderForm) -> tuple[EncoderForm, Weights]:
    """Those of the file where they are others than its configuration's."""
    if form.position == "rotary_3d":
        return form, {}
    ours = transformer_of(form).positions.table
    stored = taker.take("pos_embed", POSITIONS, (1, *ours.shape))
    if stored.is_meta or torch.equal(stored[0], ours):
        return form, {}
    taker.change(POSITIONS, f"not those of {form.position}; kept as they are")
    return replace(form, position="stored"), {POSITIONS: stored[0]}


def _form(content: Content, document: dict[str, Any]) -> tuple[MaePretrain | JepaPretrain, EncoderForm]:
    """Raises WeightsError."""
    try:
        config = from_document(document)
        assert isinstance(config, MaePretrain | JepaPretrain)
        grid = grid_of(document)
        check_count(content.path, grid)
        return config, form_of(config.model, grid)
    except (ConfigError, ValueError) as error:
        where = content.path if content.config is None else content.path / CONFIG
        raise WeightsError(f"{where}: damaged, or changed by hand ({error}); {_AGAIN}") from error


def _imported(
    taker: Taker,
    config: MaePretrain | JepaPretrain,
    form: EncoderForm,
    weights: Weights,
    asked: ReadOptions,
    pretraining: bool,
) -> Imported:
    data = config.data
    stride = data.stride if data.fps is None else None
    trained = Published(frames=data.frames, size=data.size, stride=stride, fps=data.fps, heads={})
    if asked.stride is None and asked.fps is None:
        asked = replace(asked, stride=stride, fps=data.fps)
    encoder, clip = finished(taker, form, weights, trained, asked, ("frames", "size", "mean"))
    return Imported(encoder, encoder.form, taker.coverage, clip, pretraining)


SURGREC: Final = Layout(
    "surgrec", "this project, as surgrec.convert --to safetensors and --to hub write it", _fits, _read
)
SURGREC_TIMM: Final = Layout(
    "surgrec-timm", "this project, as surgrec.convert --to timm writes it", _fits_timm, _read_timm
)
