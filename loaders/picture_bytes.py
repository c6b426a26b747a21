"""How much memory the pictures of a clip take between decoder and crop."""

from __future__ import annotations

import torch
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.packet_index import PacketIndex

_SAMPLES = {"444": 3.0, "gbr": 3.0, "rgb": 3.0, "422": 2.0, "440": 2.0}
"""Samples of a pixel, by what the name of the pixel format holds; 1.5 for 4:2:0."""


def picture_bytes(index: PacketIndex, request: ClipRequest, device: torch.device) -> int:
    """Bytes that the wanted pictures of a request take: RGB on the CPU, planes on a GPU.

    Of stacked frames, a GPU holds whole pictures, with the frames in them that nobody wants.
    """
    videos, video = index.videos, request.video
    frame = int(videos.width[video]) * int(videos.height[video])
    if device.type == "cpu":
        return len(request.frames) * frame * 3
    stack = int(videos.stack[video])
    held = len(request.frames) if stack == 1 else len({at // stack for at in request.frames}) * stack
    pixels = held * frame
    name = videos.pix_fmt[video]
    samples = next((count for part, count in _SAMPLES.items() if part in name), 1.5)
    return int(pixels * samples) * (2 if int(videos.bit_depth[video]) > 8 else 1)
