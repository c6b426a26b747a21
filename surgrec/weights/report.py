"""What becomes of each tensor of a file, and how a model of ours was made, for the person at the terminal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from surgrec.configs.convert import ConvertConfig
from surgrec.curation.readable import readable
from surgrec.exports.model_file import ModelAbout, about_of, header_of
from surgrec.exports.pretraining import Pretraining, pretraining_of
from surgrec.exports.source import Source, open_source
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import read_file
from surgrec.weights.layout import ClipForm
from surgrec.weights.load import open_model
from surgrec.weights.names import KINDS, kind_of, parse_name
from surgrec.weights.ours import form_and_clip
from surgrec.weights.video_model import rate_of


def report(config: ConvertConfig) -> str:
    """The coverage table of a file of any layout, and the clips that its model wants; of a model of this
    project, also how it was pretrained. Raises WeightsError."""
    for option in ("out", "part", "results", "license"):
        if getattr(config, option) is not None:
            behind = "; it stands behind the path's #" if option == "part" else ""
            raise WeightsError(f"--{option} is for --to{behind}; leave it out")
    kind, _, rest = config.model.partition(":")
    if kind == "ckpt":
        return _ours(open_source(Path(rest)))
    if kind in KINDS:
        return _foreign(config.model, "" if kind == "timm" else rest)
    if kind_of(Path(config.model)) == "ckpt":
        return _ours(open_source(Path(config.model)))
    return _foreign(f"file:{config.model}", config.model)


def _ours(source: Source) -> str:
    """Of a run or a checkpoint."""
    about = source.about
    counts = Counter(name.partition(".")[0] for name in source.tensors)
    tensors = [f"  {name}.*  {count}" for name, count in counts.items()]
    return "\n".join(
        [
            f"{source.kind}, ViT-{source.config.model.size}",
            *_pretraining(about, pretraining_of(about, source.run, source.recipe, readable)),
            f"tensors ({len(source.tensors)})",
            *tensors,
            *_end(form_and_clip(source.config)[1], about.identity),
        ]
    )


def _foreign(name: str, path: str) -> str:
    """path: of the file, with options; empty where there is none."""
    opened = open_model(name)
    assert opened is not None
    assert opened.coverage is not None
    # Weights that are fetched are there only when they are asked for.
    opened.load(torch.device("cpu"))
    about = _about(path)
    made = [] if about is None else _pretraining(about, pretraining_of(about, None, None, readable))
    return "\n".join([opened.coverage.table(), *made, *_end(opened.clip, opened.identity)])


def _about(path: str) -> ModelAbout | None:
    """What the header of a file of ours says."""
    if not path:
        return None
    header = header_of(read_file(Path(parse_name(path)[0])).about)
    return about_of(header) if header else None


def _pretraining(about: ModelAbout, found: Pretraining) -> list[str]:
    lines = [f"pretrained for {about.step:,} steps"]
    if found.data is None:
        known = f"packet index `{about.index_digest}`" if about.index_digest else "no digest of an index"
        lines += ["data", f"  {known}; the file holds no record of a run"]
    else:
        lines += ["data", *(f"  {line}" for line in found.data)]
        lines += ["training", *(f"  {line}" for line in found.training)]
    lines.append("recipe" if found.scheduled else "model (the schedule is not in the file)")
    width = max(len(name) for name, _ in found.recipe)
    return [*lines, *(f"  {name:<{width}}  {value}" for name, value in found.recipe)]


def _end(clip: ClipForm, identity: str) -> list[str]:
    rate = ", ".join(f"{name} {value:g}" for name, value in rate_of(clip).items()) or "spread evenly"
    tokens = "places of a map" if clip.patch is None else f"{clip.tubelet} x {clip.patch} x {clip.patch}"
    pooling = "" if clip.pooling is None else f", pooling {clip.pooling}"
    return [
        f"clips of {clip.frames} frames ({rate}) of {clip.size} x {clip.size} pixels; tokens of {tokens},"
        f" width {clip.width}{pooling}",
        f"identity {identity}",
    ]
