"""Folders that transformers' from_pretrained reads: VideoMAEForPreTraining and VJEPA2Model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from surgrec.configs.convert import ConvertConfig
from surgrec.exports.comparison import GRAPH, Check, clips_for, compare, features_of
from surgrec.exports.referee import divided, our_predictions
from surgrec.exports.source import Source, jepa_of, mae_of
from surgrec.exports.transformers_names import videomae_tensors, vjepa2_tensors
from surgrec.exports.video_vit import normalised
from surgrec.models.vit import LAYER_NORM_EPS
from surgrec.training.tensor_file import write_tensors
from surgrec.weights.errors import WeightsError

WEIGHTS = "model.safetensors"


def write_videomae(source: Source, config: ConvertConfig, path: Path) -> None:
    """See ExportFormat."""
    from transformers import VideoMAEConfig, VideoMAEImageProcessor

    mae = mae_of(source, "transformers' VideoMAE")
    source.part(config.part)
    data, model = source.config.data, mae.config
    form = VideoMAEConfig(
        image_size=data.size,
        patch_size=model.patch,
        num_frames=data.frames,
        tubelet_size=model.tubelet,
        hidden_size=mae.encoder.width,
        num_hidden_layers=mae.encoder.depth,
        num_attention_heads=mae.encoder.heads,
        intermediate_size=4 * mae.encoder.width,
        decoder_hidden_size=model.decoder_width,
        decoder_num_hidden_layers=model.decoder_depth,
        decoder_num_attention_heads=model.decoder_heads,
        decoder_intermediate_size=4 * model.decoder_width,
        layer_norm_eps=LAYER_NORM_EPS,
        qv_bias=True,
        use_mean_pooling=False,
        norm_pix_loss=model.normalise_target,
        architectures=["VideoMAEForPreTraining"],
    )
    processor = VideoMAEImageProcessor(
        size={"shortest_edge": data.size},
        crop_size={"height": data.size, "width": data.size},
        image_mean=list(model.mean),
        image_std=list(model.std),
    )
    _write(path, form, processor, videomae_tensors(source))


@torch.no_grad()
def verify_videomae(source: Source, config: ConvertConfig, path: Path) -> list[Check]:
    """By VideoMAEForPreTraining.from_pretrained, encoder and decoder."""
    from transformers import VideoMAEForPreTraining

    mae, clips = mae_of(source, "transformers' VideoMAE"), clips_for(source)
    network = _loaded(VideoMAEForPreTraining, path)
    pixels = normalised(clips, mae.config.mean, mae.config.std).transpose(1, 2)
    features = network.videomae(pixels).last_hidden_state
    checks = [compare("features, by transformers", features_of(source, "encoder", clips), features)]
    mask = mae.mask(torch.arange(len(clips)))
    hidden = torch.zeros(features.shape[:2], dtype=torch.bool).scatter(1, mask.masked, True)
    logits = network(pixels, bool_masked_pos=hidden).logits
    # Its decoder's last norm has 1e-5 where VideoMAE's, and ours, has 1e-6: hence the wider bound.
    checks.append(compare("decoder, by transformers", mae.predict(clips, mask), logits, GRAPH))
    return checks


def write_vjepa2(source: Source, config: ConvertConfig, path: Path) -> None:
    """See ExportFormat."""
    from transformers import VJEPA2Config, VJEPA2VideoProcessor

    jepa = jepa_of(source, "transformers' VJEPA2", ("rotary_3d",))
    data, model, encoder = source.config.data, jepa.config, jepa.encoder
    form = VJEPA2Config(
        patch_size=model.patch,
        crop_size=data.size,
        frames_per_clip=data.frames,
        tubelet_size=model.tubelet,
        hidden_size=encoder.width,
        num_attention_heads=encoder.heads,
        num_hidden_layers=encoder.depth,
        mlp_ratio=4.0,
        layer_norm_eps=LAYER_NORM_EPS,
        pred_hidden_size=model.predictor_width,
        pred_num_attention_heads=model.predictor_heads,
        pred_num_hidden_layers=model.predictor_depth,
        pred_num_mask_tokens=len(model.groups),
        architectures=["VJEPA2Model"],
    )
    processor = VJEPA2VideoProcessor(
        size={"shortest_edge": data.size},
        crop_size={"height": data.size, "width": data.size},
        image_mean=list(model.mean),
        image_std=list(model.std),
    )
    _write(path, form, processor, vjepa2_tensors(source, source.part(config.part)))


@torch.no_grad()
def verify_vjepa2(source: Source, config: ConvertConfig, path: Path) -> list[Check]:
    """By VJEPA2Model.from_pretrained, encoder and predictor."""
    from transformers import VJEPA2Model

    jepa = jepa_of(source, "transformers' VJEPA2", ("rotary_3d",))
    clips, chosen = clips_for(source), source.part(config.part)
    network = _loaded(VJEPA2Model, path)
    pixels = normalised(clips, jepa.config.mean, jepa.config.std).transpose(1, 2)
    features = features_of(source, chosen, clips)
    theirs = network(pixels, skip_predictor=True).last_hidden_state
    checks = [compare("features, by transformers", features, theirs)]
    # It takes the second mask token for everything.
    group = 1 % len(jepa.config.groups)
    context, target = divided(jepa, len(clips))
    predicted = network.predictor(features, [context], [target]).last_hidden_state
    ours = our_predictions(jepa, features, group)
    checks.append(compare("predictor, by transformers", ours, predicted))
    return checks


def _write(path: Path, form: Any, processor: Any, tensors: dict[str, torch.Tensor]) -> None:
    path.mkdir()
    form.save_pretrained(path)
    processor.save_pretrained(path)
    write_tensors(path / WEIGHTS, tensors, {"format": "pt"})


def _loaded(kind: Any, path: Path) -> Any:
    """Raises WeightsError for weights that were not there, or not taken."""
    network, told = kind.from_pretrained(path, output_loading_info=True, local_files_only=True)
    wrong = [
        f"{name.replace('_', ' ')}: {', '.join(sorted(map(str, keys))[:3])}"
        for name, keys in told.items()
        if keys
    ]
    if wrong:
        raise WeightsError(
            f"{kind.__name__} of the installed transformers has other weights ({'; '.join(wrong)}); nothing"
            " was written. Install transformers 5, or give another --to"
        )
    return network.eval()
