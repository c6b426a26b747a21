"""A pretrained model of this project as one safetensors file: all weights, and in its header what they are.

surgrec   JSON of ModelAbout, with format, format_version and digest
*         the weights, by the names of the objective's modules: encoder, decoder, teacher, predictor, ...

It needs nothing else, and `surgrec.load_model` and `python -m surgrec.convert` read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import xxhash
from torch import Tensor

from surgrec.configs.pretrain import JepaPretrain, MaePretrain, from_document
from surgrec.configs.yaml_io import ConfigError
from surgrec.kernels.masking import Grid
from surgrec.kernels.patchify import token_grid
from surgrec.training.tensor_file import write_tensors
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import read_file
from surgrec.weights.positions import check_count

FORMAT_NAME: Final = "surgrec-model"
FORMAT_VERSION: Final = 1
TIMM_FORMAT: Final = "surgrec-timm"
"""Of a file of one encoder for timm, see exports/timm_file.py."""
_MAKE_IT: Final = "write it with `python -m surgrec.convert RUN --to safetensors`"


@dataclass(frozen=True)
class ModelAbout:
    """What a model is. Plain values.

    identity: of its weights and clips, as extract and probe name it. pretraining: `objective`, `model` and
    `data` of its configuration, from which it is built. step: of the checkpoint. index_digest: of what it
    saw, empty where that is not known.
    """

    identity: str
    pretraining: dict[str, Any]
    step: int
    index_digest: str

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def write_model(path: Path, about: ModelAbout, tensors: Mapping[str, Tensor]) -> None:
    """Writes all of a model. Raises OSError; the file may then be partial."""
    plain = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **asdict(about)}
    plain["digest"] = _digest(about, tensors)
    write_tensors(
        path, dict(tensors), {"surgrec": json.dumps(plain, sort_keys=True, allow_nan=False), "format": "pt"}
    )


def read_tensors(path: Path) -> tuple[ModelAbout, dict[str, Tensor]]:
    """What a file holds, its digest verified. Raises WeightsError naming file, cause and remedy."""
    content = read_file(path)
    return checked(path, content.about, content.tensors), content.tensors


def checked(path: Path, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> ModelAbout:
    """What a file's header says, its digest verified. Raises WeightsError naming file, cause and remedy."""
    document = header_of(header)
    if document.get("format") != FORMAT_NAME:
        raise WeightsError(
            f"{path}: no model of this project (no `format` {FORMAT_NAME!r} in its header); {_MAKE_IT}"
        )
    if document.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{path}: a model of format version {document.get('format_version')!r}, this program reads"
            f" {FORMAT_VERSION}; {_MAKE_IT} again"
        )
    try:
        about = about_of(document)
        check_count(path, grid_of(about.pretraining))
        if document.get("digest") != _digest(about, tensors):
            raise ValueError("its content does not have the digest that it states")
    except (TypeError, ValueError, ConfigError) as error:
        raise WeightsError(f"{path}: damaged, or changed by hand ({error}); {_MAKE_IT} again") from error
    return about


def header_of(header: Mapping[str, str]) -> dict[str, Any]:
    """Our JSON in a safetensors header; empty where there is none."""
    try:
        document = json.loads(header.get("surgrec", "{}"))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def about_of(document: Mapping[str, Any]) -> ModelAbout:
    """Raises ValueError for values that are not there, or of another kind."""
    kinds: dict[str, type] = {"identity": str, "pretraining": dict, "step": int, "index_digest": str}
    for name, kind in kinds.items():
        if type(document.get(name)) is not kind:
            raise ValueError(f"`{name}` is {document.get(name)!r}")
    return ModelAbout(**{name: document[name] for name in kinds})


def grid_of(pretraining: dict[str, Any]) -> Grid:
    """Tokens of a clip, by time, rows and columns. Raises ConfigError, ValueError for clips that do not
    divide into them."""
    config = from_document(pretraining)
    assert isinstance(config, MaePretrain | JepaPretrain)
    data, model = config.data, config.model
    return token_grid((data.frames, data.size, data.size, 3), model.tubelet, model.patch)


def _digest(about: ModelAbout, tensors: Mapping[str, Tensor]) -> str:
    """XXH3-128 over what it is and its tensors: 32 hex digits."""
    state = xxhash.xxh3_128(json.dumps(asdict(about), sort_keys=True).encode())
    for name in sorted(tensors):
        state.update(name.encode())
        state.update(tensors[name].contiguous().numpy().data)
    return state.hexdigest()
