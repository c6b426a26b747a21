"""Which benchmark data sets are on a machine, and whether their clips can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av

from surgrec.corpus.discovery import EXTENSIONS
from surgrec.evaluation.manifest import ManifestError, Row, SplitManifest, resolve
from surgrec.evaluation.registry import DataSet
from surgrec.loaders.video_stream import UnusableVideoError, describe


@dataclass(frozen=True, slots=True)
class FolderFound:
    """A data set's folder below the data root, None where it is not there, and the videos below it."""

    dataset: DataSet
    folder: Path | None
    videos: int


@dataclass(frozen=True, slots=True)
class ClipsFound:
    """Files of a manifest: how many, how many are there, and what is wrong with the others, by path."""

    files: int
    there: int
    missing: tuple[str, ...]
    faults: tuple[tuple[str, str], ...]

    @property
    def complete(self) -> bool:
        """Whether every clip is there and can be read."""
        return not self.missing and not self.faults


def find_folders(datasets: Sequence[DataSet], data_root: Path) -> list[FolderFound]:
    """Looks for the folders of data sets, by their published name or another one."""
    found = []
    for dataset in datasets:
        folders = [data_root / name for name in (dataset.folder, *dataset.aliases)]
        folder = next((place for place in folders if place.is_dir()), None)
        found.append(FolderFound(dataset, folder, 0 if folder is None else sum(1 for _ in _videos(folder))))
    return found


def check_clips(
    manifest: SplitManifest,
    data_root: Path,
    decode: bool = True,
    threads: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ClipsFound:
    """Whether the files of a manifest are below the data root, and can be read.

    decode: decode a frame of each; otherwise it is opened only. progress: is called with the numbers of files
    that were looked at and of all. Paths that lead out of the data root are faults, and are not opened.
    """
    paths = sorted({row.path for row in manifest.rows})
    missing, faults = [], []
    with ThreadPoolExecutor(max_workers=threads) as pool:
        answers = pool.map(lambda path: _look(data_root, path, decode), paths)
        for number, (path, fault) in enumerate(zip(paths, answers, strict=True), 1):
            if fault == "missing":
                missing.append(path)
            elif fault:
                faults.append((path, fault))
            progress(number, len(paths))
    return ClipsFound(len(paths), len(paths) - len(missing), tuple(missing), tuple(faults))


def _look(data_root: Path, path: str, decode: bool) -> str:
    try:
        file = resolve(data_root, Row(path, 0, "train", path))
        if not file.exists():
            return "missing"
        if not file.is_file():
            return "no file"
        if decode:
            describe(file)
        else:
            file.open("rb").close()
    except (ManifestError, UnusableVideoError) as error:
        return str(error)
    except av.error.FFmpegError as error:
        return f"FFmpeg cannot read it ({error.strerror})"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return ""


def _videos(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
