"""Registers this project's encoders with timm: `import surgrec.timm_models`, then `timm.create_model(NAME)`.

    surgrec_vit_{tiny,small,base,large,huge}_patch16_16x224        fixed positions, 16 frames of 224 pixels
    surgrec_vit_{tiny,small,base,large,huge}_patch16_rope_16x256   rotary ones, 16 frames of 256 pixels

There are no published weights: `checkpoint_path=` takes a file that `python -m surgrec.convert` wrote with
`--to timm`. What a model takes and gives is in docs/models.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, get_args

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from surgrec.configs.model import IMAGENET_MEAN, IMAGENET_STD, VIT_SHAPES, Position, Size
from surgrec.exports.video_vit import VideoTransformer

SIZES: Final = {False: 224, True: 256}
"""Pixels of the registered models, without and with rotary positions."""


def timm_name(size: Size, rotary: bool) -> str:
    """Of the registered model of this size, patch 16, 16 frames."""
    return f"surgrec_vit_{size}_patch16_{'rope_16x256' if rotary else '16x224'}"


default_cfgs = generate_default_cfgs(
    {
        timm_name(size, rotary): {
            "num_classes": 0,
            "input_size": (3, pixels, pixels),
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for size in get_args(Size)
        for rotary, pixels in SIZES.items()
    }
)


def _entry(size: Size, rotary: bool) -> Callable[..., Any]:
    name = timm_name(size, rotary)
    position: Position = "rotary_3d" if rotary else "sinusoid_1d"

    def create(pretrained: bool = False, **kwargs: Any) -> Any:
        shape = VIT_SHAPES[size]
        given: dict[str, Any] = {"embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.heads}
        given |= {"img_size": SIZES[rotary], "position": position} | kwargs
        features = {"out_indices": 3, "feature_cls": "getter"}
        return build_model_with_cfg(VideoTransformer, name, pretrained, feature_cfg=features, **given)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"ViT-{size} on clips; keywords are those of VideoTransformer."
    return create


for _size in get_args(Size):
    for _rotary in SIZES:
        register_model(_entry(_size, _rotary))
