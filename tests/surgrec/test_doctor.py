"""The doctor: a healthy machine, and machines on which something is missing."""

from __future__ import annotations

import builtins
import ctypes
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from surgrec.loaders.engines import nvcuvid

from surgrec import doctor
from surgrec.diagnostics import accelerator, machine, media, software
from surgrec.diagnostics.check import Check, one_line


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Exception], None]:
    """Make the import of a module and what is in it fail."""

    def hidden(name: str, error: Exception) -> None:
        real = builtins.__import__

        def stand_in(wanted: str, *arguments: Any, **named: Any) -> ModuleType:
            if wanted == name or wanted.startswith(name + "."):
                raise error
            return real(wanted, *arguments, **named)

        monkeypatch.setattr(builtins, "__import__", stand_in)

    return hidden


def test_this_machine_can_pretrain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json", "--data", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["can_pretrain"] is True
    by_name = {check["name"]: check for check in report["checks"]}
    assert {"Python", "DALI", "numba compiles", "FFmpeg", "NVDEC", "file descriptors"} <= by_name.keys()
    assert by_name["DALI"]["status"] == "ok"
    assert "h264" in by_name["decoders"]["value"]
    assert "MB/s" in by_name[f"disk of {tmp_path}"]["value"]
    for check in report["checks"]:
        assert (check["status"] == "ok") == (check["remedy"] == "")
    assert list(tmp_path.iterdir()) == []


def test_table_names_what_is_missing_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(software, "version_of", lambda name: None if name == "h5py" else "1.0")
    assert doctor.main(["--data", str(tmp_path)]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "pip install h5py" in text
    assert "Pretraining cannot run here until this is mended: h5py" in text


def test_missing_optional_package_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "version_of", lambda name: None)
    check = software.check_package("xformers")
    assert check.status == "warn"
    assert doctor.can_pretrain([check])
    assert not doctor.can_pretrain([check, software.check_package("torch")])


def test_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software.sys, "version_info", (3, 10, 2))
    check = software.check_python()
    assert (check.status, check.required) == ("missing", True)
    assert "3.11" in check.remedy


def test_dali_that_does_not_load(hide: Callable[[str, Exception], None]) -> None:
    hide("nvidia.dali", ImportError("libdali.so: undefined symbol"))
    check = software.check_dali()
    assert (check.status, check.required) == ("missing", True)
    assert "undefined symbol" in check.value


def test_dali_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from nvidia.dali import fn

    monkeypatch.setattr(fn, "resize", lambda clips, **options: clips)
    check = software.check_dali()
    assert check.status == "missing"
    assert "not (2, 2, 16, 16, 3)" in check.value


def test_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "scaled_dot_product_attention" in software.check_attention(gpu=False).value
    monkeypatch.setattr(software, "try_attention", lambda: {"cudnn": None, "xformers": "no", "flash": None})
    assert software.check_attention(gpu=True) == Check("software", "attention", "ok", "runs by cudnn, flash")
    monkeypatch.setattr(software, "try_attention", lambda: {"xformers": "built for another", "cudnn": None})
    assert "xformers would be faster: pip install an xformers" in software.check_attention(gpu=True).remedy
    monkeypatch.setattr(software, "try_attention", lambda: {"cudnn": "not installed", "flash": None})
    slower = software.check_attention(gpu=True)
    assert slower.status == "warn"
    assert slower.value == "runs by flash (cudnn: not installed)"
    assert "pip install 'nvidia-cudnn-frontend<1.23'" in slower.remedy


def test_fused_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "version_of", lambda name: None)
    check = software.check_products()
    assert (check.status, check.value, check.required) == ("warn", "not installed", False)
    assert "pip install 'quack-kernels[cu13]" in check.remedy
    monkeypatch.setattr(software, "version_of", lambda name: "0.6.5" if name == "quack-kernels" else None)
    monkeypatch.setattr(software, "try_products", lambda: "ImportError: no cutlass")
    check = software.check_products()
    assert (check.status, check.value) == ("warn", "0.6.5 (ImportError: no cutlass)")
    monkeypatch.setattr(software, "try_products", lambda: None)
    assert software.check_products().status == "ok"


