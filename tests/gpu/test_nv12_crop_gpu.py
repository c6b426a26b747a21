"""The crop kernels on a GPU give what their plain twins give on the CPU, at the sizes of real videos."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from surgrec.kernels.nv12_crop import TILING, Tiling, crop_clips, plain_crop, plain_rgb, to_rgb
from surgrec.kernels.planes import Colour, Planes
from surgrec.kernels.windows import Windows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

SIZE = 224
NVDEC_10_BITS = Colour("bt2020", full_range=False, depth=10, shift=6)
CASES = {
    "1080p": (1920, 1080, Colour("bt709", False), 0),
    "480p": (854, 480, Colour("bt601", False), 0),
    "256p": (340, 256, Colour("bt709", True), 0),
    "10 bits": (854, 480, NVDEC_10_BITS, 0),
    "90 degrees": (854, 480, Colour("bt709", False), 90),
    "180 degrees": (341, 257, Colour("fcc", False), 180),
    "270 degrees, 10 bits": (640, 361, NVDEC_10_BITS, 270),
}


def clip_of(width: int, height: int, colour: Colour, rotation: int, seed: int = 0) -> Planes:
    """NV12 or P016 on the CPU, as a decoder lays it out: lines longer than the picture, chroma below luma."""
    generator = torch.Generator().manual_seed(seed)
    pitch, lines = -(-width // 256) * 256, -(-height // 2) * 2
    surface = torch.randint(16, 236, (3, lines * 3 // 2, pitch), generator=generator, dtype=torch.int32)
    if colour.depth > 8:
        noise = torch.randint(0, 4, surface.shape, generator=generator, dtype=torch.int32)
        pixels = ((surface * 4 + noise) << colour.shift).to(torch.uint16)
    else:
        pixels = surface.to(torch.uint8)
    chroma = pixels[:, lines:].unflatten(2, (pitch // 2, 2))[:, : -(-height // 2), : -(-width // 2)]
    return Planes(
        (pixels[:, :height, :width], chroma[..., 0], chroma[..., 1]), (2, 0, 1, 1), colour, rotation
    )


def on_gpu(clip: Planes) -> Planes:
    """The same planes there, strides and junk included."""
    y, u, v = clip.planes
    whole = y._base if y._base is not None else y
    moved = whole.cuda()
    y, u, v = (moved.as_strided(p.shape, p.stride(), p.storage_offset()) for p in (y, u, v))
    return replace(clip, planes=(y, u, v))


def columns_of(*boxes: tuple[int, int, int, int, bool]) -> Windows:
    top, left, height, width, flip = (np.array(column) for column in zip(*boxes, strict=True))
    return top, left, height, width, flip


def boxes_of(clip: Planes) -> list[tuple[int, int, int, int, bool]]:
    """The whole picture, a part that is mirrored, and a part that is enlarged, at the far corner."""
    height, width = clip.height, clip.width
    small = min(height, width, 100)
    return [
        (0, 0, height, width, False),
        (height // 5, width // 7, height // 2, width // 2 + 1, True),
        (height - small, width - small, small, small, False),
    ]


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_the_twins(case: str) -> None:
    clip = clip_of(*CASES[case])
    ours, expected = to_rgb(on_gpu(clip)).cpu(), plain_rgb(clip)
    assert ours.shape == expected.shape
    assert (ours.int() - expected.int()).abs().max() <= 1
    assert (ours != expected).float().mean() < 0.001


@pytest.mark.parametrize("case", CASES)
def test_crops_are_the_twins(case: str) -> None:
    clip = clip_of(*CASES[case])
    windows = columns_of(*boxes_of(clip))
    ours = crop_clips([on_gpu(clip)] * 3, windows, SIZE).cpu()
    difference = (ours.int() - plain_crop([clip] * 3, windows, SIZE).int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.05


def mixed() -> tuple[list[Planes], Windows]:
    clips = [clip_of(*case, seed=k) for k, case in enumerate(CASES.values())]
    return clips, columns_of(*[boxes_of(clip)[k % 3] for k, clip in enumerate(clips)])


@pytest.mark.parametrize(
    "tiling", [TILING, Tiling(16, 16, 1), Tiling(32, 64, 4), Tiling(64, 32, 4), Tiling(64, 64, 8)]
)
@pytest.mark.parametrize("size", [SIZE, 112, 50])
def test_a_mixed_batch_is_the_twins_with_any_tiling(size: int, tiling: Tiling) -> None:
    clips, windows = mixed()
    ours = crop_clips([on_gpu(clip) for clip in clips], windows, size, tiling=tiling).cpu()
    assert (ours.int() - plain_crop(clips, windows, size).int()).abs().max() <= 1


def test_results_repeat_on_another_stream_and_where_asked() -> None:
    clips, windows = mixed()
    there = [on_gpu(clip) for clip in clips]
    first = crop_clips(there, windows, SIZE)
    out = torch.zeros_like(first)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert crop_clips(there, windows, SIZE, out) is out
    stream.synchronize()
    assert torch.equal(first, out)


def test_nothing_waits_for_the_gpu() -> None:
    clips, windows = mixed()
    there = [on_gpu(clip) for clip in clips]
    crop_clips(there, windows, SIZE)
    to_rgb(there[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        crop_clips(there, windows, SIZE)
        to_rgb(there[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_planes_of_two_devices_are_refused() -> None:
    clip = clip_of(*CASES["256p"])
    windows = columns_of(*[(0, 0, 256, 340, False)] * 2)
    with pytest.raises(ValueError, match="clip 1 has a plane on cpu; the batch is on cuda:0"):
        crop_clips([on_gpu(clip), clip], windows, SIZE)
