"""What is done with the benchmark's data sets and their splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from surgrec.configs.matrix import MatrixConfig


@dataclass(frozen=True)
class ListConfig:
    """Show the data sets of the benchmark: what they are of, how their files are laid out, their terms."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Data sets to show in full; a table of all by default."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class CheckConfig:
    """Say which data sets are there, complete and readable.

    With manifests every file that they name is looked for, and a frame of it decoded; without, only the
    folders of the data sets.
    """

    manifests: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Manifests, as `import` writes them."""
    data_root: Path = Path("data")
    """Folder of the data sets."""
    decode: bool = True
    """Decode one frame of each file; otherwise files are opened only."""
    threads: int = 4
    """Files looked at side by side."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class ImportConfig:
    """Read published splits, train.csv, val.csv and test.csv a data set, into one manifest each.

    A data set that cannot be imported is named with the reason; the others are written.
    """

    splits: Annotated[Path, tyro.conf.Positional]
    """Folder `splits` of the release, or the folder of one data set in it."""
    data_root: Path = Path("data")
    """Folder of the data sets, for rows with whole paths, and to see links that lead out of it. The videos
    need not be there."""
    out: Path = Path("manifests")
    """Folder of the manifests, OUT/<data set>.json."""
    strict_groups: bool = False
    """Group by the stricter rule of a data set that has one: JIGSAWS by surgeon."""


@dataclass(frozen=True)
class LintConfig:
    """Find what is wrong with splits. The exit status is 1 where there is an error."""

    manifests: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Manifests, as `import` and `repair` write them."""
    difference: float = 0.05
    """Difference between two accuracies that the test set should be able to show: 0.05 is 5 points."""
    covered: float = 0.5
    """Share of a clip that lies within a clip of another label, from which that is an error."""
    gap_seconds: float = 1.0
    """Clips of one video that lie no further apart are neighbours. Where names count frames, 30 frames."""
    examples: int = 3
    """Rows that are shown of each finding."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class RepairConfig:
    """Write splits without leaks: whole groups in train, val and test, classes in the shares of the set.

    The manifests that are read stay as they are. The rules of what was done stand in the new ones.
    """

    manifests: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Manifests, as `import` writes them."""
    out: Path | None = None
    """Folder of the repaired manifests, named <name>.repaired.json; that of each manifest by default."""
    parts: tuple[int, int, int] = (70, 15, 15)
    """Whole numbers in whose proportion train, val and test are."""
    seed: int = 0
    """Of the order in which equal groups are dealt out."""
    drop_classes: tuple[str, ...] = ()
    """Names of classes to leave out, such as headers read as classes."""
    drop_covered: bool = False
    """Leave out clips of which half or more lies within a clip of another label."""


@dataclass(frozen=True)
class TableConfig:
    """Make a table of results, with intervals, baselines, and the published numbers beside them.

    Of several results of one model in one way on one split the last one counts.
    """

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files of results, as `python -m surgrec.probe` writes them."""
    form: Literal["markdown", "latex", "csv", "html"] = "markdown"
    """html is one page by itself, with confusion matrices and classes."""
    out: Path | None = None
    """Where the table goes; it is printed by default."""


@dataclass(frozen=True)
class CompareConfig:
    """Compare two models on the test rows that both were scored on: differences, first less second, with 95 %
    intervals and p-values by paired bootstrap over groups, for each data set and over them.

    Of several results of one model in one way on one split the last one counts. Results on different splits
    are refused.
    """

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files of results, as `python -m surgrec.probe` writes them."""
    models: tuple[str, str]
    """The two models, as the results name them; the same one twice to compare two modes of it."""
    manifests: tuple[Path, ...]
    """Manifests of the splits: they hold the truth and the groups."""
    modes: tuple[str, ...] = ()
    """Modes of evaluation, such as probe-linear: one for both models, or one for each; by default the only
    one there is."""
    form: Literal["text", "json", "markdown"] = "text"
    out: Path | None = None
    """Where the comparison goes; it is printed by default."""
    resamples: int = 1000
    """Resamples of the bootstrap over groups."""
    seed: int = 0
    """Of the resamples."""


Command = (
    Annotated[ListConfig, tyro.conf.subcommand("list")]
    | Annotated[CheckConfig, tyro.conf.subcommand("check")]
    | Annotated[ImportConfig, tyro.conf.subcommand("import")]
    | Annotated[LintConfig, tyro.conf.subcommand("lint")]
    | Annotated[RepairConfig, tyro.conf.subcommand("repair")]
    | Annotated[MatrixConfig, tyro.conf.subcommand("run")]
    | Annotated[TableConfig, tyro.conf.subcommand("table")]
    | Annotated[CompareConfig, tyro.conf.subcommand("compare")]
)
