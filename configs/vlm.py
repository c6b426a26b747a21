"""How a vision-language model is asked about the clips of a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import tyro

Kind = Literal["middle", "frames", "video"]


@dataclass(frozen=True)
class LookConfig:
    """What the model sees of a clip: pictures in their own shape, as displayed, within bounds."""

    kind: Kind = "middle"
    """middle: the frame in the middle. frames: `frames` of them as pictures, in the middles of equal shares
    of the clip. video: a video of `fps` frames a second, `frames` at most, for models that take videos."""
    frames: int = 8
    """Of `frames` and `video`; a clip that has fewer shows all it has."""
    fps: float = 2.0
    """Of `video`."""
    long_side: int = 768
    """Pixels of the longer side at most."""
    short_side: int | None = None
    """Pixels of the shorter side at most, None for no such bound."""


@dataclass(frozen=True)
class LocalConfig:
    """How a model of transformers runs (--model hf:...)."""

    batch: int = 8
    """Questions that it is asked at a time."""
    device: Literal["auto", "cpu", "cuda", "spread"] = "auto"
    """auto takes a GPU where there is one; spread puts the layers on all GPUs, for models too large for
    one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto is bfloat16 on a GPU and float32 elsewhere. float32 is never TF32."""


@dataclass(frozen=True)
class EndpointConfig:
    """How an OpenAI-compatible server is asked (--model api:...)."""

    url: str = "http://localhost:8000/v1"
    """Of the API: /chat/completions is appended."""
    key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key. It may be unset: then none is sent."""
    concurrency: int = 8
    """Requests under way at a time."""
    requests_per_minute: int | None = None
    """Requests that are begun in a minute at most, retries too; None for no bound."""
    retries: int = 5
    """Times that a request is sent again after a failure that may pass."""
    backoff: float = 1.0
    """Seconds before the first retry, about; each later one waits twice as long, 60 s at most. A server that
    says how long to wait is obeyed."""
    timeout: float = 120.0
    """Seconds that a request may take."""
    image: Literal["jpeg", "png"] = "jpeg"
    """How pictures are sent."""
    quality: int = 95
    """Of JPEG, 1 to 100."""
    temperature: float | None = 0.0
    """0 is greedy. None sends none, for models that take none."""
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the bound on the tokens that are written; OpenAI's newer models know the
    second."""
    top_logprobs: int = 20
    """Likely first tokens that the server is asked for, among which the letters of the options must be.
    OpenAI gives 20 at most, vLLM as many as --max-logprobs says."""


@dataclass(frozen=True)
class RunConfig:
    """Ask a vision-language model about the clips of a split, and keep every question and answer in --out.

    A clip that cannot be read is named and never replaced. A run that was stopped goes on where it was, and
    asks nothing twice; what failed and may pass is asked again.
    """

    manifest: Path
    """The split, as `python -m surgrec.benchmark import` writes it."""
    data_root: Path
    """The folder that the manifest's paths are relative to."""
    model: str
    """hf:FOLDER or hf:NAME: a model of transformers, from a folder or the hub. api:NAME: the model of that
    name at --endpoint.url."""
    out: Path
    """The store: a JSON line for each question and its answer. The index of the videos lies beside it."""
    prompts: str = "default"
    """A set of prompts: the name of one that comes with SurgRec, or a file."""
    permutations: int = 1
    """Orders of the options in which each wording is asked of each clip, drawn by --seed."""
    ways: tuple[Literal["generate", "options"], ...] = ("generate", "options")
    """generate: the model writes freely, greedily. options: the log-likelihood of each option, beside that
    for a grey picture."""
    split: Literal["train", "val", "test"] = "test"
    """Whose clips are asked about."""
    limit: int | None = None
    """Clips that are asked about at most, spread over the groups; those of a smaller limit are among them."""
    max_new_tokens: int = 16
    """Tokens that the model writes at most."""
    dry_run: bool = False
    """Say how much would be asked, and ask nothing."""
    seed: int = 0
    """Of the orders of options, the choice of --limit, and the waiting before retries."""
    workers: int = 0
    """Threads that decode; 0 takes the cores of this machine."""
    look: LookConfig = field(default_factory=LookConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)


@dataclass(frozen=True)
class ScoreConfig:
    """Judge answers: accuracy, how far it depends on the wording and the order of options, position bias and
    calibration, with 95 % intervals by bootstrap over groups, beside baselines and probes.

    Results are appended as lines that `table`, and `python -m surgrec.benchmark table` and `compare`, read.
    """

    stores: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Stores of answers, as `run` writes them."""
    manifest: Path
    """The split that was asked about."""
    prompts: tuple[str, ...] = ("default",)
    """Sets of prompts that were asked: names of those that come with SurgRec, or files. They say how answers
    are read."""
    beside: tuple[Path, ...] = ()
    """Files of results, as `python -m surgrec.probe` writes them, that are shown beside on the same clips."""
    each_prompt: bool = True
    """A result for every wording by itself, with its predictions, besides those for all together."""
    out: Path = Path("results.jsonl")
    """Results are appended to this file."""
    resamples: int = 1000
    """Resamples of the bootstrap over groups, and reassignments of orders in the test of position bias."""
    seed: int = 0
    """Of the resamples and reassignments."""


@dataclass(frozen=True)
class TableConfig:
    """Make a table of results of vision-language models and of probes, with a table of the wordings and one
    of the positions that were chosen for each model.

    Of several results of one model in one way on one split the last one counts.
    """

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files of results, as `score` and `python -m surgrec.probe` write them."""
    form: Literal["markdown", "latex", "csv", "html"] = "markdown"
    """html is one page by itself; csv has a line for each figure of each result."""
    out: Path | None = None
    """Where the table goes; it is printed by default."""


COMMANDS: Final[dict[str, Callable[..., Any]]] = {
    "run": RunConfig,
    "score": ScoreConfig,
    "table": TableConfig,
}
"""What is behind `python -m surgrec.vlm`."""
