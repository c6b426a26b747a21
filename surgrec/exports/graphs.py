"""One encoder as a graph, from uint8 clips [B, T, S, S, 3], any B, to tokens float32 [B, N, D].

The graph is of the model as timm computes it, and normalises colours itself. torch.export's is a .pt2 file;
ONNX's is made from that.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from surgrec.configs.convert import ConvertConfig
from surgrec.exports.comparison import GRAPH, Check, clips_for, compare, features_of
from surgrec.exports.source import Part, Source
from surgrec.exports.timm_file import as_timm
from surgrec.exports.video_vit import VideoTransformer

ONNX_NEEDS: Final = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "clips", "tokens"
ONE_FILE: Final = 1_800_000_000
"""Bytes of weights in a file of ONNX: protobuf ends at 2 GiB."""
MADE_WITH: Final = 2
"""Clips at a time that a graph is made with: one, or none, would become part of it."""
BATCHES: Final = (1, 3)
"""Those that it is run on."""


class ClipGraph(nn.Module):
    """A model of timm behind the normalisation of uint8 clips."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: VideoTransformer, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, clips: Tensor) -> Tensor:
        pixels = (clips.float() / 255 - self.mean) / self.std
        return self.network.forward_features(pixels.permute(0, 4, 1, 2, 3))


@torch.no_grad()
def exported(source: Source, part: Part) -> torch.export.ExportedProgram:
    """The graph of one encoder, for any number of clips."""
    model = source.config.model
    graph = ClipGraph(as_timm(source, part), model.mean, model.std).eval()
    dynamic = {"clips": {0: torch.export.Dim("batch", min=1)}}
    return torch.export.export(graph, (clips_for(source, MADE_WITH),), dynamic_shapes=dynamic)


def write_torch(source: Source, config: ConvertConfig, path: Path) -> None:
    """See ExportFormat."""
    packed = io.BytesIO()
    torch.export.save(exported(source, source.part(config.part)), packed)
    with open(path, "wb") as file:
        file.write(packed.getbuffer())
        file.flush()
        os.fsync(file.fileno())


@torch.no_grad()
def verify_torch(source: Source, config: ConvertConfig, path: Path) -> list[Check]:
    """By torch.export.load."""
    program = torch.export.load(path).module()
    return _checks(source, config, "torch.export", program)


def write_onnx(source: Source, config: ConvertConfig, path: Path) -> None:
    """Weights that one file cannot hold lie beside it, in PATH.data. See ExportFormat."""
    program = exported(source, source.part(config.part))
    # PyTorch's exporter tells its steps on the terminal.
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        made: Any = torch.onnx.export(
            program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
        )
    made.save(path, external_data=_bytes_of(program) > ONE_FILE)


def _bytes_of(program: torch.export.ExportedProgram) -> int:
    return sum(tensor.nbytes for tensor in program.state_dict.values())


def verify_onnx(source: Source, config: ConvertConfig, path: Path) -> list[Check]:
    """By ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(clips: Tensor) -> Tensor:
        (tokens,) = session.run([OUTPUT], {INPUT: clips.numpy()})
        return torch.from_numpy(tokens)

    return _checks(source, config, "ONNX Runtime", run)


def _checks(
    source: Source, config: ConvertConfig, program: str, run: Callable[[Tensor], Tensor]
) -> list[Check]:
    """Of BATCHES; a clip's tokens do not depend on the clips beside it, so ours are computed once."""
    clips = clips_for(source, max(BATCHES))
    ours = features_of(source, source.part(config.part), clips)
    return [
        compare(f"features of {count} clips, by {program}", ours[:count], run(clips[:count]), GRAPH)
        for count in BATCHES
    ]
