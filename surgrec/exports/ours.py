"""A model in the files of this project: one safetensors file, and a folder for the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import torch

from surgrec.configs.convert import ConvertConfig
from surgrec.exports.card import run_card
from surgrec.exports.comparison import Check, clips_for, compare, features_of
from surgrec.exports.model_file import write_model
from surgrec.exports.source import Source, open_source
from surgrec.hub import SurgRecModel


def write_file(source: Source, config: ConvertConfig, path: Path) -> None:
    """See ExportFormat."""
    write_model(path, source.about, source.tensors)


@torch.no_grad()
def verify_file(source: Source, config: ConvertConfig, path: Path) -> list[Check]:
    """By reading it again: all weights, and the features."""
    again, clips = open_source(path), clips_for(source)
    checks = [
        compare(f"weights of {name}", tensor, again.tensors[name], 0.0)
        for name, tensor in source.tensors.items()
    ]
    worst = max(checks, key=lambda check: check.difference)
    chosen = source.part(None)
    ours, theirs = features_of(source, chosen, clips), features_of(again, chosen, clips)
    return [Check("all weights", worst.difference, 0.0), compare("features", ours, theirs)]


def write_folder(source: Source, config: ConvertConfig, path: Path) -> None:
    """See ExportFormat."""
    part = source.part(config.part)
    card = run_card(source, part, config.results, config.license)
    SurgRecModel.of(source, part, card).save_pretrained(path)


@torch.no_grad()
def verify_folder(source: Source, config: ConvertConfig, path: Path) -> list[Check]:
    """By SurgRecModel.from_pretrained."""
    model, clips = SurgRecModel.from_pretrained(path, local_files_only=True), clips_for(source)
    ours = features_of(source, source.part(config.part), clips)
    return [compare("features, by from_pretrained", ours, model.forward_features(clips))]
