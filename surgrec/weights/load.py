"""Models by name, of any layout, behind one interface."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import xxhash

from surgrec.curation.records import CurationError
from surgrec.curation.timm_embedder import timm_identity
from surgrec.models.encoder_form import EncoderForm
from surgrec.models.network_form import NetworkForm
from surgrec.weights.coverage import Coverage
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content, read_file
from surgrec.weights.layout import ClipForm, Encoder, Imported, Part, ReadOptions
from surgrec.weights.layouts import detect, layout_named
from surgrec.weights.names import KINDS, check_options, kind_of, parse_name
from surgrec.weights.ours import open_ours
from surgrec.weights.timm_vit import fetched, read_as, untrained
from surgrec.weights.video_model import VideoModel


@dataclass(frozen=True)
class OpenedModel:
    """A model that was found, and is not on a device yet. identity, coverage: as of VideoModel. clip: what it
    wants to see. form: what builds it again. load: in eval mode; raises WeightsError where weights must be
    fetched and cannot be had."""

    identity: str
    clip: ClipForm
    form: EncoderForm | NetworkForm
    coverage: Coverage | None
    load: Callable[[torch.device], VideoModel]


def load_model(
    name_or_path: str | Path,
    *,
    layout: str | None = None,
    part: Part | None = None,
    size: int | None = None,
    frames: int | None = None,
    device: str | torch.device = "cpu",
) -> VideoModel:
    """A pretrained encoder of any layout in docs/models.md, in eval mode.

    name_or_path: ckpt:RUN, random:PRESET, file:PATH, hf:FOLDER, timm:MODEL, timm:MODEL@FILE,
    random:timm:MODEL, or a path alone.
    layout: for a file whose keys do not tell it. part: `encoder` or `target_encoder`, for a file with both.
    size, frames: of clips, where they shall be others than the model was trained on; its positions are then
    interpolated, which `coverage` says. Raises WeightsError, which names the file, the cause and the remedy.
    """
    asked = ReadOptions(part=part, size=size, frames=frames)
    name = str(name_or_path)
    check_options(name, asked)
    if ":" not in name or os.path.exists(name):
        name = f"{kind_of(Path(name))}:{name}"
    opened = open_model(name, asked, layout)
    if opened is None:
        raise WeightsError(
            f"there is no model {name!r}: give ckpt:RUN, random:PRESET, file:PATH, hf:FOLDER, timm:MODEL, or"
            " a path"
        )
    return opened.load(torch.device(device))


def open_model(
    name: str, asked: ReadOptions | None = None, layout: str | None = None, seed: int = 0
) -> OpenedModel | None:
    """What ckpt:, random:, file:, hf: or timm: names; None for another name.

    `file:PATH#part,size=256,frames=16,layout=NAME` says the options with the name; `asked` goes before them.
    seed: of first weights. Raises WeightsError.
    """
    kind, _, rest = name.partition(":")
    first_weights = kind == "random" and rest.startswith("timm:")
    if (kind not in KINDS and not first_weights) or not rest:
        ours = open_ours(name, seed)
        if ours is None:
            return None
        if layout is not None or (asked is not None and asked != ReadOptions()):
            raise WeightsError(
                f"{name}: a model of this project is taken as it was trained; leave the options out"
            )
        found = ours

        def load(device: torch.device) -> VideoModel:
            return VideoModel(found.load(device), found.clip, found.identity, None).eval()

        return OpenedModel(ours.identity, ours.clip, ours.form, None, load)
    path, options, named = parse_name(rest.removeprefix("timm:") if first_weights else rest)
    for field in asdict(asked or ReadOptions()).items():
        if field[1] is not None:
            options = replace(options, **dict([field]))
    if first_weights:
        return _random(path, options, layout or named, seed)
    if kind == "timm":
        return _timm(path, options, layout or named)
    return _imported(Path(path), options, layout or named)


def _imported(path: Path, options: ReadOptions, layout: str | None) -> OpenedModel:
    content = read_file(path)
    chosen = detect(content) if layout is None else layout_named(layout)
    found, read = _twice(content, lambda again: chosen.read(again, options))
    digest = xxhash.xxh3_128_hexdigest((_choices(options, found.clip) + content.digest()).encode())
    return _opened(f"file:{chosen.name}/{digest}", found, read, str(path))


def _timm(name: str, options: ReadOptions, layout: str | None) -> OpenedModel:
    """MODEL or MODEL@FILE of timm: a file's weights are read at once, others fetched when they are needed."""
    _refuse_layout(f"timm:{name}", layout)
    model, at, file = name.partition("@")
    path = Path(file) if at else None
    try:
        identity = timm_identity(model, path)
    except CurationError as error:
        raise WeightsError(str(error)) from error
    if path is not None:
        found, read = _twice(read_file(path), lambda content: read_as(model, content, options))
    else:
        found, read = fetched(model, options)
    digest = xxhash.xxh3_128_hexdigest(_choices(options, found.clip).encode())
    return _opened(f"{identity}/{digest}", found, read, f"timm:{name}")


