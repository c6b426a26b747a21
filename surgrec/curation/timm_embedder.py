"""An image model of timm as an embedder: the mean of its pooled features over the pictures of a segment."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from surgrec.curation.embedders import Embedder, Network, half_precision, unit
from surgrec.curation.pictures import KEYS, choose_frames
from surgrec.curation.records import CurationError
from surgrec.loaders.packet_index import PacketIndex

PICTURES: Final = max(KEYS, 5)
"""Most that choose_frames gives of a segment: KEYS key frames, or two, two behind them, and the start."""


def timm_embedder(name: str, file: Path | None) -> Embedder:
    """A model of timm as an embedder. name, file, errors: as of timm_identity."""
    return Embedder(timm_identity(name, file), lambda device: _network(name, file, device))


def timm_identity(name: str, file: Path | None) -> str:
    """Plain text that differs where a model's weights do; nothing is fetched for it.

    name: `resnet50` or `resnet50.a1_in1k`. file: its weights, .safetensors or what torch.save wrote; None for
    those that timm fetches. Raises CurationError for a model that timm does not know, or has no weights of,
    and a file that is gone.
    """
    import timm
    from timm.models import get_pretrained_cfg

    from surgrec.training.tensor_file import file_digest

    check_name(name)
    if file is not None:
        try:
            digest = file_digest(file).xxh3
        except OSError as error:
            raise CurationError(
                f"{file}, the weights of timm:{name}, cannot be read: {error.strerror}"
            ) from error
        return f"timm:{name}@{digest}"
    try:
        known = get_pretrained_cfg(name)
    except RuntimeError:  # of a tag that it does not know
        known = None
    if known is None or not known.has_weights:
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        hint = (
            f"it has those of {', '.join(tags[:5])}" if tags else "give those of a file, as timm:MODEL@FILE"
        )
        raise CurationError(f"timm has no pretrained weights of {name}: {hint}")
    tagged = f"{known.architecture}.{known.tag}" if known.tag else str(known.architecture)
    return f"timm:{tagged}"


def check_name(name: str) -> None:
    """Raises CurationError for a model that timm does not know."""
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise CurationError(
            f"timm {timm.__version__} has no model {name!r}; {hint}timm.list_models() names all of them"
        )


@dataclass(frozen=True)
class ImageNetwork:
    """A model of timm, without its head, and what it wants to see. size: of the frames that it is given."""

    model: Any
    size: int
    picture: int
    mean: Tensor
    std: Tensor

    def values(self, pictures: Tensor) -> Tensor:
        """float32 [n, 3, picture, picture], normalised, of uint8 [n, size, size, 3]."""
        pixels = pictures.permute(0, 3, 1, 2).float()
        if self.size != self.picture:
            pixels = functional.interpolate(
                pixels, (self.picture, self.picture), mode="bicubic", antialias=True
            )
        return (pixels.clamp(0, 255) / 255 - self.mean) / self.std


def timm_model(name: str, file: Path | None, size: int | None = None) -> Any:
    """A model of timm with its weights, without its head, on the CPU. size: of the pictures of a model whose
    weights timm fetches, in pixels, for another than its own. Raises CurationError where they cannot be had
    or do not fit."""
    import timm

    if file is None:
        try:
            other: dict[str, Any] = {} if size is None else {"img_size": size}
            model = timm.create_model(name, pretrained=True, num_classes=0, **other)
        except Exception as error:  # each place that timm fetches from has errors of its own
            raise CurationError(
                f"the pretrained weights of timm:{name} cannot be had: {_first_line(error)}. Without a"
                f" network, fetch them elsewhere (timm.create_model({name!r}, pretrained=True), then"
                f" safetensors.torch.save_file(model.state_dict(), FILE)) and give timm:{name}@FILE"
            ) from error
    else:
        model = timm.create_model(name, num_classes=0)
        _load(model, name, file)
    return model


def image_network(name: str, model: Any, device: torch.device) -> ImageNetwork:
    """Raises CurationError for a model of other pictures than square RGB ones."""
    from timm.data.config import resolve_model_data_config

    data = resolve_model_data_config(model)
    channels, height, width = data["input_size"]
    if (channels, height) != (3, width):
        raise CurationError(
            f"timm:{name} wants pictures of {data['input_size']}; square RGB ones are made here"
        )
    mean, std = (torch.tensor(data[key], device=device).view(3, 1, 1) for key in ("mean", "std"))
    # The loader scales by a triangular filter: to twice the side, so that the last halving is bicubic.
    size = 2 * height if data["interpolation"] == "bicubic" else height
    return ImageNetwork(model.to(device).eval(), size, height, mean, std)


def _network(name: str, file: Path | None, device: torch.device) -> Network:
    network = image_network(name, timm_model(name, file), device)

    @torch.no_grad()
    def encode(frames: Tensor, shown: list[tuple[int, ...]]) -> Tensor:
        # Rows that repeat a picture only fill up.
        fresh = [[k for k, at in enumerate(row) if k == 0 or at != row[k - 1]] for row in shown]
        pictures = torch.cat([clip[rows] for clip, rows in zip(frames, fresh, strict=True)])
        values = network.values(pictures)
        with half_precision(device):
            features = network.model(values)
        if features.ndim != 2:
            raise CurationError(f"timm:{name} pools no features: they are {tuple(features.shape)} of a batch")
        means = [part.mean(0) for part in features.float().split([len(rows) for rows in fresh])]
        return unit(torch.stack(means))

    return Network(network.size, _five, encode)


def _five(index: PacketIndex, video: int, start: int, end: int) -> tuple[int, ...]:
    """The frames that curation looks at, the last one repeated to make PICTURES."""
    chosen = choose_frames(index, video, start, end)
    return chosen + (chosen[-1],) * (PICTURES - len(chosen))


def _load(model: Any, name: str, file: Path) -> None:
    """Fills a model without a head; that of the file is left out, and nothing else."""
    from timm.models import load_state_dict

    try:
        weights = load_state_dict(str(file), weights_only=True)
        left = model.load_state_dict(weights, strict=False)
    except Exception as error:  # of pickle, safetensors, and torch for shapes that differ
        raise CurationError(
            f"{file} does not hold weights of timm:{name}: {_first_line(error)}. Give a .safetensors or a"
            f" .pth of tensors alone, of this model"
        ) from error
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    strange = [key for key in left.unexpected_keys if key.rpartition(".")[0] not in heads]
    for keys, what in ((left.missing_keys, "lacks"), (strange, "holds besides")):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise CurationError(
                f"{file} does not fit timm:{name}: it {what} {', '.join(keys[:3])}{more}. Give weights of"
                f" this model"
            )


def _first_line(error: Exception) -> str:
    """Of a message that may be long, with no full stop at its end."""
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(". ") if lines else "") or type(error).__name__
