"""GPU, driver, CUDA, and the video decoder on the chip (NVDEC)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

from surgrec.diagnostics.check import Check, one_line

GROUP = "GPU"
DRIVER_REMEDY = "install NVIDIA's driver 580 or newer (CUDA 13); pretraining runs on the CPU without one"
VIDEO_REMEDY = (
    "NVDEC's library comes with the driver; in a container ask for it with NVIDIA_DRIVER_CAPABILITIES=all"
)
# cudaVideoCodec of NVIDIA's Video Codec SDK (cuviddec.h).
CODECS = {"MPEG-2": 1, "MPEG-4": 2, "H.264": 4, "JPEG": 5, "HEVC": 8, "VP8": 9, "VP9": 10, "AV1": 11}
TEN_BIT = ("HEVC", "VP9", "AV1")
CHROMA_420 = 1


class DecodeCaps(ctypes.Structure):
    """CUVIDDECODECAPS of cuviddec.h."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("bit_depth_minus_8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("supported", ctypes.c_ubyte),
        ("engines", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_blocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("histogram", ctypes.c_ubyte),
        ("counter_bit_depth", ctypes.c_ubyte),
        ("max_bins", ctypes.c_ushort),
        ("reserved3", ctypes.c_uint * 10),
    )


def has_gpu() -> bool:
    """Whether PyTorch can use a GPU."""
    import torch

    return torch.cuda.is_available()


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
        caps = {name: decode_caps(code, 8) for name, code in CODECS.items()}
        tens = [name for name in TEN_BIT if decode_caps(CODECS[name], 10).supported]
    except (OSError, RuntimeError) as error:
        return Check(GROUP, "NVDEC", "warn", one_line(error), VIDEO_REMEDY)
    taken = [
        f"{name}{' (10 bit)' if name in tens else ''} to {cap.max_width}x{cap.max_height}"
        for name, cap in caps.items()
        if cap.supported
    ]
    engines = max((cap.engines for cap in caps.values()), default=0)
    if not taken:
        remedy = "this GPU decodes no video; the cpu engine does"
        return Check(GROUP, "NVDEC", "warn", "no codec is supported", remedy)
    return Check(GROUP, "NVDEC", "ok", f"{engines} engines: {', '.join(taken)}")


def decode_caps(codec: int, bits: int) -> DecodeCaps:
    """What NVDEC of GPU 0 does with 4:2:0 video of a codec. Raises OSError without NVDEC's library."""
    import torch

    torch.cuda.init()
    torch.zeros(1, device="cuda")  # cuvid wants a current context
    library = ctypes.CDLL("libnvcuvid.so.1")
    caps = DecodeCaps(codec=codec, chroma=CHROMA_420, bit_depth_minus_8=bits - 8)
    status = library.cuvidGetDecoderCaps(ctypes.byref(caps))
    if status != 0:
        raise RuntimeError(f"cuvidGetDecoderCaps returned CUDA error {status}")
    return caps


def check_nv_video_codec(gpu: bool) -> Check:
    """PyNvVideoCodec imports. It raises without NVIDIA's driver, so it is not tried where there is no GPU."""
    if not gpu:
        return Check(GROUP, "PyNvVideoCodec", "warn", "not tried: it needs a GPU's driver", DRIVER_REMEDY)
    try:
        import PyNvVideoCodec
    except (ImportError, OSError, RuntimeError) as error:
        return Check(GROUP, "PyNvVideoCodec", "warn", one_line(error), VIDEO_REMEDY)
    return Check(GROUP, "PyNvVideoCodec", "ok", f"{getattr(PyNvVideoCodec, '__version__', 'imports')}")
