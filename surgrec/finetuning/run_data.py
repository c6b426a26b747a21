"""What a run of fine-tuning reads: the split, the videos and the pretrained network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from surgrec.configs.data import DataConfig
from surgrec.configs.finetune import FinetuneConfig
from surgrec.evaluation.clip_cut import cut_of
from surgrec.evaluation.manifest import Split, SplitManifest
from surgrec.evaluation.parts import Part, parts_among
from surgrec.finetuning.labelled_clips import Clips
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.failure_watch import FailureWatch
from surgrec.loaders.ledger import Ledger
from surgrec.training.run_folder import RunFolder
from surgrec.weights.load import OpenedModel


@dataclass(frozen=True)
class RunData:
    """What a run reads. batch: clips of a step."""

    manifest: SplitManifest
    model: OpenedModel
    clips: Clips
    parts: dict[Split, Part]
    batch: int
    stream: ClipStream
    watch: FailureWatch

    def present(self, missing: Mapping[int, str]) -> NDArray[np.bool_]:
        """bool [rows of the manifest]: those that can be read, but the missing."""
        present = self.clips.present
        present[list(missing)] = False
        return present


def open_data(
    config: FinetuneConfig,
    manifest: SplitManifest,
    model: OpenedModel,
    run: RunFolder,
    device: torch.device,
    threads: int,
    stack: ExitStack,
) -> RunData:
    """Indexes the videos and opens what reads them, for as long as `stack` is open.

    Raises ManifestError, BuildError, FeatureError for a split of which nothing can be learned, OSError.
    """
    clips = Clips(manifest, config.data_root, cut_of(model.clip), run.path / "videos.h5", threads)
    parts = parts_among(clips.present, manifest, str(config.manifest))
    batch = min(config.batch, len(parts["train"].rows))
    if config.mixup or config.cutmix:
        batch -= batch % 2
    data = DataConfig(size=model.clip.size)
    stream = stack.enter_context(ClipStream(clips.index, data, device, threads))
    ledger = stack.enter_context(Ledger(run.ledger))
    watch = FailureWatch(data.max_failures, ledger)
    return RunData(manifest, model, clips, parts, batch, stream, watch)
