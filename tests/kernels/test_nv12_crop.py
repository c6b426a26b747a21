"""Planes to RGB crops: colours against FFmpeg, filters against torch and DALI, kernels against twins."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from av.video.reformatter import VideoReformatter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from surgrec.kernels.clip_facts import make_staging
from surgrec.kernels.colour import LUMA_WEIGHTS, colour_matrix
from surgrec.kernels.nv12_crop import (
    Tiling,
    crop_clips,
    plain_crop,
    plain_rgb,
    to_rgb,
)
from surgrec.kernels.planes import Colour, Planes
from surgrec.kernels.windows import Windows
from surgrec.loaders.crop import CropWindows
from surgrec.loaders.dali_graph import CropGraph
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_interpreter = pytest.mark.skipif(
    not INTERPRETED, reason="test_kernels_in_tritons_interpreter runs it in a process of its own"
)

FFMPEG_MATRIX = {"bt709": 1, "fcc": 4, "bt601": 5, "smpte240m": 7, "bt2020": 9}
LAYOUTS = {"420": (2, 2), "422": (1, 2), "444": (1, 1)}  # how many rows and columns share a chroma sample


def stored(
    picture: Tensor, colour: Colour, rows: int, columns: int, interleaved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Planes of float [K, H, W, 3] in 0..255, upright as stored, whose lines end in junk."""
    matrix, bias = colour_matrix(colour)
    values = (picture.double() - torch.from_numpy(bias.copy())) @ torch.linalg.inv(
        torch.from_numpy(matrix.copy())
    ).T
    kind = torch.uint8 if colour.depth + colour.shift <= 8 else torch.uint16
    height, width = picture.shape[1:3]
    planes = []
    for plane in range(3):
        one = values[..., plane][:, None]
        if plane:
            extra = (0, width % columns, 0, height % rows)
            one = F.avg_pool2d(F.pad(one, extra, mode="replicate"), (rows, columns))
        one = F.pad(one.squeeze(1).round().clamp(0, 2**colour.depth - 1), (0, 3), value=2**colour.depth - 1)
        planes.append((one.int() << colour.shift).to(kind))
    widths = [width, *[-(-width // columns)] * 2]
    if interleaved:
        both = torch.stack(planes[1:], dim=3)
        planes[1:] = [both[..., 0], both[..., 1]]
    y, u, v = (one[..., :w] for one, w in zip(planes, widths, strict=True))
    return y, u, v


def photograph(width: int, height: int, count: int = 2, seed: int = 0) -> Tensor:
    """float [count, height, width, 3]: smooth colours with noise, of which no step leaves 0..255."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 5, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear") * 110 + 60
    noise = torch.rand(count, 1, height, width, generator=generator) * 40
    return (smooth + noise).permute(0, 2, 3, 1)


def clip_of(
    width: int,
    height: int,
    layout: str = "420",
    colour: Colour | None = None,
    rotation: int = 0,
    rows: tuple[int, ...] = (0, 1),
    interleaved: bool = True,
    seed: int = 0,
) -> Planes:
    """A clip whose stored picture is width x height."""
    colour = colour or Colour("bt709", False)
    planes = stored(photograph(width, height, seed=seed), colour, *LAYOUTS[layout], interleaved)
    return Planes(planes, rows, colour, rotation)


def columns_of(*boxes: tuple[int, int, int, int, bool]) -> Windows:
    top, left, height, width, flip = (np.array(column) for column in zip(*boxes, strict=True))
    return top, left, height, width, flip


def frame_of(planes: tuple[Tensor, ...], pixel_format: str) -> av.VideoFrame:
    """The first picture as an FFmpeg frame."""
    frame = av.VideoFrame(planes[0].shape[2], planes[0].shape[1], pixel_format)
    for target, plane in zip(frame.planes, planes, strict=True):
        lines = np.frombuffer(memoryview(target), np.uint8).reshape(-1, target.line_size)
        data = np.ascontiguousarray(plane[0].numpy()).view(np.uint8)
        lines[: data.shape[0], : data.shape[1]] = data
    return frame


def by_ffmpeg(
    planes: tuple[Tensor, ...], pixel_format: str, matrix: str, full_range: bool
) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], converted as the cpu engine does it."""
    frame = frame_of(planes, pixel_format)
    frame.colorspace = FFMPEG_MATRIX[matrix]
    frame.color_range = 2 if full_range else 1
    return VideoReformatter().reformat(frame, format="rgb24", threads=1).to_ndarray()


def difference(clip: Planes, expected: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.abs(plain_rgb(clip)[0].numpy().astype(int) - expected.astype(int))


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", LUMA_WEIGHTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_colours_of_8_bits_are_ffmpegs(layout: str, matrix: str, full_range: bool) -> None:
    clip = clip_of(64, 48, layout, Colour(matrix, full_range), interleaved=False)
    error = difference(clip, by_ffmpeg(clip.planes, f"yuv{layout}p", matrix, full_range))
    # FFmpeg's fast conversion of subsampled planes drops fractions at every step.
    assert error.max() <= (1 if layout == "444" else 3)
    assert error.mean() < (0.1 if layout == "444" else 1.6)


def test_colours_of_yuvj_are_ffmpegs() -> None:
    clip = clip_of(64, 48, "420", Colour("bt601", True), interleaved=False)
    assert difference(clip, by_ffmpeg(clip.planes, "yuvj420p", "bt601", True)).max() <= 2


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", LUMA_WEIGHTS)
@pytest.mark.parametrize("depth", [10, 12])
def test_colours_of_more_bits_are_ffmpegs(depth: int, matrix: str, full_range: bool) -> None:
    colour = Colour(matrix, full_range, depth)
    # FFmpeg interpolates chroma between rows here; in columns of one colour that changes nothing.
    striped = photograph(64, 1).expand(-1, 48, -1, -1).contiguous()
    planes = stored(striped, colour, 2, 2, False)
    expected = by_ffmpeg(planes, f"yuv420p{depth}le", matrix, full_range)
    clip = Planes(planes, (0,), colour)
    assert difference(clip, expected).max() <= 4
    high = tuple((plane.int() << (16 - depth)).to(torch.uint16) for plane in planes)
    aligned = replace(clip, planes=high, colour=replace(colour, shift=16 - depth))
    assert torch.equal(plain_rgb(aligned), plain_rgb(clip))


def test_planes_of_rgb_are_scaled_to_8_bits() -> None:
    values = torch.arange(256).view(1, 16, 16)
    clip = Planes((values.byte(), values.flip(1).byte(), values.flip(2).byte()), (0,), Colour("rgb", False))
    assert torch.equal(plain_rgb(clip)[0], torch.stack([p[0] for p in clip.planes], dim=2))
    ten = torch.tensor([0, 2, 3, 512, 1023]).to(torch.uint16).view(1, 1, 5)
    wide = plain_rgb(Planes((ten, ten, ten), (0,), Colour("rgb", True, 10)))
    assert wide[0, 0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_black_white_and_grey_are_exact() -> None:
    for matrix in LUMA_WEIGHTS:
        for depth in range(8, 17):
            step = 2 ** (depth - 8)
            for full, levels in ((False, (16 * step, 235 * step)), (True, (0, 2**depth - 1))):
                weights, bias = colour_matrix(Colour(matrix, full, depth))
                for level, grey in zip(levels, (0, 255), strict=True):
                    np.testing.assert_allclose(
                        weights @ [level, 128 * step, 128 * step] + bias, grey, atol=1e-9
                    )


def test_pictures_are_turned_upright_and_gathered() -> None:
    clip = clip_of(31, 17, "420", rows=(1, 0, 1))
    straight = plain_rgb(clip)
    assert torch.equal(straight[0], straight[2])
    assert not torch.equal(straight[0], straight[1])
    for rotation, turns in ((90, -1), (180, -2), (270, -3)):
        turned = plain_rgb(replace(clip, rotation=rotation))
        assert torch.equal(turned, torch.rot90(straight, turns, (1, 2)))
        assert turned.is_contiguous()


def torch_crop(clip: Planes, box: tuple[int, int, int, int, bool], size: int) -> Tensor:
    """float [T, size, size, 3]: torch's resize of the cut RGB picture."""
    top, left, height, width, flip = box
    cut = plain_rgb(clip)[:, top : top + height, left : left + width].permute(0, 3, 1, 2).float()
    resized = F.interpolate(cut, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return (resized.flip(3) if flip else resized).permute(0, 2, 3, 1)


BOXES = [
    (0, 0, 121, 163, False),
    (10, 20, 100, 90, True),
    (31, 7, 25, 140, False),  # enlarged in height only
    (3, 5, 11, 13, True),  # enlarged
]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_filter_is_torchs(layout: str, rotation: int) -> None:
    size = 40
    stored_size = (121, 163) if rotation % 180 else (163, 121)
    clip = clip_of(*stored_size, layout, rotation=rotation)
    for box in BOXES:
        ours = plain_crop([clip], columns_of(box), size)[0]
        error = (ours.float() - torch_crop(clip, box, size)).abs()
        # Ours sees the picture around the window, torch's the cut alone.
        border = 2 + size // min(box[2], box[3])
        assert error[:, border:-border, border:-border].max() <= 1.6
        assert error.mean() < 1.5


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_crops_are_those_of_the_dali_graph(layout: str, rotation: int) -> None:
    stored_size = (121, 163) if rotation % 180 else (163, 121)
    clips = [clip_of(*stored_size, layout, rotation=rotation, seed=k) for k in range(len(BOXES))]
    windows = columns_of(*BOXES)
    graph = CropGraph(40, len(BOXES), torch.device("cpu"), threads=1)
    dali = graph([plain_rgb(clip).numpy() for clip in clips], CropWindows(*windows))
    error = (plain_crop(clips, windows, 40).int() - dali.int()).abs()
    assert error.max() <= 2
    assert error.float().mean() < 0.5


def test_a_crop_of_its_own_size_is_the_picture() -> None:
    clip = clip_of(32, 32, "420")
    whole = columns_of((0, 0, 32, 32, False))
    assert torch.equal(plain_crop([clip], whole, 32)[0], plain_rgb(clip))


def test_the_result_is_written_where_asked() -> None:
    clips = [clip_of(40, 30, seed=0), clip_of(50, 36, "422", Colour("bt601", True, 10, 6), seed=1)]
    windows = columns_of((0, 0, 30, 40, True), (6, 8, 20, 30, False))
    out = torch.zeros(2, 2, 16, 16, 3, dtype=torch.uint8)
    assert crop_clips(clips, windows, 16, out) is out
    assert torch.equal(out, crop_clips(clips, windows, 16))
    assert torch.equal(out[1:], crop_clips(clips[1:], columns_of((6, 8, 20, 30, False)), 16))


def test_refused_windows_and_outputs() -> None:
    clip = clip_of(64, 48)
    for box in [(-1, 0, 10, 10), (0, 60, 10, 5), (40, 0, 9, 10), (0, 0, 0, 10)]:
        windows = columns_of((0, 0, 48, 64, False), (*box, False))
        with pytest.raises(ValueError, match=r"window of clip 1, .* not within its picture of 48 x 64"):
            crop_clips([clip, clip], windows, 8)
    whole = columns_of((0, 0, 48, 64, False))
    for clips, size in (([], 8), ([clip, clip], 8), ([clip], 0)):
        with pytest.raises(ValueError, match=f"{len(clips)} clips, windows of .* and size {size}"):
            crop_clips(clips, whole, size)
    wrong = torch.zeros(1, 2, 8, 9, 3, dtype=torch.uint8)
    for out in (wrong, wrong[..., :8, :], torch.zeros(1, 2, 8, 8, 3)):
        with pytest.raises(ValueError, match=r"out is .*contiguous uint8 \(1, 2, 8, 8, 3\) on cpu"):
            crop_clips([clip], whole, 8, out)


def test_refused_clips() -> None:
    clip = clip_of(64, 48)
    y, u, v = clip.planes
    wide = tuple(plane.to(torch.uint16) for plane in clip.planes)
    for bad, message in [
        (replace(clip, rows=()), "0 frames"),
        (replace(clip, rows=(0, 2)), r"rows 0\.\.2 of 2 pictures"),
        (replace(clip, rows=(-1, 0)), r"rows -1\.\.0"),
        (replace(clip, rotation=45), "45 degrees"),
        (replace(clip, planes=(y.float(), u, v)), "torch.float32"),
        (replace(clip, planes=(y, u, v[:, 1:])), "as chroma"),
        (replace(clip, planes=(y, u[:, :, ::2], v[:, :, ::2])), "as chroma"),
        (replace(clip, planes=(y, u[:1], v[:1])), "as chroma"),
        (replace(clip, planes=(y, wide[1], wide[2])), "as chroma"),
        (replace(clip, colour=Colour("bt709", False, 10)), "10 bits, 0 bits up, in torch.uint8"),
        (replace(clip, planes=wide, colour=Colour("bt709", False, 12, 6)), "12 bits, 6 bits up"),
        (replace(clip, planes=wide, colour=Colour("bt709", False, 7)), "7 bits"),
        (replace(clip, colour=Colour("bt1886", False)), "'bt1886' is not known"),
    ]:
        with pytest.raises(ValueError, match=message):
            to_rgb(bad)
    whole = columns_of((0, 0, 48, 64, False), (0, 0, 48, 64, False))
    with pytest.raises(ValueError, match="clip 1 has 1 frames; the batch has 2"):
        crop_clips([clip, replace(clip, rows=(0,))], whole, 8)


@st.composite
def clips_and_boxes(draw: st.DrawFn) -> tuple[Planes, tuple[int, int, int, int, bool]]:
    width, height = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    matrix, full_range = draw(st.sampled_from([*LUMA_WEIGHTS, "rgb"])), draw(st.booleans())
    depth, shift = draw(st.sampled_from([(8, 0), (8, 0), (10, 0), (10, 6), (12, 4), (16, 0)]))
    clip = clip_of(
        width,
        height,
        draw(st.sampled_from(sorted(LAYOUTS))),
        Colour(matrix, full_range, depth, shift),
        draw(st.sampled_from([0, 90, 180, 270])),
        (draw(st.integers(0, 1)),),
        draw(st.booleans()),
        draw(st.integers(0, 9)),
    )
    top, left = draw(st.integers(0, clip.height - 1)), draw(st.integers(0, clip.width - 1))
    rows, columns = draw(st.integers(1, clip.height - top)), draw(st.integers(1, clip.width - left))
    return clip, (top, left, rows, columns, draw(st.booleans()))


@needs_interpreter
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(clips_and_boxes(), min_size=1, max_size=2), st.integers(1, 24), st.sampled_from([16, 32]))
def test_interpreted_crops_are_the_twins(
    drawn: list[tuple[Planes, tuple[int, int, int, int, bool]]], size: int, taps: int
) -> None:
    clips, windows = [clip for clip, _ in drawn], columns_of(*[box for _, box in drawn])
    kernels = crop_clips(clips, windows, size, tiling=Tiling(16, taps, 1))
    twins = plain_crop(clips, windows, size)
    assert (kernels.int() - twins.int()).abs().max() <= 1


@needs_interpreter
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(clips_and_boxes())
def test_interpreted_colours_are_the_twins(drawn: tuple[Planes, object]) -> None:
    clip, _ = drawn
    kernels, twins = to_rgb(clip), plain_rgb(clip)
    assert kernels.shape == twins.shape
    assert (kernels.int() - twins.int()).abs().max() <= 1
    assert (kernels != twins).float().mean() < 0.01


@needs_interpreter
def test_interpreted_calls_share_a_staging() -> None:
    staging = make_staging(3, 2, torch.device("cpu"))
    clips = [
        clip_of(40, 30, seed=0),
        clip_of(50, 36, "422", Colour("bt601", True, 10, 6), rotation=90, seed=1),
        clip_of(33, 47, "444", rotation=270, rows=(1, 1), seed=2),
    ]
    boxes = [(0, 0, 30, 40, True), (6, 8, 20, 20, False), (3, 1, 30, 30, True)]
    for count in (3, 1, 2):
        some, windows = clips[:count], columns_of(*boxes[:count])
        assert torch.equal(crop_clips(some, windows, 16, staging=staging), crop_clips(some, windows, 16))
    longer = [replace(clip, rows=(0, 1, 1)) for clip in clips]
    with pytest.raises(ValueError, match="has 98 words on cpu; 3 clips of 3 frames on cpu take 99"):
        crop_clips(longer, columns_of(*boxes), 16, staging=staging)


@pytest.mark.skipif(INTERPRETED, reason="runs the interpreter's tests, which run here already")
def test_kernels_in_tritons_interpreter(in_interpreter: Callable[[str, str, int], None]) -> None:
    in_interpreter(__file__, "interpreted or written_where_asked or refused", 6)
