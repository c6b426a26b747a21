"""Which engine a configuration gives, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from surgrec.configs.data import DataConfig
from surgrec.loaders.engines.cpu import CpuEngine
from surgrec.loaders.engines.select import ENGINE_NAMES, make_engine

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_a_cpu_decodes_in_threads(stream_corpus, name):
    with make_engine(stream_corpus.index, DataConfig(engine=name), 1, CPU) as engine:
        assert isinstance(engine, CpuEngine)


@pytest.mark.parametrize("name", sorted(set(ENGINE_NAMES) - {"auto", "cpu"}))
def test_engines_of_a_gpu_are_refused_without_one(stream_corpus, name):
    with pytest.raises(ValueError, match=f"engine {name} needs a GPU; on cpu use engine cpu, or auto"):
        make_engine(stream_corpus.index, DataConfig(engine=name), 1, CPU)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"decoder_timeout": 0.0}, "decoder_timeout is 0.0; it is a number of seconds above 0"),
        ({"decoder_timeout": float("nan")}, "decoder_timeout is nan"),
        ({"sessions": -1}, "sessions is -1; 0 takes"),
        ({"session_mib": 0}, "session_mib is 0; NVDEC sessions need"),
        ({"engine": "gpu"}, "there is no engine 'gpu'; choose from auto, cpu"),
    ],
)
def test_values_that_make_no_sense(stream_corpus, wrong, text):
    with pytest.raises(ValueError, match=text):
        make_engine(stream_corpus.index, replace(DataConfig(), **wrong), 1, CPU)
