"""All importers, and which of them a file is for."""

from __future__ import annotations

from typing import Final

from surgrec.weights.dinov3 import DINOV3
from surgrec.weights.endofm import ENDOFM
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.layout import Layout
from surgrec.weights.surgrec_files import SURGREC, SURGREC_TIMM
from surgrec.weights.timm_vit import TIMM_VIT
from surgrec.weights.transformers_video import TRANSFORMERS_VIDEOMAE, TRANSFORMERS_VJEPA2
from surgrec.weights.videomae import SURGVISTA, VIDEOMAE
from surgrec.weights.vjepa import VJEPA, VJEPA2

_ALL: Final[tuple[Layout, ...]] = (
    VIDEOMAE,
    VJEPA,
    VJEPA2,
    SURGVISTA,
    TRANSFORMERS_VIDEOMAE,
    TRANSFORMERS_VJEPA2,
    SURGREC,
    SURGREC_TIMM,
    DINOV3,
    ENDOFM,
    TIMM_VIT,
)
LAYOUTS: Final[dict[str, Layout]] = {layout.name: layout for layout in _ALL}


def layout_named(name: str) -> Layout:
    """Raises WeightsError for a name that there is not."""
    if name not in LAYOUTS:
        raise WeightsError(f"there is no layout {name!r}; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def detect(content: Content) -> Layout:
    """The layout of a file, by its keys and configuration. Raises WeightsError where none fits, or several
    do."""
    fitting = [layout for layout in LAYOUTS.values() if layout.fits(content)]
    if len(fitting) == 1:
        return fitting[0]
    name = "`#layout=NAME` behind its path"
    if fitting:
        raise WeightsError(
            f"{content.path}: may be of the layout {' or '.join(layout.name for layout in fitting)}, its keys"
            f" do not tell which; name it with {name}"
        )
    keys = list(content.tensors)
    raise WeightsError(
        f"{content.path}: {len(keys)} tensors of no layout that is known (the first is {keys[0]!r}). Known"
        f" are {', '.join(LAYOUTS)}; if it is one of them, name it with {name}"
    )
