"""The README's chart: which results it takes, and that it is drawn from them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "plot_speed.py"


@pytest.fixture(scope="module")
def plot_speed() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plot_speed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["plot_speed"] = module
    spec.loader.exec_module(module)
    return module


def write(
    path: Path, bench: str, date: str, rows: list[tuple[str, str, str, float]], device: str = "CPU"
) -> None:
    content = {
        "bench": bench,
        "date": date,
        "device": device,
        "cpus": 2,
        "rows": [
            {"name": name, "corpus": corpus, "metric": metric, "value": v, "low": v * 0.9, "high": v * 1.1}
            for name, corpus, metric, v in rows
        ],
    }
    path.write_text(json.dumps(content))


def test_the_newest_result_of_each_device_counts(tmp_path: Path, plot_speed: ModuleType) -> None:
    row = ("cpu", "480g250", "clips_per_s")
    write(tmp_path / "loader_throughput-a-20260102.json", "loader_throughput", "2026-01-02", [(*row, 1.0)])
    write(tmp_path / "loader_throughput-a-20260102-2.json", "loader_throughput", "2026-01-02", [(*row, 2.0)])
    write(tmp_path / "loader_throughput-a-20260102-10.json", "loader_throughput", "2026-01-02", [(*row, 3.0)])
    write(
        tmp_path / "loader_throughput-b-20260101.json",
        "loader_throughput",
        "2026-01-01",
        [(*row, 4.0)],
        "GPU",
    )
    found = plot_speed.newest(sorted(tmp_path.glob("*.json")))
    values = {device: content["rows"][0]["value"] for (_, device), content in found.items()}
    assert values == {"CPU": 3.0, "GPU": 4.0}


def test_a_later_run_on_other_corpora_adds_to_the_earlier(tmp_path: Path, plot_speed: ModuleType) -> None:
    bench, metric = "loader_throughput", "clips_per_s"
    first = [
        ("cpu", "480g250", metric, 1.0),
        ("decord", "480g250", metric, 2.0),
        ("cpu", "256g16", metric, 3.0),
    ]
    second = [("cpu", "256g16", metric, 4.0), ("cpu", "proxy16", metric, 5.0)]
    write(tmp_path / f"{bench}-a-20260102.json", bench, "2026-01-02", first)
    write(tmp_path / f"{bench}-a-20260102-2.json", bench, "2026-01-02", second)
    (found,) = plot_speed.newest(sorted(tmp_path.glob("*.json"))).values()
    values = {(row["name"], row["corpus"]): row["value"] for row in found["rows"]}
    wanted = {("cpu", "480g250"): 1.0, ("decord", "480g250"): 2.0}
    assert values == wanted | {("cpu", "256g16"): 4.0, ("cpu", "proxy16"): 5.0}


def test_panels_hold_what_was_measured(tmp_path: Path, plot_speed: ModuleType) -> None:
    write(
        tmp_path / "s.json",
        "sampler_speed",
        "2026-01-01",
        [("surgrec", "858000", "draws_per_s", 5e7), ("surgrec", "858000", "seconds_to_build", 3.0)],
    )
    (panel,) = plot_speed.panels(plot_speed.newest([tmp_path / "s.json"]))
    assert panel.bars == (("858000", "surgrec", pytest.approx(50), pytest.approx(45), pytest.approx(55)),)


def test_the_smallest_number_of_cores_is_drawn(plot_speed: ModuleType) -> None:
    rows = [
        {
            "name": "cpu",
            "corpus": "480g250",
            "cores": n,
            "metric": "clips_per_s",
            "value": n,
            "low": n,
            "high": n,
        }
        for n in (2, 1, 4)
    ]
    results = {("loader_throughput", "CPU"): {"cpus": 4, "date": "2026-01-01", "rows": rows}}
    assert [panel.bars for panel in plot_speed.panels(results)] == [(("480g250, 1 core", "cpu", 1, 1, 1),)]
    assert plot_speed.case({"corpus": "480g250", "cores": 2}) == "480g250, 2 cores"
    assert plot_speed.case({"corpus": "858000"}) == "858000"


def test_of_other_libraries_the_fastest_way_is_drawn(plot_speed: ModuleType) -> None:
    speeds = {
        "dali": 5,
        "nvdec": 9,
        "dali-readers": 1,
        "dali-decoders": 2,
        "torchcodec": 4,
        "torchcodec-cuda": 3,
    }
    rows = [{"name": name, "corpus": "mixed", "value": value} for name, value in speeds.items()]
    rows.append({"name": "nvdec", "corpus": "mixed/480p", "value": 50})
    rows.append({"name": "torchcodec-cuda", "corpus": "256g16", "value": 8})
    kept = [(row["name"], row["corpus"]) for row in plot_speed.fastest_ways(rows)]
    assert kept == [
        ("dali", "mixed"),
        ("nvdec", "mixed"),
        ("dali-decoders", "mixed"),
        ("torchcodec", "mixed"),
        ("torchcodec-cuda", "256g16"),
    ]


def test_the_machine_with_most_others_is_drawn_and_what_was_compared(
    tmp_path: Path, plot_speed: ModuleType
) -> None:
    bench, metric = "loader_throughput", "clips_per_s"
    ours = [("nvdec", "480g250", metric, 9.0), ("nvdec", "proxy16", metric, 99.0)]
    write(tmp_path / "a.json", bench, "2026-01-03", [*ours, ("decord", "480g250", metric, 1.0)], "NVIDIA A")
    more = [("decord", "480g250", metric, 1.0), ("dali-readers", "480g250", metric, 0.5)]
    write(tmp_path / "b.json", bench, "2026-01-01", [*ours, *more], "NVIDIA B")
    write(tmp_path / "c.json", bench, "2026-01-02", [*ours, *more], "CPU")
    (panel,) = plot_speed.panels(plot_speed.newest(sorted(tmp_path.glob("*.json"))))
    assert "NVIDIA B" in panel.title
    assert [bar[:2] for bar in panel.bars] == [
        ("480g250", name) for name in ("nvdec", "decord", "dali-readers")
    ]


def test_training_is_drawn_by_preset(tmp_path: Path, plot_speed: ModuleType) -> None:
    def rows(name: str, case: str, value: float, batch: int) -> dict[str, object]:
        same = {"corpus": "synthetic", "metric": "clips_per_s", "low": value, "high": value}
        return {"name": name, "case": case, "value": value, "batch": batch, **same}

    def store(number: int, *content: dict[str, object]) -> None:
        document = {"bench": "train_throughput", "date": "2026-01-01", "device": "NVIDIA A", "cpus": 2}
        (tmp_path / f"t-a-20260101-{number}.json").write_text(json.dumps(document | {"rows": content}))

    store(1, rows("mae", "mae", 9.0, 1), rows("mae", "mae", 8.0, 2), rows("other", "mae", 3.0, 1))
    store(2, rows("jepa", "jepa", 7.0, 1))
    (panel,) = plot_speed.panels(plot_speed.newest(sorted(tmp_path.glob("*.json"))))
    assert [bar[:3] for bar in panel.bars] == [
        ("mae, synthetic", "surgrec", 9.0),
        ("mae, synthetic", "other", 3.0),
    ]


def test_draws_a_picture(tmp_path: Path, plot_speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "speed.png"
    monkeypatch.setattr(sys, "argv", ["plot_speed.py", "--results", str(tmp_path), "--out", str(out)])
    assert plot_speed.main() == 1
    rows = [("cpu", "480g250", "clips_per_s", 9.0), ("decord", "480g250", "clips_per_s", 3.0)]
    write(tmp_path / "l.json", "loader_throughput", "2026-01-01", rows)
    assert plot_speed.main() == 0
    assert out.read_bytes().startswith(b"\x89PNG")