def _random(name: str, options: ReadOptions, layout: str | None, seed: int) -> OpenedModel:
    """A model of timm with first weights."""
    _refuse_layout(f"random:timm:{name}", layout)
    found, draw = untrained(name, options, seed)
    digest = xxhash.xxh3_128_hexdigest(_choices(options, found.clip).encode())
    opened = _opened(f"random:timm:{name}/{seed}/{digest}", found, draw, f"random:timm:{name}")
    return replace(opened, coverage=None)


def _refuse_layout(name: str, layout: str | None) -> None:
    if layout is not None:
        raise WeightsError(f"{name}: its layout is timm's; leave layout={layout} out")


def _twice(
    content: Content, importer: Callable[[Content], Imported]
) -> tuple[Imported, Callable[[], Imported]]:
    """What a file holds, and what reads it anew. Raises WeightsError, the second also where the file has
    changed."""
    found, stamp = importer(content), _stamp(content)

    def read() -> Imported:
        again = read_file(content.path)
        if _stamp(again) != stamp:
            raise WeightsError(f"{content.path}: has changed since it was opened; run the command again")
        return importer(again)

    return found, read


def _choices(options: ReadOptions, clip: ClipForm) -> str:
    """What was chosen of a file, as text. A clip is what it came to, whoever said it."""
    shape = {name: value for name, value in asdict(clip).items() if name != "pooling"}
    said = {name: value for name, value in asdict(options).items() if name not in shape}
    # Without a word, the patches' mean was pooled once: files of that time are known again.
    said["pooling"] = None if clip.pooling == "all" else clip.pooling
    return json.dumps([said, shape], sort_keys=True)


def _opened(identity: str, found: Imported, read: Callable[[], Imported], where: str) -> OpenedModel:
    """found: to know what it is. read: gives another one for each device, which shares no memory with it,
    since a network is moved and trained in place. where: for messages."""

    def load(device: torch.device) -> VideoModel:
        encoder = read().encoder
        _check_finite(where, encoder, found.coverage)
        return VideoModel(encoder, found.clip, identity, found.coverage).to(device).eval()

    return OpenedModel(identity, found.clip, found.form, found.coverage, load)


def _check_finite(where: str, encoder: Encoder, coverage: Coverage) -> None:
    """Raises WeightsError for a weight that is NaN or infinite. Reads all of them once."""
    for name, value in encoder.state_dict().items():
        if not value.is_floating_point() or not value.numel():
            continue
        # Two numbers, where isfinite would make a mask as long as the weights. NaN is passed on.
        least, most = value.aminmax()
        if not (math.isfinite(least) and math.isfinite(most)):
            ours = name.removeprefix("model.")
            theirs = next((key for key, loaded in coverage.loaded if loaded == ours), ours)
            raise WeightsError(
                f"{where}: {theirs} has values that are not finite, as after a training that diverged, or of"
                " a damaged file; give an earlier checkpoint, or fetch it again"
            )


def _stamp(content: Content) -> list[tuple[int, int, int]]:
    """What differs where a file was replaced or written to."""
    found = [file.stat() for file in content.files]
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]
