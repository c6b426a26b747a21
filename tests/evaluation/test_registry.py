from __future__ import annotations

import json

import pytest

from surgrec.evaluation.registry import Span, read_name
from surgrec.evaluation.registry_report import as_records, in_full, table
from surgrec.evaluation.registry_table import DATASETS, by_folder, chosen


def test_sixteen_and_pitvis() -> None:
    assert len(DATASETS) == 17
    assert [key for key, dataset in DATASETS.items() if not dataset.in_paper] == ["pitvis"]
    folders = [name for dataset in DATASETS.values() for name in (dataset.folder, *dataset.aliases)]
    assert len(set(folders)) == len(folders)
    for dataset in DATASETS.values():
        assert by_folder(dataset.folder) is dataset
        assert dataset.homepage.startswith("http")
        assert dataset.licence
        assert len(dataset.class_names) in (0, dataset.classes)


@pytest.mark.parametrize("key", DATASETS)
def test_the_example_is_read(key: str) -> None:
    dataset = DATASETS[key]
    facts = read_name(dataset, f"{dataset.folder}/{dataset.example}")
    assert facts is not None
    assert bool(facts.group) == (key != "surgicalactions160")
    assert (facts.span is not None) == ("(?P<start>" in dataset.pattern)
    if facts.class_name and dataset.class_names and key != "cholec80":
        assert facts.class_name in dataset.class_names
    assert read_name(dataset, f"{dataset.folder}/other/{dataset.example}/more.txt") is None


@pytest.mark.parametrize(
    ("key", "path", "group", "name", "span"),
    [
        ("aixsuture", "video_faststart/J78O.mp4", "J78O", None, None),
        ("autolaparo", "split_video/label_02_4.mp4", "video 02", None, None),
        ("colonoscopic", "Adenoma/WL(48).mp4", "Adenoma/48", "Adenoma", None),
        ("colonoscopic", "Hyperplasic/NBI.mp4", "Hyperplasic/unnumbered", "Hyperplasic", None),
        (
            "jigsaws",
            "videos/Knot_Tying_C005_capture1_27.6_29.0_G14.mp4",
            "Knot_Tying_C005",
            "G14",
            ("Knot_Tying_C005", 27.6, 29),
        ),
        ("lapgyn4", "NeedlePassing/Test/NeedlePassing/case_82_3.mp4", "case 82", "NeedlePassing", None),
        (
            "ldpolypvideo",
            "videos/0_17_251_258_no_polyps.mp4",
            "video 0_17",
            "no_polyps",
            ("video 0_17", 251, 258),
        ),
        ("ldpolypvideo", "videos/128_0_5_polyps.mp4", "video 128", "polyps", ("video 128", 0, 5)),
        (
            "m2cai16",
            "split_video/m2cai16w_test_dataset_test_workflow_video_01_Phase.mp4",
            "test 01",
            "Phase",
            None,
        ),
        (
            "multibypass140",
            "split_videos/strasbourg/phase/SBP52/SBP52_phase_013_out_of_body_145425-145896.mp4",
            "SBP52",
            "out_of_body",
            ("SBP52", 145425, 145896),
        ),
        (
            "sar-rarp50",
            "split_video/00_other/video_21_2_label00_other_seg0042_025747-026548.mp4",
            "patient 21",
            "00_other",
            ("video_21_2", 25747, 26548),
        ),
        ("cat-21", "split_clip/Phako/case_09_validation_0005.mp4", "validation case 09", "Phako", None),
        ("cholec80", "split_video/cholec80_15_7.mp4", "video 15", "7", None),
    ],
)
def test_names(
    key: str, path: str, group: str, name: str | None, span: tuple[str, float, float] | None
) -> None:
    facts = read_name(DATASETS[key], f"{DATASETS[key].folder}/{path}")
    assert facts is not None
    assert (facts.group, facts.class_name) == (group, name)
    assert facts.span == (Span(*span) if span else None)


def test_the_stricter_rule_of_jigsaws() -> None:
    dataset = DATASETS["jigsaws"]
    facts = read_name(dataset, f"{dataset.folder}/{dataset.example}", strict=True)
    assert facts is not None
    assert facts.group == "surgeon F"
    assert facts.span is not None
    assert facts.span.source == "Suturing_F003"


def test_reports_and_choice() -> None:
    everything = chosen(())
    assert table(everything).count("\n") == len(everything) + 2
    assert [dataset["key"] for dataset in json.loads(as_records(everything))] == list(DATASETS)
    assert [dataset.key for dataset in chosen(["PitVis", "lapgyn_dataset", "cat-21"])] == [
        "pitvis",
        "lapgyn4",
        "cat-21",
    ]
    assert "not known" in in_full(DATASETS["pitvis"])
    assert "--strict-groups" in in_full(DATASETS["jigsaws"])
    assert "meaning   hydrodissection: fluid is injected below the capsule" in in_full(
        DATASETS["cataract-1k"]
    )
    with pytest.raises(ValueError, match="'cholec81' is no data set of the benchmark; they are aixsuture"):
        chosen(["cholec81"])
