"""The crops on the CPU: the pictures of a plain antialiased resize, any sizes together, both ways alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from numpy.typing import NDArray
from surgrec.kernels.planes import Colour, Planes
from surgrec.loaders.crop import CropWindows, RandomCrop
from surgrec.loaders.crop_way import Way, choose_way, make_crop
from surgrec.loaders.dali_graph import CropGraph
from surgrec.loaders.fused_crop import CALLS_AHEAD, FusedCrop
from torch import Tensor

CPU = torch.device("cpu")
SIZE = 56


@pytest.fixture(scope="module")
def graph() -> CropGraph:
    return CropGraph(SIZE, 4, CPU, threads=2)


def clip(width: int, height: int, frames: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth structure and noise, so that both blur and misplacement show."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, 6, 8, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1) * 215
    noise = torch.randint(0, 40, smooth.shape, generator=generator)
    return (smooth + noise).byte().permute(0, 2, 3, 1).contiguous().numpy()


def windows(*boxes: tuple[int, int, int, int, bool]) -> CropWindows:
    top, left, height, width, flip = (np.array(column) for column in zip(*boxes, strict=True))
    return CropWindows(*(c.astype(np.int32) for c in (top, left, height, width)), flip.astype(bool))


def reference(frames: NDArray[np.uint8], box: tuple[int, int, int, int, bool], size: int = SIZE) -> Tensor:
    """float [T, size, size, 3] by torch."""
    top, left, height, width, flip = box
    cut = torch.from_numpy(frames[:, top : top + height, left : left + width]).permute(0, 3, 1, 2).float()
    resized = F.interpolate(cut, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return (resized.flip(3) if flip else resized).permute(0, 2, 3, 1)


BOXES = [
    (100, 200, 300, 250, False),  # smaller by different factors in height and width
    (100, 200, 300, 250, True),
    (0, 0, 480, 640, False),
    (7, 9, 30, 41, True),  # enlarged
]


def test_pictures_are_those_of_torch(graph: CropGraph) -> None:
    frames = [clip(640, 480, seed=k) for k in range(4)]
    result = graph(frames, windows(*BOXES))
    assert result.shape == (4, 3, SIZE, SIZE, 3)
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    for k, box in enumerate(BOXES):
        difference = (result[k].float() - reference(frames[k], box)).abs()
        # At the window's border DALI's filter sees the picture around it, torch's the cut alone.
        assert difference[:, 2:-2, 2:-2].max() <= 2
        assert difference.mean() < 1


def test_what_it_was_prepared_with_leaves_no_trace() -> None:
    graph, frames = CropGraph(SIZE, 4, CPU, threads=2), clip(640, 480)
    graph.prepare(5)
    prepared = graph([frames], windows(BOXES[0])).clone()
    graph.prepare(3)
    assert torch.equal(graph([frames], windows(BOXES[0])), prepared)


def test_whole_picture_matches_up_to_the_border(graph: CropGraph) -> None:
    frames = clip(200, 150)
    box = (0, 0, 150, 200, False)
    # DALI repeats the outermost pixels, torch shortens the filter: a noise of 40 levels shows as 3 there.
    difference = (graph([frames], windows(box))[0].float() - reference(frames, box)).abs()
    assert difference.max() <= 3
    assert difference[:, 1:-1, 1:-1].max() <= 1


def test_sizes_may_differ_within_a_batch_and_batches_in_length(graph: CropGraph) -> None:
    sizes = [(64, 48), (1920, 1080), (48, 64)]
    frames = [clip(*size, seed=k) for k, size in enumerate(sizes)]
    boxes = [(2, 4, 40, 50, False), (300, 500, 600, 700, True), (0, 0, 64, 48, False)]
    together = graph(frames, windows(*boxes))
    for k, box in enumerate(boxes):
        assert torch.equal(graph([frames[k]], windows(box))[0], together[k])


def test_results_repeat_and_earlier_ones_stay(graph: CropGraph) -> None:
    frames = [clip(320, 240, seed=k) for k in range(3)]
    crop = RandomCrop(3, (0.3, 1.0), (0.75, 4 / 3), flip=True)
    drawn = crop.windows([0, 1, 2], [320] * 3, [240] * 3, [1.0] * 3)
    first = graph(frames, drawn)
    kept = first.clone()
    for seed in range(5):
        graph([clip(320, 240, seed=10 + seed)], windows((0, 0, 240, 320, False)))
    assert torch.equal(first, kept)
    assert torch.equal(graph(frames, drawn), kept)
    assert torch.equal(CropGraph(SIZE, 3, CPU, threads=1)(frames, drawn), kept)


def test_a_view_that_is_not_contiguous_is_read_rightly(graph: CropGraph) -> None:
    frames = clip(320, 240)
    box = windows((10, 20, 200, 220, False))
    assert torch.equal(graph([frames[:, ::-1]], box), graph([frames[:, ::-1].copy()], box))


@pytest.fixture(scope="module")
def fused() -> FusedCrop:
    return FusedCrop(SIZE, 4, CPU)


def as_planes(frames: NDArray[np.uint8], rotation: int = 0) -> Planes:
    """Turned back from upright, so that the rotation makes it so."""
    stored = torch.from_numpy(np.ascontiguousarray(np.rot90(frames, rotation // 90, axes=(1, 2))))
    red, green, blue = stored.unbind(3)
    return Planes((red, green, blue), tuple(range(len(frames))), Colour("rgb", full_range=True), rotation)


def test_both_ways_give_the_same_pictures(graph: CropGraph, fused: FusedCrop) -> None:
    frames = [clip(640, 480, seed=k) for k in range(4)]
    expected = graph(frames, windows(*BOXES))
    result = fused(frames, windows(*BOXES))
    assert result.shape == expected.shape
    assert result.is_contiguous()
    difference = (result.int() - expected.int()).abs()
    assert difference.max() <= 3
    assert difference.float().mean() < 0.6
    mirrored = windows(*((*box[:4], not box[4]) for box in BOXES))
    assert torch.equal(fused(frames, mirrored), result.flip(3))


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("way", ["fused", "dali"])
def test_planes_and_arrays_mix(graph: CropGraph, fused: FusedCrop, way: Way, rotation: int) -> None:
    used = fused if way == "fused" else graph
    frames = [clip(64, 48), clip(320, 240, seed=1)]
    boxes = windows((2, 4, 40, 50, False), (30, 50, 160, 170, True))
    assert torch.equal(used([as_planes(frames[0], rotation), frames[1]], boxes), used(frames, boxes))


def test_memory_used_again_keeps_earlier_results(fused: FusedCrop) -> None:
    """Calls of fewer and of more clips, and of other lengths, write where earlier ones did."""
    calls = []
    often = [(2, 3)] * (CALLS_AHEAD + 1)
    for seed, (count, length) in enumerate([(4, 3), (1, 3), (4, 5), *often, (4, 3)]):
        frames = [clip(90 + 10 * k, 70 + k, length, seed=4 * seed + k) for k in range(count)]
        boxes = windows(*[(k, 2, 50 + seed, 60, bool((k + seed) % 2)) for k in range(count)])
        result = fused([as_planes(part) for part in frames], boxes)
        calls.append((frames, boxes, result, result.clone()))
    for frames, boxes, result, kept in calls:
        assert torch.equal(result, kept)
        fresh = FusedCrop(SIZE, len(frames), CPU)
        assert torch.equal(fresh([as_planes(part) for part in frames], boxes), kept)


@pytest.mark.parametrize("way", ["fused", "dali"])
def test_results_go_where_they_are_wanted(graph: CropGraph, fused: FusedCrop, way: Way) -> None:
    used = fused if way == "fused" else graph
    frames, boxes = (
        [clip(90, 70, seed=k) for k in range(2)],
        windows((0, 1, 50, 60, True), (3, 0, 40, 70, False)),
    )
    batch = torch.zeros((5, 3, SIZE, SIZE, 3), dtype=torch.uint8)
    assert used(frames, boxes, batch[1:3]).data_ptr() == batch[1:3].data_ptr()
    assert torch.equal(batch[1:3], used(frames, boxes))
    assert not batch[[0, 3, 4]].any()
    for wrong in (batch, batch[:2, :2], batch[:2].int()):
        with pytest.raises(ValueError, match="out is torch"):
            used(frames, boxes, wrong)


def test_rows_of_planes_are_frames(fused: FusedCrop) -> None:
    frames = clip(64, 48, frames=5)
    planes = Planes(as_planes(frames).planes, (4, 1, 1), Colour("rgb", full_range=True))
    box = windows((0, 0, 48, 64, False))
    assert torch.equal(fused([planes], box), fused([frames[[4, 1, 1]]], box))


def test_planes_are_checked(graph: CropGraph, fused: FusedCrop) -> None:
    whole = windows((0, 0, 48, 64, False), (0, 0, 48, 64, False))
    for used in (graph, fused):
        with pytest.raises(ValueError, match="clip 1 has 2 frames on cpu; 3 on cpu are needed"):
            used([as_planes(clip(64, 48)), as_planes(clip(64, 48, frames=2))], whole)
        with pytest.raises(ValueError, match="not within its picture of 64 x 48"):
            used([as_planes(clip(48, 64))], windows((0, 0, 48, 64, False)))


def test_the_way_follows_the_device() -> None:
    gpu = torch.device("cuda", 0)
    assert [choose_way(crop, gpu) for crop in ("auto", "fused", "dali")] == ["fused", "fused", "dali"]
    assert [choose_way(crop, CPU) for crop in ("auto", "fused", "dali")] == ["dali"] * 3
    with pytest.raises(ValueError, match="crop is 'nearest'; choose from auto, fused, dali"):
        choose_way("nearest", gpu)
    assert isinstance(make_crop(SIZE, 4, CPU, 1, "auto"), CropGraph)
    assert isinstance(make_crop(SIZE, 4, gpu, 1, "auto"), FusedCrop)


def test_refusals(graph: CropGraph) -> None:
    frames = clip(64, 48)
    whole = (0, 0, 48, 64, False)
    for box in [(-1, 0, 10, 10), (0, 60, 10, 5), (40, 0, 9, 10), (0, 0, 0, 10)]:
        with pytest.raises(ValueError, match=r"window of clip 0, .* not within its picture of 48 x 64"):
            graph([frames], windows((*box, False)))
    with pytest.raises(ValueError, match="0 clips"):
        graph([], windows(whole))
    with pytest.raises(ValueError, match="5 clips and 5 windows; 1 to 4"):
        graph([frames] * 5, windows(*[whole] * 5))
    with pytest.raises(ValueError, match=r"clip 1 is uint8 \(2, 48, 64, 3\)"):
        graph([frames, frames[:2]], windows(whole, whole))
    with pytest.raises(ValueError, match="clip 0 is float32"):
        graph([frames.astype(np.float32)], windows(whole))  # type: ignore[list-item]  # what is tested
    with pytest.raises(ValueError, match="each must be at least 1"):
        CropGraph(0, 1, CPU, threads=1)
    with pytest.raises(ValueError, match="size=5, max_clips=0: each must be at least 1"):
        FusedCrop(5, 0, CPU)
