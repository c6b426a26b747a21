"""What `python -m surgrec.benchmark run` evaluates: models x data sets x probes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from surgrec.configs.extract import ExtractOptions
from surgrec.configs.probe import Kind, ProbeOptions


@dataclass(frozen=True)
class MatrixConfig:
    """Evaluate every model on every data set by every probe, and append the results to OUT/results.jsonl.

    Features of a model on a data set are extracted once, into OUT/features/. A run that was stopped goes on,
    and what has a result is not evaluated again. What fails is reported, and the rest goes on; the exit
    status is then 1. Processes that torchrun starts share the models and data sets. `run --config FILE
    [options]` takes these options from a YAML file.
    """

    models: tuple[str, ...] = ()
    """As surgrec.extract names them: ckpt:PATH, file:PATH, hf:FOLDER, timm:MODEL, timm:MODEL@FILE,
    random:PRESET, random:RUN, random:timm:MODEL."""
    manifests: tuple[Path, ...] = ()
    """Splits, as `import` and `repair` write them."""
    datasets: tuple[str, ...] = ()
    """Data sets of the benchmark, whose manifests lie in `manifest-folder`."""
    manifest_folder: Path = Path("manifests")
    """Folder of the manifests of `datasets`."""
    splits: Literal["published", "repaired"] = "published"
    """Of `datasets`: NAME.json, as `import` writes it, or NAME.repaired.json, as `repair` does."""
    data_root: Path = Path("data")
    """The folder that the manifests' paths are relative to."""
    probes: tuple[Kind, ...] = ("knn", "linear", "attentive")
    """Probes of each model on each data set."""
    out: Path = Path("matrix")
    """Folder of the results and the features."""
    drop_features: bool = False
    """Remove the features of a model on a data set when its probes are done. Tokens, which attentive probes
    read, are large; the features that are kept serve later runs."""
    print_only: bool = False
    """Say what would be done, and how much room it needs, and do nothing."""
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    """How features are extracted. `pictures` is of the image models among `models`."""
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    """How heads are trained, for all kinds of probes."""