def test_flash4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "version_of", lambda name: None)
    check = software.check_flash4()
    assert (check.name, check.status, check.value) == ("flash-attn-4", "warn", "not installed")
    assert not check.required
    assert "pip install 'flash-attn-4[cu13]==4.0.0b36'" in check.remedy
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"flash-attn-4==4.0.0b36;' in project
    monkeypatch.setattr(software, "version_of", lambda name: "4.0" if name == "flash-attn-4" else None)
    monkeypatch.setattr(software, "try_flash4", lambda: "RuntimeError: it does not compile")
    check = software.check_flash4()
    assert (check.status, check.value) == ("warn", "4.0 (RuntimeError: it does not compile)")
    monkeypatch.setattr(software, "try_flash4", lambda: None)
    assert software.check_flash4().status == "ok"


@pytest.mark.parametrize("hopper", [True, False])
def test_what_is_for_a_hopper_gpu_is_looked_for_there_only(
    hopper: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "has_gpu", lambda: True)
    monkeypatch.setattr(accelerator, "has_hopper", lambda: hopper)
    monkeypatch.setattr(software, "try_attention", lambda: {"cudnn": None})
    monkeypatch.setattr(software, "try_products", lambda: "it does not run here")
    monkeypatch.setattr(software, "try_flash4", lambda: "it does not run here")
    names = [check.name for check in doctor.examine(tmp_path)]
    assert ("quack-kernels" in names) == ("flash-attn-4" in names) == hopper


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator.shutil, "which", lambda name: None)
    assert accelerator.check_driver().status == "warn"


def test_driver_answers_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    answer = SimpleNamespace(stdout="NVIDIA H100, 580.1, 81559 MiB\n\n")
    monkeypatch.setattr(accelerator.subprocess, "run", lambda *a, **k: answer)
    assert accelerator.check_driver().value == "NVIDIA H100, 580.1, 81559 MiB"

    def fail(*arguments: Any, **named: Any) -> None:
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr(accelerator.subprocess, "run", fail)
    check = accelerator.check_driver()
    assert check.status == "warn"
    assert "exit status 9" in check.value


class FakeNvdec:
    """Stands for the driver: it answers what the decoder can do, in the driver's own structure."""

    def __init__(self, codecs: tuple[str, ...], ten_bit: tuple[str, ...] = (), error: int = 0) -> None:
        self.codecs = [(nvcuvid.CODECS[codec], 8) for codec in codecs]
        self.codecs += [(nvcuvid.CODECS[codec], 10) for codec in ten_bit]
        self.error = error
        self.kept = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64)(self.answer)

    def answer(self, address: int) -> int:
        caps = nvcuvid.DecodeCaps.from_address(address)
        assert caps.chroma == nvcuvid.CHROMA_420
        if (caps.codec, 8 + caps.bit_depth_minus_8) in self.codecs:
            caps.supported, caps.engines, caps.max_width, caps.max_height = 1, 7, 8192, 4096
        return self.error

    def driver(self) -> nvcuvid.Driver:
        addresses = dict.fromkeys(nvcuvid.Driver.__dataclass_fields__, 0)
        address = ctypes.cast(self.kept, ctypes.c_void_p).value
        assert address is not None
        return nvcuvid.Driver(**addresses | {"decoder_caps": address})


@pytest.fixture
def nvdec(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeNvdec], Check]:
    """What the doctor says of a machine with this NVDEC."""

    def examine(fake: FakeNvdec) -> Check:
        monkeypatch.setattr(accelerator, "make_context_current", lambda: None)
        monkeypatch.setattr(nvcuvid, "load_driver", fake.driver)
        return accelerator.check_nvdec(gpu=True)

    return examine


def test_nvdec(nvdec: Callable[[FakeNvdec], Check]) -> None:
    check = nvdec(FakeNvdec(("h264", "hevc"), ("hevc",)))
    assert check == Check("GPU", "NVDEC", "ok", "7 engines: H.264 to 8192x4096, HEVC (10 bit) to 8192x4096")
    check = nvdec(FakeNvdec(tuple(nvcuvid.CODECS)))
    assert [part.split()[0] for part in check.value.removeprefix("7 engines: ").split(", ")] == [
        "MPEG-2", "MPEG-4", "H.264", "JPEG", "HEVC", "VP8", "VP9", "AV1"
    ]  # fmt: skip


