"""How fast do decoded planes become crops? The fused kernel against conversion to RGB and DALI's resize.

    python bench/crop.py [--sources 480p 1080p] [--sweep]

`crop_clips` converts, crops, mirrors and resizes in one kernel; `crop_clips+dali` leaves the mirroring to a
DALI graph; `to_rgb` converts only, clip by clip; `to_rgb+dali` is `to_rgb` and then the DALI graph of the
loader. Graphs wait for their result. Each batch has a random window per clip. What the contestants return is
compared first. The metric `host_us` is what a call of `crop_clips` costs the
calling thread, with nothing to wait for. Without a GPU the plain PyTorch twins are measured on the CPU, which
says nothing about the kernels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import RESULTS, Row, print_machine, print_table, rate, repeat, row, write_results

if TYPE_CHECKING:
    import torch
    from surgrec.kernels.planes import Planes

SOURCES = {
    "256p": (340, 256, 8),
    "480p": (864, 480, 8),
    "480p10": (864, 480, 10),
    "720p": (1280, 720, 8),
    "1080p": (1920, 1080, 8),
}
"""Width, height and bits of NV12 or P016 clips."""

SWEEP = (
    (16, 16, 1),
    (16, 32, 2),
    (32, 32, 2),
    (32, 32, 4),
    (32, 64, 4),
    (64, 32, 4),
    (64, 64, 4),
    (64, 64, 8),
)
TOLERANCE = 1.5
"""Most levels of 255 by which `crop_clips` and `to_rgb+dali` may differ on average."""


@dataclass(frozen=True)
class Args:
    """What is measured."""

    sources: tuple[str, ...] = ("256p", "480p", "480p10", "1080p")
    """Sizes of the decoded pictures: 256p, 480p, 480p10 (10 bits), 720p, 1080p."""
    clips: int = 8
    """Clips in a batch."""
    frames: int = 16
    """Frames in a clip."""
    size: int = 224
    """Height and width of the crops."""
    calls: int | None = None
    """Batches of one run: 50 on a GPU, 1 on a CPU."""
    runs: int = 5
    """Measured runs, after one for warming up."""
    threads: int = 2
    """CPU threads of the DALI graph."""
    sweep: bool = False
    """Also measure `crop_clips` with other tilings than the one it has (GPU only)."""
    seed: int = 0
    """Seed of pictures and windows."""
    out: Path = RESULTS
    """Folder of the JSON file."""


def main(args: Args) -> int:
    import torch

    unknown = set(args.sources) - set(SOURCES)
    if unknown:
        print(f"unknown sources {sorted(unknown)}; choose from {', '.join(SOURCES)}", file=sys.stderr)
        return 2
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    if device.type == "cpu":
        print("No GPU: these are the plain PyTorch twins on the CPU, not the kernels.")
    print_machine()
    rows: list[Row] = []
    failed = False
    for source in args.sources:
        try:
            rows += measure(source, args, device)
        except Exception as error:
            print(f"{source}: {type(error).__name__}: {error}", file=sys.stderr)
            failed = True
    if not rows:
        return 1
    print_table(rows)
    print(write_results(__file__, args, rows, args.out))
    return int(failed)


def measure(source: str, args: Args, device: torch.device) -> list[Row]:
    """Rows of one source. Raises RuntimeError where the contestants return different pictures."""
    import torch
    from surgrec.kernels.nv12_crop import TILING, Tiling, crop_clips, to_rgb
    from surgrec.loaders.crop import RandomCrop
    from surgrec.loaders.dali_graph import CropGraph

    gpu = device.type == "cuda"
    width, height, bits = SOURCES[source]
    clips = [make_clip(width, height, bits, args, k, device) for k in range(args.clips)]
    crop = RandomCrop(args.seed, (0.3, 1.0), (0.75, 4 / 3), flip=True)
    windows = crop.windows(range(args.clips), [width] * args.clips, [height] * args.clips, [1.0] * args.clips)
    boxes = (windows.top, windows.left, windows.height, windows.width, windows.flip)
    out = torch.empty((args.clips, args.frames, args.size, args.size, 3), dtype=torch.uint8, device=device)
    graph = CropGraph(args.size, args.clips, device, args.threads)

    def through_dali() -> torch.Tensor:
        return graph(clips, windows)

    flip = flip_graph(args, device)
    plain = (*boxes[:4], windows.flip & False)

    def then_dali() -> torch.Tensor:
        crop_clips(clips, plain, args.size, out)
        return flip(out, windows.flip)

    whole = crop_clips(clips, boxes, args.size)
    if not torch.equal(whole, then_dali()):
        raise RuntimeError("crop_clips and crop_clips+dali give different pictures")
    apart = (whole.float() - through_dali().float()).abs()
    if apart.mean() > TOLERANCE:
        raise RuntimeError(
            f"crop_clips and to_rgb+dali differ by {apart.mean():.2f} levels, not the same pictures"
        )

    contestants: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
        "crop_clips": (partial(crop_clips, clips, boxes, args.size, out), {}),
        "crop_clips+dali": (then_dali, {}),
        "to_rgb": (lambda: [to_rgb(clip) for clip in clips], {}),
        "to_rgb+dali": (through_dali, {"levels_apart": round(float(apart.mean()), 3)}),
    }
    if gpu and args.sweep:
        for parts in SWEEP:
            tiling = Tiling(*parts)
            if tiling != TILING:
                fused = partial(crop_clips, clips, boxes, args.size, out, tiling)
                contestants["crop_clips {}x{}x{}".format(*parts)] = (fused, {})
    calls = args.calls or (50 if gpu else 1)
    rows = []
    for name, (work, extra) in contestants.items():
        speed = repeat(rate(partial(many, work, calls, gpu), calls * args.clips), runs=args.runs)
        rows.append(row(name, source, "clips_per_s", speed, calls=calls, **extra))
    if gpu:
        host = repeat(lambda: host_time(contestants["crop_clips"][0], 20), runs=args.runs)
        rows.append(row("crop_clips", source, "host_us", host))
    return rows


def flip_graph(args: Args, device: torch.device) -> Callable[[torch.Tensor, Any], torch.Tensor]:
    """A DALI graph that mirrors clips [B, T, S, S, 3] where it is told to; gives DALI's own memory."""
    import numpy as np
    import torch
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline
    from torch.utils.dlpack import from_dlpack

    gpu = device.type == "cuda"
    number = device.index if gpu else None
    graph = Pipeline(args.clips, args.threads, number, prefetch_queue_depth=1, exec_dynamic=True)
    with graph:
        clips = fn.external_source(name="clips", layout="FHWC", device="gpu" if gpu else "cpu", no_copy=True)
        mirrored = fn.external_source(name="mirrored", no_copy=True)
        graph.set_outputs(fn.flip(clips, horizontal=mirrored, vertical=0))
    graph.build()

    def flip(frames: torch.Tensor, mirrored: Any) -> torch.Tensor:
        if gpu:
            torch.cuda.current_stream(device).synchronize()  # DALI does not wait for it
        content = frames if gpu else frames.numpy()
        (result,) = graph.run(clips=content, mirrored=mirrored.astype(np.int32))
        return from_dlpack(result.as_tensor())

    return flip


