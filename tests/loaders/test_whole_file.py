"""Files that appear when they are complete."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from surgrec.loaders.whole_file import replacing


def test_what_was_there_is_replaced_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    out.write_text("old")
    with replacing(out) as temporary:
        temporary.write_text("new")
        assert out.read_text() == "old"
    assert out.read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    out.write_text("old")
    with pytest.raises(UnicodeEncodeError), replacing(out) as temporary:
        temporary.write_text("half\ud800", encoding="utf-8")
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "missing" / "out.txt"
    with pytest.raises(FileNotFoundError) as caught, replacing(out) as temporary:
        temporary.touch()
    assert caught.value.filename == str(out)
    other = OSError(errno.EIO, "broken", str(tmp_path / "input"))
    with pytest.raises(OSError, match="broken") as caught_other, replacing(tmp_path / "out.txt"):
        raise other
    assert caught_other.value is other
    assert other.filename == str(tmp_path / "input")
