"""The engines by name."""

from __future__ import annotations

from typing import Final

import torch
from surgrec.configs.data import DataConfig
from surgrec.loaders.engines.base import Engine
from surgrec.loaders.engines.cpu import CpuEngine
from surgrec.loaders.packet_index import PacketIndex

ENGINE_NAMES: Final = ("auto", "cpu", "nvdec", "dali", "hybrid")


def make_engine(index: PacketIndex, data: DataConfig, threads: int, device: torch.device) -> Engine:
    """The engine that data.engine names, for frames that are wanted on `device`.

    Raises ValueError for a name that does not exist, or an engine that this machine cannot run.
    """
    if data.engine not in ENGINE_NAMES:
        raise ValueError(f"there is no engine {data.engine!r}; choose from {', '.join(ENGINE_NAMES)}")
    return CpuEngine(index, threads=threads, drop_disposable=data.drop_disposable)
