"""Tables of content areas, and options out of range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from surgrec.configs.transcode import TranscodeConfig

from surgrec.corpus.discovery import InputError
from surgrec.transcoding.content_area import read_content_areas
from surgrec.transcoding.options import OptionError, ProxyOptions


def test_csv_and_parquet_agree(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,top,left,height,width,score\nfilms/x.mp4,1,2,30,40.0,0.5\n")
    rows = [{"path": "films/x.mp4", "top": 1, "left": 2, "height": 30, "width": 40}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = {str(tmp_path / "films" / "x.mp4"): (1, 2, 30, 40)}
    assert read_content_areas(tmp_path / "a.csv") == expected
    assert read_content_areas(tmp_path / "a.parquet") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,top,left,height\nx,1,2,3\n", "row 1 needs path, top, left, height, width"),
        ("path,top,left,height,width\nx,1,2,3,4.5\n", "4.5 is not a whole number"),
        ("path,top,left,height,width\nx,1,2,,4\n", "row 1"),
        ("path,top,left,height,width\nx,0,0,8,8\nx,0,0,9,9\n", "row 2 gives x a second rectangle"),
    ],
)
def test_bad_tables(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_content_areas(tmp_path / "a.csv")


def test_unreadable_tables(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such table"):
        read_content_areas(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"path\xff\xfe")
    (tmp_path / "a.parquet").write_text("no table")
    with pytest.raises(InputError, match="not a CSV table"):
        read_content_areas(tmp_path / "a.csv")
    with pytest.raises(InputError, match="not a Parquet table"):
        read_content_areas(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"short_side": 250}, "--short-side 250: a positive multiple of 16"),
        ({"rate": -1.0}, "--rate -1"),
        ({"rate": float("nan")}, "--rate nan"),
        ({"gop": -1}, "--gop -1"),
        ({"quality": 60.0}, "--quality 60"),
        ({"ssim_frames": -1}, "--ssim-frames -1"),
        ({"min_ssim": 1.0}, "--min-ssim 1"),
        ({"workers": -1}, "--workers -1"),
        ({"timeout": 0.0}, "--timeout 0"),
    ],
)
def test_options_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ProxyOptions.of(TranscodeConfig(**values))


def test_digest_follows_what_shapes_a_proxy() -> None:
    options = ProxyOptions.of(TranscodeConfig())
    assert options.rate == "25/4"
    assert ProxyOptions.from_json(options.to_json()) == options
    assert options.digest == ProxyOptions.of(TranscodeConfig(workers=7, timeout=9.0)).digest
    others = [{"short_side": 128}, {"rate": 5.0}, {"gop": 8}, {"codec": "hevc"}, {"quality": 21.0}]
    digests = {ProxyOptions.of(TranscodeConfig(**values)).digest for values in others}  # type: ignore[arg-type]
    assert len(digests | {options.digest}) == 6
