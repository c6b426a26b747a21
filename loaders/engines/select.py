"""The engines by name."""

from __future__ import annotations

from typing import Final

import torch
from surgrec.configs.data import DataConfig
from surgrec.loaders.engines.base import Engine, check_timeout
from surgrec.loaders.engines.cpu import CpuEngine
from surgrec.loaders.engines.cpu_processes import CpuProcesses
from surgrec.loaders.engines.nvcuvid import NvdecUnavailable
from surgrec.loaders.packet_index import PacketIndex

ENGINE_NAMES: Final = ("auto", "cpu", "nvdec", "dali", "hybrid")


def make_engine(index: PacketIndex, data: DataConfig, threads: int, device: torch.device) -> Engine:
    """The engine that data.engine names, for frames that are wanted on `device`.

    threads: of FFmpeg. On a GPU all engines give Planes there, on the CPU RGB arrays. Raises ValueError for a
    name that does not exist, or an engine that this machine cannot run.
    """
    if data.engine not in ENGINE_NAMES:
        raise ValueError(f"there is no engine {data.engine!r}; choose from {', '.join(ENGINE_NAMES)}")
    check_timeout(data.decoder_timeout)
    if data.sessions < 0:
        raise ValueError(f"sessions is {data.sessions}; 0 takes what suits the GPU")
    if data.session_mib < 1:
        raise ValueError(f"session_mib is {data.session_mib}; NVDEC sessions need at least 1 MiB")
    gpu = device.type == "cuda"
    if gpu and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if data.engine in ("nvdec", "dali", "hybrid") and not gpu:
        raise ValueError(f"engine {data.engine} needs a GPU; on {device} use engine cpu, or auto")
    if data.engine in ("nvdec", "hybrid") or (data.engine == "auto" and gpu):
        # Importing it compiles its callbacks; a machine without a GPU need not wait for that.
        from surgrec.loaders.engines.nvdec import NvdecEngine

        try:
            return NvdecEngine(
                index,
                device,
                sessions=data.sessions,
                threads=threads,
                share=data.engine != "nvdec",
                drop_disposable=data.drop_disposable,
                timeout=data.decoder_timeout,
                session_memory=data.session_mib << 20,
            )
        except NvdecUnavailable as error:
            if data.engine != "auto":
                raise ValueError(f"engine {data.engine} cannot run here: {error}") from error
    if data.engine == "dali":
        from surgrec.loaders.engines.dali import DaliEngine

        return DaliEngine(
            index,
            device,
            threads=threads,
            drop_disposable=data.drop_disposable,
            timeout=data.decoder_timeout,
        )
    if gpu:
        return CpuProcesses(index, device, threads, data.drop_disposable, data.decoder_timeout)
    return CpuEngine(index, threads, data.drop_disposable)
