"""The inside of an abdomen, as a laparoscope or a robot's camera sees it."""

from __future__ import annotations

import cv2
import numpy as np

from surgrec.demo_data.motion import SmoothPath, smooth_path
from surgrec.demo_data.texture import (
    Colour,
    Field,
    Picture,
    blob,
    colourise,
    fractal,
    gloss,
    paste,
    relief,
    tissue,
    vessels,
)

SIZE = 704
COARSE = 8

LIVER: list[Colour] = [(96, 26, 22), (150, 52, 40), (176, 84, 62)]
PERITONEUM: list[Colour] = [(168, 62, 56), (206, 104, 88), (232, 158, 132)]
FAT: list[Colour] = [(186, 132, 48), (222, 176, 92), (244, 214, 150)]
GALLBLADDER: list[Colour] = [(84, 96, 78), (138, 152, 112), (188, 190, 158)]
BLOOD: Colour = (122, 8, 10)
CHAR: Colour = (52, 30, 20)


class CavityView:
    """Organs on a wall of tissue that breathes, gives way to instruments, bleeds and chars."""

    def __init__(self, rng: np.random.Generator, height: int, width: int, organs: tuple[str, ...]):
        self.height, self.width = height, width
        wall = LIVER if rng.random() < 0.5 else PERITONEUM
        self.texture = tissue(rng, SIZE, wall, (112, 14, 24), vessel_count=28)
        for organ in organs:
            self._add_organ(rng, organ)
        self.shine = gloss(rng, SIZE)
        middle = SIZE / 2
        zoom = SIZE / (2.1 * height)
        self.camera: SmoothPath = smooth_path(rng, (middle, middle, zoom, 0.0), (95, 80, 0.28 * zoom, 0.3))
        self.rate = float(rng.uniform(0.2, 0.3))
        ys, xs = np.mgrid[0 : height / COARSE, 0 : width / COARSE].astype(np.float32) * COARSE
        self.xs, self.ys = xs - width / 2, ys - height / 2
        radius = np.hypot(*np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height)))
        self.light: Picture = (
            (255 * np.clip(1.08 - 0.5 * radius**2, 0.2, 1)).astype(np.uint8)[..., None].repeat(3, 2)
        )
        self.map_x: Field = self.xs
        self.map_y: Field = self.ys

    def _add_organ(self, rng: np.random.Generator, organ: str) -> None:
        centre = (SIZE * rng.uniform(0.4, 0.6), SIZE * rng.uniform(0.36, 0.6))
        if organ == "gallbladder":
            alpha, height = blob(rng, SIZE, centre, (SIZE * 0.2, SIZE * 0.11), float(rng.uniform(0, 3)))
            patch = colourise(
                np.clip(0.15 + 0.75 * height + 0.15 * fractal(rng, SIZE, 10, 4), 0, 1), GALLBLADDER
            )
            patch = vessels(rng, relief(patch, height, 0.5), 30, (130, 40, 40), 1)
        elif organ == "fat":
            alpha, height = blob(
                rng,
                SIZE,
                (SIZE * rng.uniform(0.2, 0.8), SIZE * rng.uniform(0.55, 0.8)),
                (SIZE * 0.3, SIZE * 0.16),
                float(rng.uniform(0, 3)),
            )
            lobes = fractal(rng, SIZE, 22, 3)
            patch = relief(colourise(0.4 * height + 0.6 * lobes, FAT), lobes, 0.5)
        else:
            alpha, height = blob(rng, SIZE, centre, (SIZE * 0.34, SIZE * 0.18), float(rng.uniform(0, 3)))
            patch = relief(tissue(rng, SIZE, LIVER, (90, 10, 14), 12), height, 0.6)
        shadow = cv2.GaussianBlur(np.roll(alpha, (10, 14), (0, 1)), (0, 0), 9)[..., None]
        self.texture = paste((self.texture * (1 - 0.5 * shadow)).astype(np.uint8), patch, alpha)

    def background(self, seconds: float, pulls: list[tuple[float, float, float]]) -> Picture:
        """The tissue at a time: uint8 [H, W, 3]. Each pull is (x, y, pixels): tissue that is lifted."""
        x, y, zoom, angle = self.camera.at(seconds)
        breath = np.sin(2 * np.pi * self.rate * seconds)
        c, s = np.cos(angle) * zoom, np.sin(angle) * zoom
        map_x = (x + c * self.xs - s * self.ys + 4 * breath).astype(np.float32)
        map_y = (y + s * self.xs + c * self.ys + 7 * breath * (1 + self.ys / self.height)).astype(np.float32)
        for pull_x, pull_y, strength in pulls:
            dx, dy = self.xs + self.width / 2 - pull_x, self.ys + self.height / 2 - pull_y
            reach = 0.2 * self.height
            bump = strength * zoom * np.exp(-(dx * dx + dy * dy) / (2 * reach * reach))
            map_x += bump * 0.5
            map_y += bump
        self.map_x, self.map_y = (
            cv2.resize(m, (map_x.shape[1] * COARSE, map_x.shape[0] * COARSE))[: self.height, : self.width]
            for m in (map_x, map_y)
        )
        frame = cv2.remap(
            self.texture, self.map_x, self.map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        frame = cv2.multiply(frame, self.light, scale=1 / 255)
        # The mirror image of the lamp moves against the tissue, so highlights glide over it.
        shine = cv2.remap(
            self.shine, self.map_x * 1.3 + 31, self.map_y * 1.3, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
        return cv2.add(frame, cv2.merge([shine, shine, shine]))

    def mark(self, x: float, y: float, kind: str, radius: float, strength: float) -> None:
        """Blood or char where an instrument works, left on the tissue. x, y in pixels of the last frame."""
        column, row = int(np.clip(x, 0, self.width - 1)), int(np.clip(y, 0, self.height - 1))
        u, v = int(self.map_x[row, column]), int(self.map_y[row, column])
        r = max(2, int(radius))
        top, left = max(v - 2 * r, 0), max(u - 2 * r, 0)
        part = self.texture[top : v + 2 * r, left : u + 2 * r]
        if part.shape[0] < 2 or part.shape[1] < 2:
            return
        mask = np.zeros(part.shape[:2], np.uint8)
        cv2.circle(mask, (u - left, v - top), r, 255, -1)
        alpha = cv2.GaussianBlur(mask, (0, 0), r / 2).astype(np.float32) / 255 * strength
        colour = np.empty_like(part)
        colour[:] = BLOOD if kind == "blood" else CHAR
        part[:] = paste(part, colour, alpha)
