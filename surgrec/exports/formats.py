"""What a model can be written as: a dictionary of formats by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from surgrec.configs.convert import ConvertConfig, Format
from surgrec.exports import graphs, original, ours, timm_file, transformers_folder
from surgrec.exports.comparison import Check
from surgrec.exports.source import Source

Write = Callable[[Source, ConvertConfig, Path], None]
Verify = Callable[[Source, ConvertConfig, Path], list[Check]]


SAFETENSORS: Final = (".safetensors",)
TORCH: Final = (".pt", ".pth", ".tar")


@dataclass(frozen=True)
class ExportFormat:
    """write: to a path that is not there, a file or a folder; raises WeightsError for a model that the format
    cannot hold, OSError. verify: runs what was written beside the model; raises WeightsError. needs: modules
    that are not part of every installation. one_encoder: whether it holds one,
    which --part may choose. suffixes: one of which a file's name ends in; none of a folder."""

    write: Write
    verify: Verify
    one_encoder: bool
    suffixes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


FORMATS: Final[dict[Format, ExportFormat]] = {
    "safetensors": ExportFormat(ours.write_file, ours.verify_file, False, SAFETENSORS),
    "hub": ExportFormat(ours.write_folder, ours.verify_folder, True),
    "timm": ExportFormat(timm_file.write, timm_file.verify, True, SAFETENSORS),
    "transformers-videomae": ExportFormat(
        transformers_folder.write_videomae, transformers_folder.verify_videomae, True, needs=("transformers",)
    ),
    "transformers-vjepa2": ExportFormat(
        transformers_folder.write_vjepa2, transformers_folder.verify_vjepa2, True, needs=("transformers",)
    ),
    "vjepa": ExportFormat(original.write_vjepa, original.verify_vjepa, False, TORCH),
    "videomae": ExportFormat(original.write_videomae, original.verify_videomae, False, TORCH),
    "onnx": ExportFormat(graphs.write_onnx, graphs.verify_onnx, True, (".onnx",), graphs.ONNX_NEEDS),
    "torch-export": ExportFormat(graphs.write_torch, graphs.verify_torch, True, (".pt2",)),
}
