"""FFmpeg's libraries out of a PyAV wheel, under the names by which others look for them.

    export LD_LIBRARY_PATH=$(python bench/ffmpeg_libraries.py --out DIR)
    python bench/loader_throughput.py --engines hybrid torchcodec torchcodec-cuda spdl spdl-nvdec

torchcodec and SPDL load libavutil.so.N and so on from the system. Where a machine has no FFmpeg, or one that
is too new for them, they find it in DIR: links to the libraries that PyAV brings, which have other names.
Printed is what LD_LIBRARY_PATH is to be.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Args:
    """Which libraries, and where."""

    out: Path
    """Folder of the links."""
    libraries: Path | None = None
    """Folder `av.libs` of an unpacked wheel; by default of the installed PyAV."""


def main(args: Args) -> int:
    folder = args.libraries or installed()
    links = {name: path for path in sorted(folder.glob("lib*.so*")) if (name := plain_name(path.name))}
    if not any(name.startswith("libavutil.so.") for name in links):
        print(f"{folder}: there is no libavutil of a PyAV wheel in it", file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    for name, path in links.items():
        link = args.out / name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    print(f"{args.out.resolve()}:{folder.resolve()}")
    return 0


def installed() -> Path:
    """The folder of the installed PyAV's libraries."""
    import av

    return Path(av.__file__).resolve().parent.parent / "av.libs"


def plain_name(name: str) -> str:
    """`libavutil.so.60` for `libavutil-5809ad29.so.60.26.102`; nothing for names without such a tag."""
    found = re.fullmatch(r"(lib.+)-[0-9a-f]{8}(?:\.[\d.]+)?\.so(\.\d+)?.*", name)
    return f"{found[1]}.so{found[2] or ''}" if found else ""


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, prog="bench/ffmpeg_libraries.py", description=__doc__)))
