"""How a corpus is curated: what is kept of it, and how often it is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from surgrec.configs.data import BalanceConfig

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