def test_no_nvdec(nvdec: Callable[[FakeNvdec], Check], monkeypatch: pytest.MonkeyPatch) -> None:
    assert accelerator.check_nvdec(gpu=False).status == "warn"
    check = nvdec(FakeNvdec(()))
    assert (check.status, check.value) == ("warn", "no codec is supported")
    check = nvdec(FakeNvdec((), error=201))
    assert (check.status, check.value) == ("warn", "cuvidGetDecoderCaps returned CUDA error 201")
    assert "NVIDIA_DRIVER_CAPABILITIES" in check.remedy

    def no_library() -> nvcuvid.Driver:
        raise nvcuvid.NvdecUnavailable(f"libnvcuvid.so.1 cannot be used: no such file. {nvcuvid.REMEDY}")

    monkeypatch.setattr(nvcuvid, "load_driver", no_library)
    check = accelerator.check_nvdec(gpu=True)
    assert (check.status, check.value) == ("warn", "libnvcuvid.so.1 cannot be used: no such file")
    assert "NVIDIA_DRIVER_CAPABILITIES" in check.remedy

    def no_cuda() -> None:
        raise RuntimeError("CUDA error: out of memory\nCompile with ...")

    monkeypatch.setattr(accelerator, "make_context_current", no_cuda)
    check = accelerator.check_nvdec(gpu=True)
    assert (check.status, check.value) == ("warn", "CUDA error: out of memory Compile with ...")


def test_pynvvideocodec_is_not_imported_without_a_gpu(hide: Callable[[str, Exception], None]) -> None:
    hide("PyNvVideoCodec", RuntimeError("libnvidia-encode.so.1 is missing"))
    assert "not tried" in accelerator.check_nv_video_codec(gpu=False).value
    assert "libnvidia-encode" in accelerator.check_nv_video_codec(gpu=True).value


def test_ffmpeg_without_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert media.available(("h264", "nonsense"), "r") == (["h264"], ["nonsense"])
    monkeypatch.setattr(media, "DECODERS", ("h264", "nonsense"))
    check = media.check_decoders()
    assert (check.status, check.required) == ("warn", False)
    assert check.value == "h264; not nonsense"
    monkeypatch.setattr(media, "ESSENTIAL", ("nonsense",))
    assert (media.check_decoders().status, media.check_decoders().required) == ("missing", True)


def test_no_ffmpeg(hide: Callable[[str, Exception], None]) -> None:
    hide("av", ImportError("no av"))
    assert media.check_ffmpeg().status == "missing"
    assert media.check_decoders().required
    assert media.check_encoders().status == "warn"


def test_few_file_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (1024, 524288))
    check = machine.check_files()
    assert (check.status, check.remedy) == ("warn", "ulimit -n 65536")
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (1024, resource.RLIM_INFINITY))
    assert machine.check_files().remedy == "ulimit -n 65536"
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (1024, 1024))
    assert "administrator" in machine.check_files().remedy
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert machine.check_files().status == "ok"


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_shared_memory(tmp_path / "not there").status == "warn"
    monkeypatch.setattr(machine, "ENOUGH_SHARED", sys.maxsize)
    assert "--shm-size" in machine.check_shared_memory(tmp_path).remedy


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ENOUGH_MEMORY", sys.maxsize)
    assert machine.check_memory().status == "warn"


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.read_speed(tmp_path, size=2**20) > 0
    missing = machine.check_disk(tmp_path / "not there")
    assert missing.status == "warn"
    assert "No such file" in missing.value
    monkeypatch.setattr(machine, "read_speed", lambda folder: 20e6)
    slow = machine.check_disk(tmp_path)
    assert slow.status == "warn"
    assert "reads 20 MB/s" in slow.value

    def full(folder: Path) -> float:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(machine, "read_speed", full)
    assert machine.check_disk(tmp_path).remedy == "make room"


def test_a_failed_check_without_a_remedy_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="names a remedy"):
        Check("group", "name", "warn", "value")
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 500))) == 160
