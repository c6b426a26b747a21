"""`python -m surgrec.index` from the outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from surgrec.loaders.packet_index import PacketIndex

from surgrec import index


def test_folder_to_index(tmp_path: Path, streams: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "films").mkdir()
    streams.make_stream("h264_default", tmp_path / "films" / "a", frames=12, size=(96, 64))
    (tmp_path / "films" / "b.mp4").write_bytes(b"")
    out = tmp_path / "corpus.h5"
    arguments = [str(tmp_path / "films"), "--out", str(out), "--domain", "robotic", "--workers", "1"]
    assert index.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "OK" in printed
    assert f"ERROR {tmp_path}/films/b.mp4: the file is empty" in printed
    opened = PacketIndex.open(out)
    assert opened.videos.domain == ["robotic", "robotic"]
    assert opened.videos.dataset == ["films", "films"]


def test_nothing_usable_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_text("text")
    out = tmp_path / "corpus.h5"
    assert index.main([str(tmp_path / "a.mp4"), "--out", str(out), "--workers", "1"]) == 1
    assert "none of these files can be decoded" in capsys.readouterr().err
    assert len(PacketIndex.open(out)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to index"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["--manifest", "none.csv"], "no such manifest"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert index.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, surgrec.index\n"
        "try:\n    surgrec.index.main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'numba', 'h5py', 'av', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--manifest" in done.stdout


def test_remarks_and_wrong_options_are_printed(
    tmp_path: Path, streams: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    path = streams.make_stream("vp8", tmp_path / "a", frames=5, size=(96, 64))
    (tmp_path / "t.csv").write_text(f"path,surgeon\n{path.name},1\n")
    out = str(tmp_path / "c.h5")
    assert index.main(["--manifest", str(tmp_path / "t.csv"), "--out", out, "--workers", "1"]) == 0
    assert "columns ignored: surgeon" in capsys.readouterr().err
    assert index.main([str(path), "--out", out, "--workers", "-1"]) == 1
    assert "--workers is -1" in capsys.readouterr().err
