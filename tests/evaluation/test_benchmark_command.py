from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from surgrec.benchmark import main
from surgrec.evaluation.manifest import read_manifest
from surgrec.evaluation.results import ClassResult, Interval, Result, append_result, document_of

ROWS = {
    "train": [(exam, number) for exam in range(8) for number in range(3)],
    "val": [(exam, number) for exam in range(8, 11) for number in range(2)],
    "test": [(exam, number) for exam in range(10, 13) for number in range(2, 4)],
}


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """Kvasir-Capsule by its layout, with an examination in both val and test, and a folder that is none."""
    folder = tmp_path / "splits" / "kvasir-capsule"
    folder.mkdir(parents=True)
    names = ("Ileocecal valve", "blood-fresh")
    for split, clips in ROWS.items():
        lines = [
            f'"__DATA_ROOT__/kvasir-capsule/videos/{names[exam % 2]}/{exam:016x}_{1000 * number}-'
            f'{1000 * number + 80}.mp4" {exam % 2}\n'
            for exam, number in clips
        ]
        (folder / f"{split}.csv").write_text("".join(lines))
    return folder.parent


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_import_lint_repair_lint(splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "manifests"
    status, text, _ = run(capsys, "import", splits, "--data-root", tmp_path, "--out", out)
    path = out / "kvasir-capsule.json"
    assert status == 0
    assert text.startswith(f"{path}: 24/6/6 rows train/val/test, digest {read_manifest(path).digest}\n")
    status, text, _ = run(capsys, "lint", path)
    assert status == 1
    assert "error   groups-in-val-and-test: 1 groups are in both val and test; they cover 2 of 6" in text
    status, text, _ = run(capsys, "repair", path, "--parts", 60, 20, 20, "--seed", 3)
    repaired = out / "kvasir-capsule.repaired.json"
    assert status == 0
    assert "train:val:test = 60:20:20" in text
    before = repaired.read_bytes()
    assert run(capsys, "repair", path, "--parts", 60, 20, 20, "--seed", 3)[0] == 0
    assert repaired.read_bytes() == before
    status, text, _ = run(capsys, "lint", path, repaired, "--json")
    assert status == 1
    first, second = json.loads(text)
    assert first["digest"] != second["digest"]
    assert {finding["code"] for finding in first["findings"]} - {
        finding["code"] for finding in second["findings"]
    } >= {"groups-in-val-and-test"}
    assert not [finding for finding in second["findings"] if "-in-" in finding["code"]]


def test_one_bad_set_does_not_stop_the_others(
    splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (splits / "cat-21").mkdir()
    (splits / "cat-21" / "train.csv").write_text("/etc/passwd 0\n")
    out = tmp_path / "manifests"
    status, _, errors = run(capsys, "import", splits, "--out", out)
    assert status == 1
    assert "cat-21/train.csv: line 1: '/etc/passwd' lies neither below" in errors
    assert [file.name for file in out.iterdir()] == ["kvasir-capsule.json"]
    (out / "broken.json").write_text("{")
    status, text, errors = run(capsys, "lint", out / "broken.json", out / "kvasir-capsule.json")
    assert status == 1
    assert "broken.json: not a JSON file" in errors
    assert "kvasir-capsule: 24/6/6" in text
    status, _, errors = run(capsys, "repair", out / "broken.json", out / "kvasir-capsule.json")
    assert status == 1
    assert (out / "kvasir-capsule.repaired.json").exists()
    status, _, errors = run(capsys, "repair", out / "kvasir-capsule.json", "--drop-classes", "blood-fresh")
    assert status == 1
    assert "kvasir-capsule.json: clips of fewer than two classes are left" in errors


def test_what_this_command_wrote_is_not_written_over(
    splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(capsys, "import", splits, "--out", tmp_path / "a")[0] == 0
    assert run(capsys, "import", splits, "--strict-groups", "--out", tmp_path / "b")[0] == 0
    name = "kvasir-capsule.json"
    status, _, errors = run(capsys, "repair", tmp_path / "a" / name, tmp_path / "b" / name, "--out", out)
    assert status == 1
    assert f"{tmp_path / 'b' / name}: {out / 'kvasir-capsule.repaired.json'} is of another manifest" in errors
    assert len(list(out.iterdir())) == 1
    for folder in (splits / "LDPolyVideo", splits / "LDPolypVideo"):
        folder.mkdir()
        for split in ("train", "val", "test"):
            (folder / f"{split}.csv").write_text(f"__DATA_ROOT__/{folder.name}/videos/0_1_2_3_polyps.mp4 1\n")
    status, text, errors = run(capsys, "import", splits, "--out", out)
    assert status == 1
    assert "LDPolypVideo: " in errors
    assert "is of another folder of this data set" in errors
    assert "ldpolypvideo.json: 1/1/1 rows" in text


def test_tables_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    results, page = tmp_path / "results.jsonl", tmp_path / "page.html"
    figures = {"accuracy": Interval(0.5)}
    classes = (ClassResult("größer 腸", None, None),)
    made = Result(
        "m", "made", "ab", "", "probe-knn", 1, 1, 1, figures, {}, classes, (), 0, {}, {}, "", {}, ""
    )
    append_result(results, document_of(made))
    command = [sys.executable, "-m", "surgrec.benchmark", "table", results, "--form", "html", "--out", page]
    place = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(command, env=place, check=True)
    assert "größer 腸" in page.read_text(encoding="utf-8")


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = run(capsys, "list")
    assert status == 0
    assert "sar-rarp50" in text
    assert run(capsys, "list", "SAR-RARP50")[1].startswith("SAR-RARP50 (sar-rarp50)\n")
    assert len(json.loads(run(capsys, "list", "--json")[1])) == 17
    status, _, errors = run(capsys, "list", "cholec81")
    assert status == 1
    assert errors.startswith("surgrec.benchmark: 'cholec81' is no data set of the benchmark; they are ")


def test_check(splits: Path, tmp_path: Path, streams: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    out, root = tmp_path / "manifests", tmp_path / "data"
    status, _, errors = run(capsys, "check", "--data-root", root)
    assert status == 1
    assert "no such folder; name that of the data sets, --data-root DIR" in errors
    assert run(capsys, "import", splits, "--data-root", root, "--out", out)[0] == 0
    manifest = read_manifest(out / "kvasir-capsule.json")
    good = tmp_path / "good.mp4"
    streams.make_stream("h264_default", good, frames=4, size=(64, 48))
    for row in manifest.rows:
        (root / row.path).parent.mkdir(parents=True, exist_ok=True)
        (root / row.path).write_bytes(good.read_bytes())
    status, text, _ = run(capsys, "check", out / "kvasir-capsule.json", "--data-root", root)
    assert status == 0
    assert text == "kvasir-capsule: 36 of 36 files are there, 0 of them cannot be used\n"
    status, text, _ = run(capsys, "check", "--data-root", root)
    assert status == 0
    assert f"Kvasir-Capsule: {root / 'kvasir-capsule'}, 36 videos\n" in text
    assert "Cholec80: not there\n" in text
    (root / manifest.rows[0].path).unlink()
    (root / manifest.rows[1].path).write_bytes(b"")
    status, text, _ = run(capsys, "check", out / "kvasir-capsule.json", "--data-root", root)
    assert status == 1
    assert f"missing: {manifest.rows[0].path}\n" in text
    assert f"  {manifest.rows[1].path}: " in text
    status, text, _ = run(capsys, "check", out / "kvasir-capsule.json", "--data-root", root, "--json")
    (record,) = json.loads(text)
    assert (record["files"], record["there"], len(record["faults"])) == (36, 35, 1)


def test_no_room_to_write(splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    status, _, errors = run(capsys, "import", splits, "--out", tmp_path / "file" / "below")
    assert status == 1
    assert "file" in errors
    assert "what is written is kept" in errors


@pytest.mark.parametrize("command", ["list", "check", "import", "lint", "repair", "compare"])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = f"""
import sys
from surgrec.benchmark import main
try:
    main([{command!r}, "--help"])
except SystemExit as stop:
    assert not stop.code
print([name for name in ("av", "numba", "numpy", "torch") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert f"usage: python -m surgrec.benchmark {command}" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
