"""A hollow organ seen along its axis, as a colonoscope or gastroscope sees it."""

from __future__ import annotations

import cv2
import numpy as np

from surgrec.demo_data.motion import smooth_path
from surgrec.demo_data.texture import Colour, Picture, fractal, gloss, relief, tissue, vessels

SIZE = 512

MUCOSA: dict[str, list[Colour]] = {
    "colon": [(160, 72, 58), (212, 122, 96), (240, 178, 146)],
    "stomach": [(140, 44, 34), (198, 86, 62), (226, 138, 100)],
    "bowel": [(158, 92, 48), (212, 148, 92), (238, 198, 148)],
}


class LumenView:
    """A tube with folds, textured in polar coordinates: columns are depth, rows are the angle."""

    def __init__(self, rng: np.random.Generator, height: int, width: int, organ: str, polyps: int):
        self.height, self.width = height, width
        texture = tissue(rng, SIZE, MUCOSA[organ], (150, 30, 40), vessel_count=14, bumps=0.35)
        folds = self._folds(rng)
        texture = relief(texture, folds, 0.5)
        texture = (texture * (0.6 + 0.4 * folds[..., None])).astype(np.uint8)
        for _ in range(polyps):
            texture = self._polyp(rng, texture)
        self.texture = texture
        self.shine = gloss(rng, SIZE, 0.03)
        self.speed = smooth_path(rng, (0.0,), (110.0,), periods=(10, 30))
        self.turn = smooth_path(rng, (0.0,), (90.0,), periods=(8, 20))
        self.centre = smooth_path(rng, (0.0, 0.0), (0.24 * width, 0.24 * height), periods=(2, 9))
        # Twice the picture, so that a moving centre is a moving crop.
        ys, xs = np.mgrid[-height:height, -width:width].astype(np.float32)
        radius = np.hypot(xs, ys) / height + 1e-3
        squeeze = 1 + 0.12 * np.sin(3 * np.arctan2(ys, xs))
        self.depth = (115.0 / (radius * squeeze + 0.10)).astype(np.float32)
        self.angle = ((np.arctan2(ys, xs) / (2 * np.pi) + 0.5) * SIZE).astype(np.float32)
        light = np.clip(1.7 * (radius * squeeze) ** 0.75 - 0.08, 0.02, 1) * np.clip(
            1.35 - 0.45 * radius, 0.3, 1
        )
        self.light: Picture = (255 * light).astype(np.uint8)[..., None].repeat(3, 2)

    @staticmethod
    def _folds(rng: np.random.Generator) -> np.ndarray:
        """Ring folds over depth, bent over the angle: float32 [SIZE, SIZE], 0..1."""
        bend = (fractal(rng, SIZE, 3, 3) - 0.5) * 90
        depth = np.arange(SIZE, dtype=np.float32)[None, :] + bend
        return np.abs(np.sin(np.pi * depth * 5 / SIZE)).astype(np.float32) ** 0.45

    @staticmethod
    def _polyp(rng: np.random.Generator, texture: Picture) -> Picture:
        x, y = (int(v) for v in rng.integers(80, SIZE - 80, 2))
        axes = (int(rng.integers(26, 44)), int(rng.integers(14, 26)))
        mask = np.zeros(texture.shape[:2], np.uint8)
        cv2.ellipse(mask, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
        height = cv2.GaussianBlur(mask, (0, 0), 7).astype(np.float32) / 255
        patch = vessels(rng, relief(texture, height, 0.6), 40, (140, 16, 30), 1)
        alpha = (height**0.5 * 0.9)[..., None]
        red = patch * np.array([1.0, 0.72, 0.7])
        return np.clip(texture * (1 - alpha) + red * alpha, 0, 255).astype(np.uint8)

    def background(self, seconds: float, pulls: list[tuple[float, float, float]]) -> Picture:
        """The tube at a time: uint8 [H, W, 3]. Pulls are ignored: the wall is out of reach."""
        dx, dy = self.centre.at(seconds)
        left = round(self.width / 2 - dx)
        top = round(self.height / 2 - dy)
        rows, columns = slice(top, top + self.height), slice(left, left + self.width)
        forward = 14 * seconds + float(self.speed.at(seconds)[0])
        turn = float(self.turn.at(seconds)[0])
        map_x, map_y = self.depth[rows, columns] + forward, self.angle[rows, columns] + turn
        frame = cv2.remap(self.texture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        shine = cv2.remap(self.shine, map_x * 1.2, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        frame = cv2.add(frame, cv2.merge([shine, shine, shine]))
        return cv2.multiply(frame, self.light[rows, columns], scale=1 / 255)

    def mark(self, x: float, y: float, kind: str, radius: float, strength: float) -> None:
        """Nothing is left on the wall: the scope moves on."""
