"""GPU, driver, CUDA, and the video decoder on the chip (NVDEC)."""

from __future__ import annotations

import shutil
import subprocess

from surgrec.diagnostics.check import Check, one_line
from surgrec.loaders.engines import nvcuvid

GROUP = "GPU"
DRIVER_REMEDY = "install NVIDIA's driver 580 or newer (CUDA 13); pretraining runs on the CPU without one"
VIDEO_REMEDY = (
    "NVDEC's library comes with the driver; in a container ask for it with NVIDIA_DRIVER_CAPABILITIES=all"
)
CODECS = {
    "MPEG-2": "mpeg2video",
    "MPEG-4": "mpeg4",
    "H.264": "h264",
    "JPEG": "mjpeg",
    "HEVC": "hevc",
    "VP8": "vp8",
    "VP9": "vp9",
    "AV1": "av1",
}
"""Names in the report, and FFmpeg's."""
TEN_BIT = ("HEVC", "VP9", "AV1")


def has_gpu() -> bool:
    """Whether PyTorch can use a GPU."""
    import torch

    return torch.cuda.is_available()


def has_hopper() -> bool:
    """Whether GPU 0 is of the generation that the extra `hopper` is for; there must be one."""
    import torch

    return torch.cuda.get_device_capability(0)[0] == 9


def check_driver() -> Check:
    """The driver, as nvidia-smi tells."""
    if shutil.which("nvidia-smi") is None:
        return Check(GROUP, "driver", "warn", "nvidia-smi is not there: no NVIDIA driver", DRIVER_REMEDY)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Check(GROUP, "driver", "warn", f"nvidia-smi fails: {one_line(error)}", DRIVER_REMEDY)
    return Check(
        GROUP, "driver", "ok", "; ".join(line.strip() for line in answer.splitlines() if line.strip())
    )


def check_cuda() -> Check:
    """GPUs that PyTorch sees, and what its build wants."""
    import torch

    built = torch.version.cuda
    if built is None:
        remedy = "install torch's CUDA build to train on a GPU; the CPU works without"
        return Check(GROUP, "CUDA", "warn", "this torch is built without CUDA", remedy)
    if not torch.cuda.is_available():
        return Check(GROUP, "CUDA", "warn", f"torch is built for CUDA {built} and sees no GPU", DRIVER_REMEDY)
    names = []
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        names.append(f"{device.name}, {device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}")
    return Check(GROUP, "CUDA", "ok", f"torch for CUDA {built}: {'; '.join(names)}")


def check_nvdec(gpu: bool) -> Check:
    """Decoding engines of GPU 0 and the codecs that they take."""
    if not gpu:
        return Check(GROUP, "NVDEC", "warn", "no GPU: the cpu engine decodes", DRIVER_REMEDY)
    try:
        make_context_current()
        driver = nvcuvid.load_driver()
        caps = {
            (name, bits): nvcuvid.decode_caps(driver, nvcuvid.CODECS[codec], bits)
            for name, codec in CODECS.items()
            for bits in ((8, 10) if name in TEN_BIT else (8,))
        }
    except RuntimeError as error:  # CUDA's, and NvdecUnavailable, whose message ends with a remedy of its own
        cause = str(error).removesuffix(f". {nvcuvid.REMEDY}")
        return Check(GROUP, "NVDEC", "warn", one_line(RuntimeError(cause)), VIDEO_REMEDY)
    tens = [name for name in TEN_BIT if caps[name, 10].supported]
    taken = [
        f"{name}{' (10 bit)' if name in tens else ''} to {cap.max_width}x{cap.max_height}"
        for (name, bits), cap in caps.items()
        if bits == 8 and cap.supported
    ]
    engines = max(cap.engines for (_, bits), cap in caps.items() if bits == 8)
    if not taken:
        remedy = "this GPU decodes no video; the cpu engine does"
        return Check(GROUP, "NVDEC", "warn", "no codec is supported", remedy)
    return Check(GROUP, "NVDEC", "ok", f"{engines} engines: {', '.join(taken)}")


def make_context_current() -> None:
    """Gives NVDEC's library the CUDA context that it wants, GPU 0's. Raises RuntimeError without CUDA."""
    import torch

    torch.zeros(1, device="cuda:0")


def check_nv_video_codec(gpu: bool) -> Check:
    """PyNvVideoCodec imports. It raises without NVIDIA's driver, so it is not tried where there is no GPU."""
    if not gpu:
        return Check(GROUP, "PyNvVideoCodec", "warn", "not tried: it needs a GPU's driver", DRIVER_REMEDY)
    try:
        import PyNvVideoCodec
    except (ImportError, OSError, RuntimeError) as error:
        return Check(GROUP, "PyNvVideoCodec", "warn", one_line(error), VIDEO_REMEDY)
    return Check(GROUP, "PyNvVideoCodec", "ok", f"{getattr(PyNvVideoCodec, '__version__', 'imports')}")
