"""Quality numbers and flags: defects planted in real footage are found, and the numbers hold still."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from surgrec.configs.curate import QualityThresholds
from surgrec.loaders.segments import SegmentTable, cut_segments

from surgrec.curation.content_area import ContentArea
from surgrec.curation.measures import comb, flatness, light, luma_of, motion, sharpness
from surgrec.curation.pictures import PictureReader, Pictures, choose_frames
from surgrec.curation.quality import (
    BITS,
    FLAGS,
    NUMBERS,
    Quality,
    flags,
    measure,
    measure_segments,
    reasons,
    weights,
)

SEED = 8
EACH = 8
"""Samples of each defect: one of every source."""


@pytest.fixture(scope="module")
def found(
    planted: ModuleType, tmp_path_factory: pytest.TempPathFactory, build_index_of: Callable[..., Any]
) -> tuple[list[Any], NDArray[np.uint32]]:
    """Planted samples, and the flags of each."""
    folder = tmp_path_factory.mktemp("planted")
    samples = planted.make_samples(folder, EACH, SEED)
    index = build_index_of([sample.path for sample in samples], folder / "corpus.h5")
    number = {path: video for video, path in enumerate(index.videos.path)}
    video = np.array([number[str(sample.path)] for sample in samples], np.int32)
    segments = SegmentTable(
        video, np.zeros(len(video), np.int64), index.videos.frame_count[video].astype(np.int64)
    )
    quality, missing = measure_segments(index, segments)
    assert not missing
    return samples, flags(quality, QualityThresholds())


@pytest.mark.parametrize(
    "defect",
    [
        "black",
        "white",
        "frozen",
        "blurred",
        "overexposed",
        "underexposed",
        "interlaced",
        "split_screen",
        "text",
        "title_card",
    ],
)
def test_planted_defects_are_found(
    planted: ModuleType, found: tuple[list[Any], NDArray[np.uint32]], defect: str
) -> None:
    samples, mask = found
    right, wrong, missed = 0, [], []
    for sample, value in zip(samples, mask.tolist(), strict=True):
        if defect != sample.defect and defect in planted.IMPLIED.get(sample.defect, ()):
            continue
        flagged, is_planted = bool(value & BITS[defect]), sample.defect == defect
        right += flagged and is_planted
        if flagged and not is_planted:
            wrong.append(sample.path.name)
        if is_planted and not flagged:
            missed.append(sample.path.name)
    assert 2 * right / (2 * right + len(wrong) + len(missed)) >= 0.95, (wrong, missed)


def test_clean_footage_keeps_its_weight(found: tuple[list[Any], NDArray[np.uint32]]) -> None:
    samples, mask = found
    clean = np.array([sample.defect == "clean" for sample in samples])
    kept = weights(mask, QualityThresholds())
    assert kept.dtype == np.float32
    assert (kept[clean] == 1).all(), [reason for reason in reasons(mask[clean]) if reason]
    assert {sample.source.split("-")[0] for sample in samples if sample.defect == "clean"} >= {
        "bikes",
        "carphone",
        "heart",
    }


def pictures_of(
    rgb: NDArray[np.uint8], small: NDArray[np.uint8] | None = None, detail: NDArray[np.uint8] | None = None
) -> Pictures:
    small = rgb if small is None else small
    return Pictures(np.arange(len(rgb)), luma_of(rgb), small, rgb if detail is None else detail)


@settings(max_examples=20, deadline=None)
@given(border=st.integers(1, 40), seed=st.integers(0, 2**31), level=st.integers(0, 3))
def test_black_borders_change_nothing_inside(planted: ModuleType, border: int, seed: int, level: int) -> None:
    draw = np.random.default_rng(seed)
    names = list(planted.sources())
    clip = np.stack(planted.sources()[names[int(draw.integers(len(names)))]][::12])[:, :240, :320]
    count, height, width, _ = clip.shape
    framed = np.full((count, height + 2 * border, width + 2 * border, 3), level, np.uint8)
    framed[:, border:-border, border:-border] = clip
    area = ContentArea(*framed.shape[1:3], "rectangle", crop=(border, border, height, width))
    plain = dict(zip(NUMBERS, measure(pictures_of(clip)).tolist(), strict=True))
    inside = dict(zip(NUMBERS, measure(pictures_of(framed), area).tolist(), strict=True))
    for name in ("black", "dark", "white", "hued", "comb", "text"):
        assert inside[name] == pytest.approx(plain[name], abs=0.03), name
    for name in ("luma", "colourfulness", "texture"):
        assert inside[name] == pytest.approx(plain[name], rel=0.08, abs=1.0), name
    assert inside["sharpness"] == pytest.approx(plain["sharpness"], abs=0.08)
    assert inside["flat"] == pytest.approx(plain["flat"], abs=0.08)
    assert inside["motion"] == pytest.approx(plain["motion"], rel=0.15, abs=1.0)
    assert inside["split"] == pytest.approx(plain["split"], abs=0.15)


def test_the_surround_of_a_circle_does_not_count(planted: ModuleType) -> None:
    """Most of the picture is black, with letters in it; the content is neither dark nor lettered."""
    clip = np.stack(planted.sources()["bikes-110"][::12])[:, :270, :480]
    area = ContentArea(270, 480, "circle", 240.0, 135.0, 100.0, (35, 140, 200, 200))
    framed = np.where(area.mask(270, 480)[None, :, :, None], clip, 2).astype(np.uint8)
    import cv2

    for picture in framed:
        cv2.putText(picture, "PAT 0417", (4, 30), cv2.FONT_HERSHEY_PLAIN, 1.2, (255, 255, 255), 1)
    whole = dict(zip(NUMBERS, measure(pictures_of(framed)).tolist(), strict=True))
    inside = dict(zip(NUMBERS, measure(pictures_of(framed), area).tolist(), strict=True))
    expected = luma_of(clip)[:, area.mask(270, 480, 0.015)].mean()
    assert inside["luma"] == pytest.approx(expected, abs=0.5)
    assert whole["black"] > 0.6
    assert inside["black"] < 0.1
    assert inside["text"] == 0
    assert whole["text"] > 0
    assert inside["split"] < 0.52


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 90), st.integers(1, 90)),
    kind=st.sampled_from(["noise", "flat", "two"]),
)
def test_numbers_stay_in_their_ranges(seed: int, shape: tuple[int, int, int], kind: str) -> None:
    draw = np.random.default_rng(seed)
    levels = {"noise": 256, "flat": 1, "two": 2}[kind]
    rgb = (draw.integers(0, levels, (*shape, 3)) * draw.integers(1, 256 // levels + 1)).astype(np.uint8)
    values = dict(zip(NUMBERS, measure(pictures_of(rgb)).tolist(), strict=True))
    assert all(np.isfinite(value) for value in values.values())
    shares = ["black", "dark", "white", "sharpness", "comb", "hued", "warm", "flat", "split", "text"]
    assert all(0 <= values[name] <= 1 for name in shares)
    assert values["black"] <= values["dark"]
    assert 0 <= values["luma"] <= 255
    assert 0 <= values["motion"] <= 255
    assert values["pictures"] == shape[0]


def test_measures_of_pictures_whose_values_are_known() -> None:
    inside = np.ones((64, 64), bool)
    half = np.zeros((64, 64), np.uint8)
    half[:, 32:] = 255
    assert light(half, inside) == (127.5, 0.5, 0.5, 0.5)
    step = np.zeros((64, 64), np.uint8)
    step[:, 35:] = 200
    assert sharpness(step, inside) == 1.0
    # Of a ramp, what is looked at around a window is 20 pixels wide, or 19 steps.
    ramp = (4 * np.arange(64)).astype(np.uint8)
    assert sharpness(np.tile(ramp, (64, 1)), inside) == pytest.approx(1 / 19)
    assert flatness(np.full((64, 64), 9, np.uint8), inside) == 1.0
    assert motion(half, half, inside) == 0.0
    assert motion(half, 255 - half, inside) == 255.0
    lines = np.zeros((64, 64), np.uint8)
    lines[::2] = 200
    assert comb(lines, (0, 64), (0, 64)) == 1.0
    assert comb(np.ascontiguousarray(lines.T), (0, 64), (0, 64)) == 0.0


def test_hue_tells_drapes_from_tissue() -> None:
    """What the out-of-body number can do: blue and green against red. Grey says nothing."""
    seen = {}
    for name, colour in {"tissue": (170, 60, 50), "drape": (40, 110, 120), "grey": (90, 90, 90)}.items():
        rgb = np.full((2, 64, 64, 3), colour, np.uint8)
        rgb[1, ::8] += 20
        quality = Quality(*(measure(pictures_of(rgb))[:, None]))
        seen[name] = bool(flags(quality, QualityThresholds())[0] & BITS["out_of_body"])
    assert seen == {"tissue": False, "drape": True, "grey": False}


def test_thresholds_are_options(planted: ModuleType) -> None:
    clip = np.stack(planted.sources()["bikes-70"][::12])
    quality = Quality(*(measure(pictures_of(clip))[:, None]))
    assert reasons(flags(quality, QualityThresholds(text=2.0))) == [""]
    strict = QualityThresholds(blurred=1.1, zero=("blurred",))
    mask = flags(quality, strict)
    assert mask.dtype == np.uint32
    assert reasons(mask) == ["blurred"]
    assert weights(mask, strict).tolist() == [0]
    assert weights(mask, dataclasses.replace(strict, zero=())).tolist() == [1]


def test_undecodable_segments_are_reported(
    planted: ModuleType, tmp_path: Path, build_index_of: Callable[..., Any]
) -> None:
    clip = planted.sources()["carphone-0"]
    good = planted.write(tmp_path / "good.mp4", clip)
    gone = planted.write(tmp_path / "gone.mp4", clip)
    hurt = planted.write(tmp_path / "hurt.mp4", clip)
    index = build_index_of([good, gone, hurt], tmp_path / "corpus.h5")
    gone.unlink()
    content = bytearray(hurt.read_bytes())
    stamp = hurt.stat().st_mtime_ns
    order = {Path(path).name: video for video, path in enumerate(index.videos.path)}
    at = int(index.offset[index.packets(order["hurt.mp4"])][0]) + 200
    content[at : at + 400] = bytes(400)
    hurt.write_bytes(content)
    os.utime(hurt, ns=(stamp, stamp))
    video = np.array([order[name] for name in ("good.mp4", "gone.mp4", "hurt.mp4")], np.int32)
    segments = SegmentTable(video, np.zeros(3, np.int64), np.full(3, len(clip), np.int64))
    quality, missing = measure_segments(index, segments)
    assert sorted(missing) == [1, 2]
    assert "put the file back" in missing[1].reason
    assert Path(missing[2].path).name == "hurt.mp4"
    assert "other bytes" in missing[2].reason
    assert np.isnan(quality.luma[1:]).all()
    assert np.isfinite(quality.luma[0])
    assert quality.pictures.tolist() == [3, 0, 0]
    mask = flags(quality, QualityThresholds())
    assert reasons(mask)[1:] == ["undecodable", "undecodable"]
    assert weights(mask, QualityThresholds()).tolist() == [1, 0, 0]


def test_threads_change_nothing(stream_corpus: Any) -> None:
    """All kinds of stream: codecs, 10 bit, open GOPs, rotation, files without random access."""
    segments, _ = cut_segments(stream_corpus.index, 1.0, 1, stride=1, allow_sequential=True)
    one, missing = measure_segments(stream_corpus.index, segments)
    two, missing_too = measure_segments(stream_corpus.index, segments, threads=2)
    assert missing == missing_too == {}
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    assert (one.pictures >= 2).all()


def test_pictures_are_those_of_a_full_decode(stream_corpus: Any, stream_kind: str) -> None:
    """Luma and RGB of the chosen frames are upright and belong to their positions."""
    index, video = stream_corpus.index, stream_corpus.video[stream_kind]
    count = int(index.videos.frame_count[video])
    reader = PictureReader(index)
    found = reader.segment(video, 0, count)
    reader.close()
    assert isinstance(found, Pictures)
    images, _ = stream_corpus.reference(stream_kind)
    assert found.rgb.shape[1:] == images.shape[1:]
    assert found.luma.shape[1:] == images.shape[1:3]
    for row, frame in enumerate(found.frames.tolist()):
        expected = luma_of(images[frame]).astype(float)
        assert np.abs(luma_of(found.rgb[row]).astype(float) - expected).mean() < 4
        # 709 and 601 weigh the colours unlike, full and limited range do not mix.
        assert np.abs(found.luma[row].astype(float) - expected).mean() < 6


def test_stacked_pictures(make_stacked: Callable[..., Any], tmp_path: Path) -> None:
    """Frames of a stacked proxy are looked at one by one, and are those of the same proxy unstacked."""
    stacked = make_stacked(tmp_path)
    reader = PictureReader(stacked.index)
    frames = choose_frames(stacked.index, 0, 0, int(stacked.index.videos.frame_count[0]))
    found = reader.read(0, frames)
    reader.close()
    assert isinstance(found, Pictures)
    for row, frame in enumerate(frames):
        assert np.abs(found.rgb[row].astype(float) - stacked.images[frame]).mean() < 3


def test_chosen_frames(stream_corpus: Any) -> None:
    """Key frames first; few; spread over a second where there is one key frame or none."""
    index = stream_corpus.index
    video = stream_corpus.video["h264_default"]
    count = int(index.videos.frame_count[video])
    packets = index.frames(video)
    keys = np.flatnonzero(index.flags[index.packets(video)][packets] & 3)
    whole = choose_frames(index, video, 0, count)
    assert set(whole) & set(keys.tolist())
    assert len(whole) <= 5
    for start, end in ((0, 1), (1, 2), (3, 9), (count - 1, count), (5, count)):
        chosen = choose_frames(index, video, start, end)
        assert 1 <= len(chosen) <= 5
        assert list(chosen) == sorted(set(chosen))
        assert all(start <= frame < end for frame in chosen)
    every = choose_frames(index, stream_corpus.video["mjpeg_avi"], 0, count)
    assert len(every) == 4
    with pytest.raises(ValueError, match="is not within its"):
        choose_frames(index, video, 3, count + 1)


def test_bad_arguments(stream_corpus: Any) -> None:
    index = stream_corpus.index
    one = SegmentTable(np.zeros(1, np.int32), np.zeros(1, np.int64), np.ones(1, np.int64))
    with pytest.raises(ValueError, match="threads is 0"):
        measure_segments(index, one, threads=0)
    rgb = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="pictures of 4 x 4, not of 8 x 8"):
        measure(pictures_of(rgb), ContentArea(4, 4))
    with pytest.raises(ValueError, match="unlike shapes"):
        Pictures(np.arange(2), rgb[..., 0], rgb, rgb)
    with pytest.raises(ValueError, match="no picture"):
        Pictures(np.arange(0), rgb[:0, ..., 0], rgb[:0], rgb[:0])
    column = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="unequal length"):
        Quality(*([column] * (len(NUMBERS) - 1)), column[:1])
    assert len(FLAGS) == len(set(BITS.values()))
