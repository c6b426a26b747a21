"""Runs all tests and measurements that a release needs on a machine with a GPU, part by part.

    python bench/release.py tests runs sessions clips proxies large memory damage crop ways --out results
    python bench/release.py ranks scaling --out results

A part takes two to six minutes on an H100 with 16 cores, `scaling` up to eight on several; without a name all
are run, `ranks` and `scaling` only where there are several GPUs. With --gpus they run side by side, each on
a GPU of its own. Logs and results go to --out, generated videos to --cache and stay there. A step that fails,
or takes longer than its limit, is reported and keeps none of the others from running. Exit status 1 where one
failed.
"""

from __future__ import annotations

import itertools
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import RESULTS, ROOT, print_machine

GPU_TESTS: Final = ROOT / "tests" / "gpu"
MEMORY_TEST: Final = "test_memory_stays_where_it_is"
"""It looks at the memory of the whole GPU, so that nothing may run beside it."""
SHOWN_LINES: Final = 12
KILL_SECONDS: Final = 20.0
"""What a command may take to end itself once it is interrupted."""


@dataclass(frozen=True)
class Args:
    """What is run."""

    parts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """tests, ranks, runs, sessions, clips, proxies, large, memory, damage, crop, ways, training, scaling; all
    where none is named."""
    out: Path = RESULTS
    """Folder of logs and JSON files."""
    cache: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / "surgrec-bench")
    """Where generated videos and training runs are kept."""
    limit: float = 1.0
    """Factor on the seconds that each step may take, for machines that are slower."""
    gpus: int = 1
    """GPUs over which the parts are spread, each with its share of the cores and a folder in --cache. What
    needs all of them (scaling) comes last, by itself."""


@dataclass(frozen=True)
class Step:
    """A command, and the seconds after which it is interrupted. until: it is killed once this is there."""

    name: str
    seconds: float
    command: tuple[str, ...]
    until: Path | None = None


Together = tuple[Step, ...]
"""Steps that run side by side."""


def python(name: str, seconds: float, *arguments: object, until: Path | None = None) -> Step:
    """A step of this interpreter."""
    return Step(name, seconds, (sys.executable, *map(str, arguments)), until)


def tests(_: Args) -> list[Together]:
    """tests/gpu, in ten processes with about as much to do each."""

    def pytest(name: str, *arguments: object) -> Step:
        options = ("-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", "--durations=3")
        return python(name, 400, *options, *arguments)

    dali, engines, loader, fast, flash4, graphed, training = alone = tuple(
        GPU_TESTS / f"test_{name}_gpu.py"
        for name in (
            "dali_engine",
            "engines",
            "loader",
            "fast_path",
            "flash4_attention",
            "graphed",
            "training",
        )
    )
    others = sorted(set(GPU_TESTS.glob("test_*.py")) - set(alone))
    together = (
        pytest("tests-others", *others),
        pytest("tests-flash4", flash4),
        pytest("tests-graphed", graphed),
        pytest("tests-training", training),
        pytest("tests-loader", loader),
        pytest("tests-fast-mae", fast, "-k", "mae"),
        pytest("tests-fast-jepa", fast, "-k", "jepa"),
        pytest("tests-engines", engines, "-k", f"not {MEMORY_TEST}"),
        pytest("tests-dali-kinds", dali, "-k", "every_kind"),
        pytest("tests-dali-others", dali, "-k", "not every_kind"),
    )
    return [together, (pytest("tests-memory", engines, "-k", MEMORY_TEST),)]


def ranks(_: Args) -> list[Together]:
    """The tests that need two GPUs, which are skipped where there are fewer: that is said here."""
    code = "import sys, torch; n = torch.cuda.device_count(); print(n, 'GPUs'); sys.exit(n < 2)"
    test = python("tests-ranks", 400, "-m", "pytest", "-q", "-rfEs", GPU_TESTS / "test_graphed_ranks_gpu.py")
    return [(python("two-gpus", 60, "-c", code),), (test,)]


def runs(args: Args) -> list[Together]:
    """The doctor, an index, and every kind of pretraining run; one is killed and resumed."""
    from corpora import make_corpora

    made = make_corpora(["256g16", "480g250"], args.cache)
    folder = args.cache / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    index = folder / "corpus.h5"

    def pretrain(name: str, preset: str, *options: object, until: Path | None = None) -> Step:
        place = folder / name.removesuffix("-again")
        line = ("-m", "surgrec.pretrain", preset, "--data.index", index, "--out", place, *options)
        return python(f"run-{name}", 150, *line, until=until)

    mae = ("mae-vitb", "--batch", 64, "--steps", 30, "--log.every", 5, "--checkpoint.every", 10)
    first = folder / "killed" / "checkpoints" / "step-00000010"
    steps = [
        python("doctor", 60, "-m", "surgrec.doctor", "--data", args.cache),
        python("index", 60, "-m", "surgrec.index", *itertools.chain(*made.values()), "--out", index),
        pretrain("mae", *mae),
        pretrain("killed", *mae, until=first),
        pretrain("killed-again", *mae),
        pretrain("jepa", "jepa-vitl", "--batch", 48, "--steps", 10, "--log.every", 2),
        pretrain("jepa-256", "jepa-vitl-256", "--batch", 16, "--steps", 6, "--log.every", 2),
        pretrain("demo", "demo", "--steps", 20),
    ]
    return [(step,) for step in steps]


