"""NVIDIA's video decoder (NVDEC): addresses of the driver's functions, and the layout of its structures.

Layouts: cuviddec.h and nvcuvid.h of NVIDIA's Video Codec SDK 12, and cuda.h, on 64-bit Linux. The libraries
come with the driver; nothing is loaded before it is asked for.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

# cudaVideoCodec
CODECS: Final = {"mpeg1video": 0, "mpeg2video": 1, "mpeg4": 2, "h264": 4, "mjpeg": 5, "hevc": 8, "vp8": 9}
CODECS.update({"vp9": 10, "av1": 11})
CHROMA_420: Final = 1

REMEDY: Final = (
    "NVDEC's libraries come with NVIDIA's driver; in a container ask for them with"
    " NVIDIA_DRIVER_CAPABILITIES=all. The cpu engine works without"
)
OUT_OF_MEMORY: Final = 2  # CUDA_ERROR_OUT_OF_MEMORY


class NvdecUnavailable(RuntimeError):  # noqa: N818 - named for what is wrong
    """This machine, or this process, has no NVDEC; the message says why."""


class DecodeCaps(ctypes.Structure):
    """CUVIDDECODECAPS."""

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


class ParserParameters(ctypes.Structure):
    """CUVIDPARSERPARAMS. Callbacks are addresses of int(void *user, void *what)."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("max_surfaces", ctypes.c_uint),
        ("clock_rate", ctypes.c_uint),
        ("error_threshold", ctypes.c_uint),
        ("max_display_delay", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 4),
        ("user", ctypes.c_void_p),
        ("on_sequence", ctypes.c_void_p),
        ("on_decode", ctypes.c_void_p),
        ("on_display", ctypes.c_void_p),
        ("on_operating_point", ctypes.c_void_p),
        ("on_message", ctypes.c_void_p),
        ("reserved2", ctypes.c_void_p * 5),
        ("extended", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Driver:
    """Addresses of the functions that decoding calls; the driver's return CUDA's error number."""

    create_parser: int
    parse: int
    destroy_parser: int
    create_decoder: int
    destroy_decoder: int
    decode_picture: int
    map_frame: int
    unmap_frame: int
    decode_status: int
    decoder_caps: int
    copy: int
    create_event: int
    destroy_event: int
    record_event: int
    wait_event: int
    sleep: int
    """nanosleep of the C library."""


_VIDEO: Final = {
    "create_parser": "cuvidCreateVideoParser",
    "parse": "cuvidParseVideoData",
    "destroy_parser": "cuvidDestroyVideoParser",
    "create_decoder": "cuvidCreateDecoder",
    "destroy_decoder": "cuvidDestroyDecoder",
    "decode_picture": "cuvidDecodePicture",
    "map_frame": "cuvidMapVideoFrame64",
    "unmap_frame": "cuvidUnmapVideoFrame64",
    "decode_status": "cuvidGetDecodeStatus",
    "decoder_caps": "cuvidGetDecoderCaps",
}
_CUDA: Final = {
    "copy": "cuMemcpy2DAsync_v2",
    "create_event": "cuEventCreate",
    "destroy_event": "cuEventDestroy_v2",
    "record_event": "cuEventRecord",
    "wait_event": "cuEventSynchronize",
}


_SYSTEM: Final = {"sleep": "nanosleep"}


@lru_cache(maxsize=1)
def load_driver() -> Driver:
    """The driver of this machine. Raises NvdecUnavailable where it, or a function of it, is not there."""
    addresses: dict[str, int] = {}
    for library_name, functions in (("libnvcuvid.so.1", _VIDEO), ("libcuda.so.1", _CUDA), (None, _SYSTEM)):
        try:
            library = ctypes.CDLL(library_name)
            for field, function in functions.items():
                address = ctypes.cast(getattr(library, function), ctypes.c_void_p).value
                assert address is not None
                addresses[field] = address
        except (OSError, AttributeError) as error:
            raise NvdecUnavailable(
                f"{library_name or 'the C library'} cannot be used: {error}. {REMEDY}"
            ) from error
    return Driver(**addresses)


def call(address: int, *arguments: int) -> int:
    """Calls a driver function, releasing the interpreter lock. Arguments are integers and addresses."""
    kinds = [ctypes.c_uint64] * len(arguments)
    return int(ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(address)(*arguments))


def decode_caps(driver: Driver, codec: int, bits: int) -> DecodeCaps:
    """What the GPU of the current CUDA context does with 4:2:0 video of a codec (a value of CODECS).

    Raises NvdecUnavailable where the driver answers with an error.
    """
    caps = DecodeCaps(codec=codec, chroma=CHROMA_420, bit_depth_minus_8=bits - 8)
    error = call(driver.decoder_caps, ctypes.addressof(caps))
    if error:
        raise NvdecUnavailable(f"cuvidGetDecoderCaps returned CUDA error {error}. {REMEDY}")
    return caps
