"""The drawn operations: which there are, their phases, and their frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from surgrec.demo_data.instruments import Use, draw, use
from surgrec.demo_data.motion import presence
from surgrec.demo_data.texture import Picture, fractal

FPS = 25


@dataclass(frozen=True)
class Phase:
    """A part of an operation: its share of the time, its instruments, and what they do to the tissue."""

    name: str
    share: float
    tools: tuple[tuple[str, float], ...]
    """Names of instruments and the directions that they come from, in turns."""
    mark: str = ""
    """What work leaves behind: blood, char, or nothing."""
    smoke: float = 0.0


@dataclass(frozen=True)
class Operation:
    """One drawn video."""

    name: str
    dataset: str
    domain: str
    kind: str
    """Who draws it: cavity, lumen or eye."""
    look: tuple[str, ...]
    """Organs of a cavity, or the organ of a lumen."""
    phases: tuple[Phase, ...]
    seconds: int
    width: int
    height: int
    round: bool = False
    """A round picture in a black frame, as many scopes give."""


CHOLECYSTECTOMY = (
    Phase("preparation", 0.2, (("grasper", 0.07),)),
    Phase("dissection", 0.4, (("grasper", 0.44), ("hook", 0.1)), "char", 0.35),
    Phase("clipping and cutting", 0.2, (("grasper", 0.44), ("clipper", 0.08), ("scissors", 0.02)), "blood"),
    Phase("cleaning", 0.2, (("suction", 0.12), ("grasper", 0.42)), "blood"),
)
HERNIA = (
    Phase("dissection", 0.6, (("scissors", 0.05), ("grasper", 0.46)), "blood"),
    Phase("mesh fixation", 0.4, (("clipper", 0.06), ("grasper", 0.42))),
)
SUTURING = (
    Phase("needle positioning", 0.35, (("needle driver", 0.06), ("bipolar", 0.44))),
    Phase("needle pushing", 0.35, (("needle driver", 0.1), ("bipolar", 0.4)), "blood"),
    Phase("pulling suture", 0.3, (("needle driver", 0.02), ("bipolar", 0.48))),
)
CATARACT = (
    Phase("incision", 0.15, (("keratome", 0.08),)),
    Phase("rhexis", 0.18, (("micro forceps", 0.08),)),
    Phase("phacoemulsification", 0.35, (("phaco", 0.1), ("spatula", 0.42))),
    Phase("cortex removal", 0.17, (("spatula", 0.4), ("suction", 0.06))),
    Phase("lens implantation", 0.15, (("injector", 0.09),)),
)
WITHDRAWAL = (
    Phase("insertion", 0.35, ()),
    Phase("withdrawal", 0.35, ()),
    Phase("polypectomy", 0.3, (("snare", 0.17),)),
)
BIOPSY = (Phase("inspection", 0.6, ()), Phase("biopsy", 0.4, (("biopsy forceps", 0.16),)))
CAPSULE = (Phase("passage", 1.0, ()),)


def operations() -> tuple[Operation, ...]:
    """The dozen: unbalanced on purpose, over four domains and seven data sets, from 18 to 90 s."""
    made = []

    def add(
        count: tuple[int, ...],
        dataset: str,
        domain: str,
        kind: str,
        look: tuple[str, ...],
        phases: tuple[Phase, ...],
        size: tuple[int, int],
        round_: bool = False,
    ) -> None:
        for number, seconds in enumerate(count):
            made.append(
                Operation(
                    f"{dataset}-{number + 1:02d}",
                    dataset,
                    domain,
                    kind,
                    look,
                    phases,
                    seconds,
                    size[0],
                    size[1],
                    round_,
                )
            )

    add(
        (90, 70, 55),
        "drawn-cholecystectomy",
        "laparoscopy",
        "cavity",
        ("liver", "fat", "gallbladder"),
        CHOLECYSTECTOMY,
        (320, 240),
        True,
    )
    add((40,), "drawn-hernia", "laparoscopy", "cavity", ("fat",), HERNIA, (426, 240))
    add((60, 30), "drawn-colonoscopy", "endoscopy", "lumen", ("colon",), WITHDRAWAL, (288, 256), True)
    add((24,), "drawn-gastroscopy", "endoscopy", "lumen", ("stomach",), BIOPSY, (320, 256), True)
    add((18,), "drawn-capsule", "endoscopy", "lumen", ("bowel",), CAPSULE, (256, 256), True)
    add((45, 25), "drawn-cataract", "cataract", "eye", (), CATARACT, (256, 192))
    add((36, 20), "drawn-suturing", "robotic", "cavity", ("fat", "liver"), SUTURING, (320, 240))
    return tuple(made)


class View(Protocol):
    """What is seen behind the instruments."""

    def background(self, seconds: float, pulls: list[tuple[float, float, float]]) -> Picture: ...

    def mark(self, x: float, y: float, kind: str, radius: float, strength: float) -> None: ...


def _view(operation: Operation, rng: np.random.Generator) -> View:
    from surgrec.demo_data.cavity import CavityView
    from surgrec.demo_data.eye import EyeView
    from surgrec.demo_data.lumen import LumenView

    height, width = operation.height, operation.width
    if operation.kind == "cavity":
        return CavityView(rng, height, width, operation.look)
    if operation.kind == "lumen":
        return LumenView(rng, height, width, operation.look[0], polyps=int(rng.integers(1, 4)))
    return EyeView(rng, height, width, float(operation.seconds))


def _uses(
    operation: Operation, rng: np.random.Generator
) -> tuple[list[tuple[float, float, Phase]], list[Use]]:
    """The phases with their start and end, and the instruments in use over the whole operation."""
    start, timeline, uses = 0.0, [], []
    for phase in operation.phases:
        end = start + phase.share * operation.seconds
        timeline.append((start, end, phase))
        for name, side in phase.tools:
            late, early = rng.uniform(0, 0.18, 2) * (end - start)
            uses.append(use(rng, name, side, operation.height, operation.width, start + late, end - early))
        start = end
    return timeline, uses


def _aperture(operation: Operation) -> Picture:
    """The round area of a scope's picture: uint8 [H, W, 3], 0 outside."""
    mask = np.zeros((operation.height, operation.width, 3), np.uint8)
    centre = (operation.width // 2, operation.height // 2)
    radius = round(0.56 * operation.height) if operation.kind == "cavity" else round(0.53 * operation.height)
    cv2.circle(mask, centre, radius, (255, 255, 255), -1, cv2.LINE_AA)
    return cv2.GaussianBlur(mask, (0, 0), 1.2)


def frames(operation: Operation, key: int) -> Iterator[Picture]:
    """The frames of an operation: uint8 RGB [H, W, 3], FPS a second. The same key draws the same pictures."""
    height, width = operation.height, operation.width
    scene, hands, film = (np.random.default_rng([key, part]) for part in range(3))
    view = _view(operation, scene)
    timeline, uses = _uses(operation, hands)
    aperture = _aperture(operation) if operation.round else None
    smoke = fractal(film, 256, 3, 4)
    noise = film.normal(0, 2.2, (height + 32, width + 32, 3))
    brighter, darker = np.clip(noise, 0, 9).astype(np.uint8), np.clip(-noise, 0, 9).astype(np.uint8)
    pulls: list[tuple[float, float, float]] = []
    for number in range(operation.seconds * FPS):
        seconds = number / FPS
        phase_start, phase_end, phase = next((part for part in timeline if seconds < part[1]), timeline[-1])
        picture = view.background(seconds, pulls)
        present = draw(picture, uses, seconds)
        # Closed jaws hold tissue and lift it in the next frame.
        pulls = [
            (tip[0], tip[1], 16 * (1 - opening)) for each, tip, opening in present if each.tool.end == "jaws"
        ]
        if phase.mark and number % 5 == 0:
            for each, tip, _ in present:
                if each.tool.end in ("hook", "scissors", "jaws") and hands.random() < 0.3:
                    view.mark(tip[0], tip[1], phase.mark, 0.02 * height * hands.uniform(0.6, 1.6), 0.5)
        if phase.smoke:
            _add_smoke(picture, smoke, phase.smoke * presence(seconds, phase_start, phase_end, 3.0), number)
        y, x = (int(v) for v in film.integers(0, 32, 2))
        picture = cv2.subtract(
            cv2.add(picture, brighter[y : y + height, x : x + width]), darker[y : y + height, x : x + width]
        )
        yield picture if aperture is None else cv2.multiply(picture, aperture, scale=1 / 255)


def _add_smoke(picture: Picture, smoke: np.ndarray, strength: float, number: int) -> None:
    """Drifting haze, in place."""
    height, width = picture.shape[:2]
    moving = np.roll(smoke, (-number // 2, number // 3), (0, 1))[:128, :160]
    dense = np.clip((moving - 0.35) * 2.2, 0, 1) * strength
    haze = cv2.resize((dense * 255).astype(np.uint8), (width, height))
    three = cv2.merge([haze] * 3)
    cv2.multiply(picture, 255 - three, picture, scale=1 / 255)
    cv2.add(picture, cv2.multiply(three, np.full_like(three, 205), scale=1 / 255), picture)
