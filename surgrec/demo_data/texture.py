"""Tissue-like textures: tiling fractal noise, coloured, lit from one side, with vessels."""

from __future__ import annotations

import cv2
import numpy as np

Picture = np.ndarray  # uint8 RGB [H, W, 3]; cv2 does not say which type it returns
Field = np.ndarray  # float32 [H, W]
Colour = tuple[int, int, int]


def fractal(rng: np.random.Generator, size: int, cells: int, octaves: int, persistence: float = 0.5) -> Field:
    """Smooth noise over 0..1 that tiles: float32 [size, size]. `cells` is the coarsest grid."""
    total = np.zeros((size, size), np.float32)
    weight = 1.0
    for _ in range(octaves):
        grid = np.pad(rng.random((cells, cells), np.float32), 2, mode="wrap")
        scale = size / cells
        side = round((cells + 4) * scale)
        big = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        edge = round(2 * scale)
        total += weight * big[edge : edge + size, edge : edge + size]
        cells = min(cells * 2, size)
        weight *= persistence
    low, high = float(total.min()), float(total.max())
    return (total - low) / (high - low)


def colourise(field: Field, colours: list[Colour]) -> Picture:
    """A field over 0..1 through a palette: uint8 [..., 3]. Colours are spread evenly over 0..1."""
    stops = np.linspace(0, 255, len(colours))
    table = np.stack([np.interp(np.arange(256), stops, [c[i] for c in colours]) for i in range(3)], axis=1)
    return table.astype(np.uint8)[(field * 255).astype(np.uint8)]


def relief(picture: Picture, height: Field, strength: float) -> Picture:
    """The picture lit from the upper left over a height field; strength 1 is strong at one standard slope."""
    slope = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=5) + cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=5)
    light = np.clip(1 - 0.4 * strength * slope / (float(slope.std()) + 1e-6), 0.45, 1.5).astype(np.float32)
    return np.clip(picture * light[..., None], 0, 255).astype(np.uint8)


def vessels(rng: np.random.Generator, picture: Picture, count: int, colour: Colour, width: int) -> Picture:
    """Branching vessels drawn over a tiling picture."""
    size = picture.shape[0]
    mask = np.zeros((size, size), np.uint8)
    for _ in range(count):
        point = rng.uniform(0, size, 2)
        angle = rng.uniform(0, 2 * np.pi)
        steps = int(rng.integers(20, 60))
        turn = np.cumsum(rng.normal(0, 0.22, steps)) + angle
        line = point + np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1) * size / 90, axis=0)
        thick = int(rng.integers(1, width + 1))
        for x in (-size, 0, size):
            for y in (-size, 0, size):
                cv2.polylines(
                    mask, [(line + np.array([x, y])).astype(np.int32)], False, 255, thick, cv2.LINE_AA
                )
    alpha = (cv2.GaussianBlur(mask, (0, 0), 1.1) / 255.0 * 0.6)[..., None]
    return (picture * (1 - alpha) + np.array(colour) * alpha).astype(np.uint8)


def tissue(
    rng: np.random.Generator,
    size: int,
    colours: list[Colour],
    vessel_colour: Colour,
    vessel_count: int = 25,
    bumps: float = 0.5,
) -> Picture:
    """One kind of tissue: uint8 RGB [size, size, 3], tiling."""
    field = fractal(rng, size, 4, 6, 0.55)
    picture = colourise(field, colours)
    picture = relief(picture, fractal(rng, size, 12, 4, 0.5), bumps)
    return vessels(rng, picture, vessel_count, vessel_colour, 3)


def gloss(rng: np.random.Generator, size: int, share: float = 0.02) -> Picture:
    """Where wet tissue mirrors the light: uint8 [size, size], bright on `share` of the surface."""
    field = fractal(rng, size, 14, 3, 0.6)
    edge = float(np.quantile(field, 1 - share))
    spots = np.clip((field - edge) / (1 - edge) * 5, 0, 1)
    return cv2.GaussianBlur((spots * 235).astype(np.uint8), (0, 0), 1.0)


def paste(picture: Picture, patch: Picture, alpha: Field) -> Picture:
    """`patch` over `picture` where alpha (float32 [H, W], 0..1) says so."""
    a = alpha[..., None]
    return (picture * (1 - a) + patch * a).astype(np.uint8)


def blob(
    rng: np.random.Generator, size: int, centre: tuple[float, float], radii: tuple[float, float], angle: float
) -> tuple[Field, Field]:
    """A soft-edged organ: (alpha, height), both float32 [size, size] over 0..1."""
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    x, y = xs - centre[0], ys - centre[1]
    c, s = np.cos(angle), np.sin(angle)
    u, v = (x * c + y * s) / radii[0], (-x * s + y * c) / radii[1]
    wobble = fractal(rng, size, 6, 3) - 0.5
    distance = np.sqrt(u * u + v * v) + 0.25 * wobble
    alpha = np.clip((1 - distance) * 12, 0, 1).astype(np.float32)
    height = np.sqrt(np.clip(1 - distance**2, 0, 1)).astype(np.float32)
    return alpha, height
