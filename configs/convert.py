"""What becomes of a file of weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Format = Literal[
    "safetensors",
    "hub",
    "timm",
    "transformers-videomae",
    "transformers-vjepa2",
    "vjepa",
    "videomae",
    "onnx",
    "torch-export",
]


@dataclass(frozen=True)
class ConvertConfig:
    """Tell what a file of weights holds (--report), or write a model of this project in a format that other
    tools read (--to, --out).

    What was written is run beside the model on the same clip before it gets its name: a difference above the
    bound is an error, and nothing is left behind.
    """

    model: Annotated[str, tyro.conf.Positional]
    """For --to: a run folder of surgrec.pretrain, of which the newest checkpoint is taken; one of its
    checkpoints; or a file that --to safetensors wrote. For --report: these, a file or folder of any layout,
    or timm:MODEL or timm:MODEL@FILE, with options behind a #, as in weights.pt#target_encoder."""
    report: bool = False
    """Print what becomes of each tensor: loaded, changed, dropped and why, and what is assumed; of a model of
    this project also what it was pretrained on, when and how."""
    to: Format | None = None
    """safetensors: all weights in one file of ours. hub: a folder for the Hugging Face Hub, with a card.
    timm: for timm.create_model. transformers-*: folders for from_pretrained. vjepa, videomae: checkpoints of
    the original programs. onnx, torch-export: the encoder as a graph, from uint8 clips to tokens."""
    out: Path | None = None
    """For --to: file or folder to write; one that is there is never replaced."""
    part: Literal["encoder", "target_encoder"] | None = None
    """Of JEPA, for formats with one encoder: encoder is the student, target_encoder the teacher, which is
    taken by default."""
    results: Path | None = None
    """For --to hub: results.jsonl of probes and fine-tuning, with rows of this model, for the card."""
    license: str | None = None
    """For --to hub: the licence that the card states, such as apache-2.0."""
