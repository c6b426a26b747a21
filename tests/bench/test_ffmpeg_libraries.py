"""FFmpeg's libraries of PyAV under their own names: a process that looks for them by these finds them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("libavutil-5809ad29.so.60.26.102", "libavutil.so.60"),
        ("libxcb-shm-0be6dfbf.so.0.0.0", "libxcb-shm.so.0"),
        ("libhogweed-006f41d4.so.6.11", "libhogweed.so.6"),
        ("libavutil.so.60", ""),
        ("libavutil-5809ad29.dll", ""),
    ],
)
def test_names(bench_module, name, plain):
    assert bench_module("ffmpeg_libraries").plain_name(name) == plain


def test_libraries_are_found_by_name(bench_module, tmp_path, capsys):
    script = bench_module("ffmpeg_libraries")
    assert script.main(script.Args(tmp_path / "links")) == 0
    assert script.main(script.Args(tmp_path / "links")) == 0, "links that are there already are made again"
    path = capsys.readouterr().out.splitlines()[-1]
    name = next(
        file.name for file in (tmp_path / "links").iterdir() if file.name.startswith("libavcodec.so.")
    )
    code = f"import ctypes; print(ctypes.CDLL({name!r}).avcodec_version() >> 16)"
    environment = os.environ | {"LD_LIBRARY_PATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == name.rsplit(".", 1)[1]


def test_a_folder_without_ffmpeg_is_refused(bench_module, tmp_path, capsys):
    script = bench_module("ffmpeg_libraries")
    assert script.main(script.Args(tmp_path / "links", tmp_path)) == 1
    assert "there is no libavutil" in capsys.readouterr().err
    assert not (tmp_path / "links").exists()