def crop(args: Args) -> list[Together]:
    """The crop by itself, and the loader with either way of cropping."""
    alone = python("crop", 150, "bench/crop.py", "--sweep", "--out", args.out)
    loaders = [
        bench(args, f"crop-{way}", 90, "loader_soak", "--stride", 1, "--seconds", 30, "--crop", way)
        for way in ("fused", "dali")
    ]
    return [(alone,), *itertools.chain.from_iterable(loaders)]


def training(args: Args) -> list[Together]:
    """The step from clips on the device, beside those of others, and from proxies, end to end."""
    peers = ("--peers", "transformers", "transformers-compiled", "videomae", "vjepa2")
    sources = ("--cases", "mae-vitb", "jepa-vitl", "--inputs", "cached", "proxy16", "proxy4s4")
    larger = ("--cases", "mae-vitb", "--batch", 256)
    return [
        *bench(args, "training", 540, "train_throughput", *peers),
        *bench(args, "training-256", 90, "train_throughput", *larger),
        *bench(args, "end-to-end", 400, "train_throughput", *sources, "--peers", "transformers-compiled"),
    ]


def ways(args: Args) -> list[Together]:
    """The step with blocks that compute one way or another, and without a CUDA graph; where its time goes;
    attention by backend; MLPs with and without fused products."""
    steps: list[Together] = [
        (python(name, 150, f"bench/{name}.py", "--out", args.out),) for name in ("attention", "mlp_products")
    ]
    for way in ("compiled", "fused"):
        steps += bench(args, f"blocks-{way}", 300, "train_throughput", "--blocks", way)
    without = ("--cases", "mae-vitb", "mae-vitl", "--blocks", "fused", "--graph", "off")
    steps += bench(args, "graph-off", 150, "train_throughput", *without)
    for case, batch in (("mae-vitb", 128), ("mae-vitl", 256), ("jepa-vitl", 64)):
        line = ("bench/profile_step.py", "--case", case, "--batch", batch, "--blocks", "fused", "--top", 60)
        steps.append((python(f"profile-{case}", 90, *line, "--out", args.cache / "profile"),))
    return steps


def scaling(args: Args) -> list[Together]:
    """1, 2, 4 and 8 GPUs, as far as they are there. Where the limit ends it, it writes what it has found."""
    short = ("--steps", 8, "--warmup", 2, "--runs", 2, "--curve", 4, "--loader-seconds", 2)
    return bench(args, "scaling", 480, "scaling", *short)


def memory(args: Args) -> list[Together]:
    """The loader for a long time, and on large pictures and many formats for a while."""
    steps = bench(args, "memory", 420, "loader_soak", "--stride", 1, "--seconds", 330)
    for corpus in ("1080g250", "mixed"):
        # Too short for growth to show: what is looked at is how much it takes.
        short = ("--corpus", corpus, "--seconds", 20, "--max-growth", 100)
        steps += bench(args, f"memory-{corpus}", 180, "loader_soak", *short)
    return steps


def bench(args: Args, name: str, seconds: float, script: str, *arguments: object) -> list[Together]:
    """One benchmark."""
    line = (f"bench/{script}.py", "--cache", args.cache, "--out", args.out, *arguments)
    return [(python(name, seconds, *line),)]


def throughput(args: Args, name: str, seconds: float, corpora: str, engines: str) -> list[Together]:
    """loader_throughput.py on some corpora."""
    line = ("--corpora", *corpora.split(), "--engines", *engines.split())
    times = ("--max-seconds", 3, "--warmup", WARMUP, "--ceiling", 14)
    return bench(args, name, seconds, "loader_throughput", *line, *times)


