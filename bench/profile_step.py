"""Where does the time of a training step go? Kernels, kinds of work, and the gaps between them.

    python bench/profile_step.py --case mae-vitb --batch 128 --out profile

Steps on random clips on the device, as bench/train_throughput.py takes them, under torch.profiler. Printed:
the kernels (on a CPU, operators) that take longest, with their share; the share of each kind of work; how
long the device had nothing to do; and how the step stands to the roofline: FLOP/s of the matrix products that
the mathematics ask for, over the peak, in all and within the matrix products' own time. Written to --out: the
trace for chrome://tracing or Perfetto, and on a GPU a snapshot of its memory for pytorch.org/memory_viz.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tyro
from surgrec.configs.pretrain import BlockWay, Graph

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import print_machine
from train_throughput import Args as Throughput
from train_throughput import Work, open_batches
from training_contestants import PEERS, Setup, surgrec, with_batch

FUSED: Final = (
    "add_norm",
    "add_norm_backward",
    "gelu",
    "gelu_backward",
    "join",
    "fold",
    "fold_backward",
    "sum",
)
OURS: Final = ("patch", "error", "scale", "rotate", "place", "loss")
KINDS: Final = (
    ("attention", ("flash", "fmha", "attention", "cudnn_generated", "cudnn::", "sdpa")),
    (
        "matrix products",
        ("gemm", "cutlass", "nvjet", "xmma", "aten::mm", "aten::addmm", "aten::bmm", "cublas"),
    ),
    ("optimizer", ("adam", "multi_tensor", "foreach", "lerp")),
    ("fused blocks", tuple(f"_{name}_kernel" for name in FUSED)),
    ("surgrec's kernels", tuple(f"_{name}_kernel" for name in OURS)),
    ("compiled elementwise", ("triton_",)),
    ("copies", ("memcpy", "memset", "copy_")),
)
"""Kinds of work, by what is in the names of their kernels; the first that fits counts."""
OTHER: Final = "other"


@dataclass(frozen=True)
class Args:
    """What is profiled."""

    case: str = "mae-vitb"
    """Preset."""
    peer: str = ""
    """A peer's step with the preset's shapes: transformers, transformers-compiled, videomae, vjepa2."""
    batch: int = 32
    """Clips of a batch."""
    steps: int = 3
    """Steps that are profiled, after as many for warming up and the first, which compiles and captures."""
    blocks: BlockWay = "auto"
    """How this project's blocks compute: plain, compiled, fused."""
    graph: Graph = "auto"
    """Whether this project's step is replayed from a CUDA graph where it can be: auto, off."""
    checkpointed: bool = False
    """Recompute activations."""
    attention: str = "auto"
    """Attention backend."""
    top: int = 20
    """Kernels to print."""
    out: Path = Path("profile")
    """Folder of trace and snapshot."""


@dataclass(frozen=True)
class Profile:
    """seconds: of a step. kernels: name -> seconds of a step on the device, or of an operator by itself."""

    seconds: float
    kernels: dict[str, float]
    flops: float
    peak: float | None

    @property
    def busy(self) -> float:
        return sum(self.kernels.values())


def main(args: Args) -> int:
    from surgrec.configs.presets import PRESETS

    if args.case not in PRESETS or (args.peer and args.peer not in PEERS):
        print(f"presets are {', '.join(PRESETS)}; peers are {', '.join(PEERS)}", file=sys.stderr)
        return 2
    print_machine()
    args.out.mkdir(parents=True, exist_ok=True)
    profile = profiled(args)
    print("\n".join(report(profile, args.top)))
    print(f"written: {', '.join(str(path) for path in sorted(args.out.glob(f'{name_of(args)}*')))}")
    return 0


def name_of(args: Args) -> str:
    """Of the files that are written."""
    ours = f"{args.case}-{args.blocks}" + ("-no-graph" if args.graph == "off" else "")
    return f"{args.peer or ours}-{args.batch}"


