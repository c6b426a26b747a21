"""An eye under the operating microscope."""

from __future__ import annotations

import cv2
import numpy as np

from surgrec.demo_data.motion import smooth_path, smoothstep
from surgrec.demo_data.texture import Colour, Picture, colourise, fractal, paste, tissue, vessels

SIZE = 512
STAGES = ("cataract", "rhexis", "nucleus", "cracked", "clear", "lens")

SCLERA: list[Colour] = [(206, 160, 150), (232, 204, 194), (246, 230, 222)]
IRISES: tuple[list[Colour], ...] = (
    [(40, 22, 12), (92, 56, 28), (140, 96, 54)],
    [(38, 58, 84), (84, 116, 140), (150, 172, 180)],
    [(44, 54, 28), (98, 104, 58), (146, 140, 92)],
)


class EyeView:
    """Sclera, iris and a pupil whose look follows the stages of a cataract operation."""

    def __init__(self, rng: np.random.Generator, height: int, width: int, seconds: float):
        self.height, self.width = height, width
        self.scale = SIZE / (1.25 * height)
        self.step = seconds / len(STAGES)
        eye = self._eye(rng)
        self.stages = [self._pupil(rng, eye, stage) for stage in STAGES]
        self.gaze = smooth_path(rng, (SIZE / 2, SIZE / 2, 1.0, 0.0), (26, 20, 0.06, 0.07))
        self.lamps = smooth_path(rng, (0.0, 0.0), (0.02, 0.02))
        radius = np.hypot(*np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height)))
        self.light: Picture = (
            (255 * np.clip(1.1 - 0.42 * radius**2, 0.2, 1)).astype(np.uint8)[..., None].repeat(3, 2)
        )

    @staticmethod
    def _disc(radius: float, soft: float = 2.0) -> np.ndarray:
        ys, xs = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - SIZE / 2
        return np.clip((radius - np.hypot(xs, ys)) / soft + 0.5, 0, 1)

    def _eye(self, rng: np.random.Generator) -> Picture:
        picture = vessels(rng, tissue(rng, SIZE, SCLERA, (196, 90, 84), 14, bumps=0.1), 16, (190, 70, 64), 2)
        ys, xs = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - SIZE / 2
        polar = (
            (np.hypot(xs, ys) * 0.35).astype(np.float32),
            ((np.arctan2(ys, xs) / 6.2832 + 0.5) * SIZE).astype(np.float32),
        )
        # Noise squeezed over the angle becomes the iris' radial fibres.
        fibres = cv2.resize(fractal(rng, SIZE, 48, 3), (SIZE // 8, SIZE))
        fibres = cv2.remap(
            fibres, polar[0] % (SIZE // 8), polar[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
        iris = colourise(np.clip(fibres, 0, 1), IRISES[int(rng.integers(len(IRISES)))])
        picture = paste(picture, (picture * 0.55).astype(np.uint8), self._disc(178, 10).astype(np.float32))
        return paste(picture, iris, self._disc(168, 6).astype(np.float32))

    def _pupil(self, rng: np.random.Generator, eye: Picture, stage: str) -> Picture:
        field = fractal(rng, SIZE, 6, 5)
        looks: dict[str, list[Colour]] = {
            "cataract": [(96, 84, 72), (150, 138, 118), (190, 180, 160)],
            "rhexis": [(120, 40, 16), (186, 84, 34), (222, 132, 66)],
            "nucleus": [(150, 100, 40), (196, 152, 78), (222, 190, 122)],
            "cracked": [(150, 70, 24), (204, 128, 56), (226, 176, 104)],
            "clear": [(150, 34, 12), (206, 72, 28), (236, 112, 52)],
            "lens": [(120, 30, 14), (176, 64, 34), (214, 106, 66)],
        }
        disc = self._disc(128, 4).astype(np.float32)
        picture = paste(eye, colourise(field, looks[stage]), disc)
        middle = (SIZE // 2, SIZE // 2)
        if stage in ("rhexis", "nucleus", "cracked"):
            cv2.ellipse(picture, middle, (88, 84), 0, 20, 380, (236, 170, 110), 3, cv2.LINE_AA)
        if stage == "cracked":
            for angle in rng.uniform(0, np.pi) + np.array([0, np.pi / 2]):
                d = (84 * np.cos(angle), 84 * np.sin(angle))
                ends = [(int(SIZE / 2 + k * d[0]), int(SIZE / 2 + k * d[1])) for k in (-1, 1)]
                cv2.line(picture, ends[0], ends[1], (84, 26, 10), 9, cv2.LINE_AA)
        if stage == "lens":
            cv2.circle(picture, middle, 100, (230, 196, 176), 3, cv2.LINE_AA)
            for k in (0, 180):
                cv2.ellipse(picture, middle, (120, 64), 40 + k, 0, 80, (120, 150, 230), 3, cv2.LINE_AA)
        return picture

    def background(self, seconds: float, pulls: list[tuple[float, float, float]]) -> Picture:
        """The eye at a time: uint8 [H, W, 3]. Pulls turn the whole eye a little."""
        x, y, zoom, angle = self.gaze.at(seconds)
        for pull_x, _, strength in pulls:
            x += 0.6 * strength * np.sign(self.width / 2 - pull_x)
        c, s = np.cos(angle) * zoom * self.scale, np.sin(angle) * zoom * self.scale
        inverse = np.array(
            [
                [c, -s, x - c * self.width / 2 + s * self.height / 2],
                [s, c, y - s * self.width / 2 - c * self.height / 2],
            ]
        )
        number = min(int(seconds / self.step), len(STAGES) - 1)
        after = min(number + 1, len(STAGES) - 1)
        mix = smoothstep((seconds / self.step - number - 0.8) / 0.2)
        texture = self.stages[number]
        if mix > 0:
            texture = cv2.addWeighted(texture, 1 - mix, self.stages[after], mix, 0)
        frame = cv2.warpAffine(
            texture,
            inverse,
            (self.width, self.height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        frame = cv2.multiply(frame, self.light, scale=1 / 255)
        dx, dy = self.lamps.at(seconds)
        for k, (u, v) in enumerate(((0.44, 0.40), (0.53, 0.41), (0.47, 0.56))):
            at = (int((u + dx) * self.width), int((v + dy) * self.height))
            cv2.circle(
                frame, at, max(2, self.height // (40 if k < 2 else 70)), (255, 252, 244), -1, cv2.LINE_AA
            )
        return frame

    def mark(self, x: float, y: float, kind: str, radius: float, strength: float) -> None:
        """Nothing is left: the pupil changes by stages."""
