"""`python -m surgrec.transcode` from the outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from surgrec import index, transcode


def test_folder_to_index_of_proxies(
    tmp_path: Path, streams: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("films").mkdir()
    streams.make_stream("h264_default", tmp_path / "films" / "a", frames=20, size=(96, 64))
    Path("films/b.mp4").write_bytes(b"")
    arguments = ["films", "--out", "small", "--workers", "1", "--preset", "ultrafast", "--encoder", "cpu"]
    assert transcode.main(arguments) == 0
    shown = capsys.readouterr()
    assert "1 proxies made, 0 unchanged" in shown.out
    assert f"FAILED {tmp_path}/films/b.mp4: the file is empty" in shown.out
    assert "1 of 2 videos failed" in shown.err
    assert "python -m surgrec.pretrain mae-vitb --data.index small/corpus.h5 --data.fps 6.25" in shown.out
    [command] = [line.split() for line in shown.out.splitlines() if "surgrec.index" in line]
    assert index.main([*command[3:], "--workers", "1"]) == 0
    assert "OK" in capsys.readouterr().out


def test_nothing_usable_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_text("text")
    arguments = [
        str(tmp_path / "a.mp4"),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "1",
        "--encoder",
        "cpu",
    ]
    assert transcode.main(arguments) == 1
    assert "1 of 1 videos failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to transcode"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["--index", "none.h5"], "no such index"),
        (["--short-side", "250"], "a positive multiple of 16"),
        (["--content-area", "none.csv"], "no such table"),
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
    assert transcode.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, surgrec.transcode\n"
        "try:\n    surgrec.transcode.main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'numba', 'h5py', 'av', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--content-area" in done.stdout