def profiled(args: Args) -> Profile:
    """Takes the steps."""
    import dataclasses
    import time

    import torch
    from surgrec.configs.presets import PRESETS
    from torch.profiler import ProfilerActivity, profile

    from surgrec.training.estimate import build_without_memory
    from surgrec.training.peaks import peak_flops
    from surgrec.training.run_record import describe_device

    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    config: Any = with_batch(PRESETS[args.case][1], args.batch)  # type: ignore[arg-type]
    model = dataclasses.replace(
        config.model, attention=args.attention, checkpoint_activations=args.checkpointed
    )
    config = dataclasses.replace(config, model=model, graph=args.graph, steps=100_000)
    batches = open_batches(Throughput(), Work(args.case, args.case, "synthetic", args.batch), config, device)
    peer = PEERS.get(args.peer)
    setup = Setup(config, batches, device)
    step = peer.open(setup, peer.compiled) if peer else surgrec(setup, args.blocks)
    for _ in range(1 + args.steps):
        step()
    if gpu:
        torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as recorded:
        began = time.perf_counter()
        for _ in range(args.steps):
            step()
        if gpu:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - began) / args.steps
    recorded.export_chrome_trace(str(args.out / f"{name_of(args)}-trace.json.gz"))
    if gpu:  # A step of its own: writing down each allocation would keep the device waiting.
        torch.cuda.memory._record_memory_history(max_entries=1_000_000)
        step()
        torch.cuda.memory._dump_snapshot(str(args.out / f"{name_of(args)}-memory.pickle"))
        torch.cuda.memory._record_memory_history(enabled=None)
    flops = build_without_memory(config).flops_per_clip() * args.batch
    peak = peak_flops(describe_device(device), torch.bfloat16)
    return Profile(seconds, kernels_of(recorded, gpu, args.steps), flops, peak)


def kernels_of(recorded: Any, gpu: bool, steps: int) -> dict[str, float]:
    """Seconds of a step by kernel on a GPU, by operator without what it calls on a CPU."""
    times: dict[str, float] = defaultdict(float)
    for event in recorded.events():
        if event.is_user_annotation:  # A span of kernels, which are there themselves.
            continue
        on_device = event.device_type.name == "CUDA"
        if gpu and on_device:
            times[event.name] += event.device_time_total
        elif not gpu and not on_device:
            times[event.name] += event.self_cpu_time_total
    return {name: spent / 1e6 / steps for name, spent in times.items() if spent > 0}


def kind_of(kernel: str) -> str:
    """The kind of work that a kernel does, by its name."""
    lower = kernel.lower()
    return next((kind for kind, marks in KINDS if any(mark in lower for mark in marks)), OTHER)


def report(profile: Profile, top: int) -> list[str]:
    """The lines that are printed."""
    kinds: dict[str, float] = defaultdict(float)
    for name, seconds in profile.kernels.items():
        kinds[kind_of(name)] += seconds
    idle = max(0.0, profile.seconds - profile.busy)
    lines = [f"a step takes {1e3 * profile.seconds:.2f} ms"]
    lines += [f"{1e3 * s:9.3f} ms {s / profile.seconds:6.1%}  {kind}" for kind, s in ranked(kinds)]
    lines.append(f"{1e3 * idle:9.3f} ms {idle / profile.seconds:6.1%}  nothing to do")
    achieved = profile.flops / profile.seconds
    lines.append(f"{achieved / 1e12:.3g} TFLOP/s of the mathematics")
    if profile.peak:
        within = kinds["matrix products"] + kinds["attention"]
        alone = f"{profile.flops / within / profile.peak:.1%} of it within matrix products and attention"
        lines.append(f"{achieved / profile.peak:.1%} of the peak, {alone if within else 'none seen'}")
    lines.append(f"the {top} that take longest:")
    longest = ranked(profile.kernels)[:top]
    lines += [f"{1e3 * s:9.3f} ms {s / profile.seconds:6.1%}  {name[:100]}" for name, s in longest]
    return lines


def ranked(times: dict[str, float]) -> list[tuple[str, float]]:
    """The longest first."""
    return sorted(times.items(), key=lambda item: -item[1])


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, prog="bench/profile_step.py", description=__doc__)))