OURS: Final = "nvdec hybrid cpu"
# DALI's readers last: they are the slowest.
OTHERS: Final = (
    "decord pynvvideocodec torchcodec torchcodec-cuda spdl spdl-nvdec pyav dali dali-decoders"
    " dali-experimental dali-readers"
)
SWEPT: Final = "proxy16 proxy16s4 480g250 1080g250"
SWEEP: Final = tuple(f"{engine}-{count}" for engine in ("nvdec", "hybrid") for count in (7, 14, 21, 28))
WARMUP: Final = 5
"""Seconds; in three of them 28 NVDEC sessions are made, one after the other."""
ON_ALL: Final = ("ranks", "scaling")
"""Parts that use all GPUs at once."""
PARTS: Final[dict[str, Callable[[Args], list[Together]]]] = {
    "tests": tests,
    "ranks": ranks,
    "runs": runs,
    "sessions": lambda args: throughput(args, "sessions", 450, SWEPT, " ".join(SWEEP)),
    "clips": lambda args: throughput(args, "clips", 420, "480g250", f"{OURS} {OTHERS}"),
    "proxies": lambda args: throughput(
        args, "proxies", 330, "256g16 proxy16 proxy16-key proxy16s4 proxy4s4", f"{OURS} decord dali-decoders"
    ),
    "large": lambda args: throughput(args, "large", 420, "1080g250 mixed", OURS),
    "memory": memory,
    "damage": lambda args: bench(args, "damage", 300, "mutated_files", "--engine", "hybrid"),
    "crop": crop,
    "ways": ways,
    "training": training,
    "scaling": scaling,
}


def main() -> int:
    args = tyro.cli(Args, prog="bench/release.py", description=__doc__)
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        print(f"unknown: {unknown}; parts are {list(PARTS)}", file=sys.stderr)
        return 2
    if args.gpus > 1 and len(visible_gpus()) < args.gpus:
        print(
            f"--gpus {args.gpus}: this process sees {len(visible_gpus())}; give as many or fewer",
            file=sys.stderr,
        )
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    args.cache.mkdir(parents=True, exist_ok=True)
    print_machine()
    # What needs several GPUs is run on one only where it is asked for by name, and fails.
    parts = args.parts or tuple(part for part in PARTS if part not in ON_ALL or len(visible_gpus()) > 1)
    failed = []
    if args.gpus > 1:
        failed += spread([part for part in parts if part not in ON_ALL], args)
        parts = tuple(part for part in parts if part in ON_ALL)
    for part in parts:
        print(f"##### {part}", flush=True)
        for together in PARTS[part](args):
            failed += run(together, args.out, args.limit)
    print(f"FAILED: {', '.join(failed)}" if failed else "all ended well")
    return 1 if failed else 0


def spread(parts: list[str], args: Args) -> list[str]:
    """Runs parts side by side, as many at a time as there are GPUs; the names of those that failed."""
    visible = visible_gpus()
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // args.gpus)
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    stopped = threading.Event()
    for part in parts:
        waiting.put(part)

    def work(number: int) -> list[str]:
        # Of this thread, and so of the processes that it starts.
        os.sched_setaffinity(0, cores[number * share : (number + 1) * share] or cores)
        failed: list[str] = []
        while not stopped.is_set():
            try:
                part = waiting.get_nowait()
            except queue.Empty:
                break
            done = subprocess.run(
                command_of(part, replace(args, cache=args.cache / f"gpu-{number}")),
                env=os.environ | {"CUDA_VISIBLE_DEVICES": visible[number]},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            print(f"on GPU {number}: {done.stdout}", flush=True)
            failed += [part] if done.returncode else []
        return failed

    with ThreadPoolExecutor(args.gpus) as pool:
        try:
            return list(itertools.chain.from_iterable(pool.map(work, range(args.gpus))))
        except KeyboardInterrupt:  # It ends the parts that run; those that wait are not to start.
            stopped.set()
            raise


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    try:
        shown = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return []
    return [str(number) for number in range(shown.count("GPU "))]


def command_of(part: str, args: Args) -> list[str]:
    """The command that runs one part."""
    places = ("--out", str(args.out), "--cache", str(args.cache), "--limit", str(args.limit))
    return [sys.executable, str(Path(__file__).resolve()), part, *places]


def run(steps: Together, out: Path, limit: float = 1.0) -> list[str]:
    """Runs steps side by side; the names of those that failed. Each has its log in `out`."""
    begin = time.monotonic()
    processes = []
    for step in steps:
        with (out / f"{step.name}.log").open("w") as log:
            started = subprocess.Popen(
                step.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        processes.append((step, started))
    failed = []
    for step, process in processes:
        right = _wait(step, process, begin + limit * step.seconds)
        seconds = time.monotonic() - begin
        print(f"=== {step.name}: exit status {process.returncode} after {seconds:.0f} s", flush=True)
        lines = (out / f"{step.name}.log").read_text(errors="replace").replace("\r", "\n").splitlines()
        print("\n".join(lines[-SHOWN_LINES:]), flush=True)
        if not right:
            failed.append(step.name)
    return failed


def _wait(step: Step, process: subprocess.Popen[bytes], until: float) -> bool:
    """Waits for a step, and ends it where it must. Whether it did what it should."""
    while process.poll() is None:
        if step.until is not None and step.until.exists():
            process.kill()
            process.wait()
            return True
        if time.monotonic() > until:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return False
        time.sleep(0.05)
    return process.returncode == 0 and step.until is None


if __name__ == "__main__":
    sys.exit(main())