def many(work: Callable[[], Any], calls: int, gpu: bool) -> None:
    """Calls it again and again, and waits for the GPU once, at the end."""
    import torch

    for _ in range(calls):
        work()
    if gpu:
        torch.cuda.synchronize()


def host_time(work: Callable[[], Any], calls: int) -> float:
    """Microseconds until a call returns, with an idle GPU and few calls, so that its queue is never full."""
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    spent = time.perf_counter() - start
    torch.cuda.synchronize()
    return spent / calls * 1e6


def make_clip(width: int, height: int, bits: int, args: Args, number: int, device: torch.device) -> Planes:
    """Noise around smooth colours, in the layout of a decoder: lines of a multiple of 256 samples."""
    import torch
    import torch.nn.functional as F  # noqa: N812 - the usual name
    from surgrec.kernels.planes import Colour, Planes

    generator = torch.Generator().manual_seed(args.seed + number)
    pitch, lines = -(-width // 256) * 256, height * 3 // 2
    coarse = torch.rand(args.frames, 1, 6, 8, generator=generator) * 40 + 108
    surface = F.interpolate(coarse, size=(lines, pitch), mode="bilinear")[:, 0]
    surface += torch.rand(surface.shape, generator=generator) * 16
    step = 1 if bits == 8 else 2**8  # the highest bits of 16
    pixels = (surface * step).int().to(torch.uint8 if bits == 8 else torch.uint16).to(device)
    chroma = pixels[:, height:].unflatten(2, (pitch // 2, 2))[:, :, : width // 2]
    colour = Colour("bt709", False, bits, 0 if bits == 8 else 16 - bits)
    planes = (pixels[:, :height, :width], chroma[..., 0], chroma[..., 1])
    return Planes(planes, tuple(range(args.frames)), colour)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
