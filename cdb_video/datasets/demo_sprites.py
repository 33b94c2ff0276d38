"""The things of the demo kitchen, each drawn once a clip: RGBA sprites, lit from the upper left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 96
"""Pixels of a sprite's width, and the unit in which the shapes below are written."""

_FINE = 3  # drawn so much larger and then reduced, so that edges come out smooth

Colour: TypeAlias = tuple[int, int, int]
Points: TypeAlias = Sequence[tuple[float, float]]


class Pencil:
    """Draws on a transparent sheet `SIDE` wide; coordinates grow to the right and down."""

    def __init__(self, height: int = SIDE) -> None:
        self._sheet = Image.new("RGBA", (SIDE * _FINE, height * _FINE))
        self._draw = ImageDraw.Draw(self._sheet, "RGBA")

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """An upright ellipse round (x, y)."""
        box = [(x - rx) * _FINE, (y - ry) * _FINE, (x + rx) * _FINE, (y + ry) * _FINE]
        self._draw.ellipse(box, fill=colour)

    def arc(self, x: float, y: float, rx: float, ry: float, colour: Colour, width: float) -> None:
        """The outline of an ellipse, `width` wide inwards."""
        box = [(x - rx) * _FINE, (y - ry) * _FINE, (x + rx) * _FINE, (y + ry) * _FINE]
        self._draw.ellipse(box, outline=colour, width=round(width * _FINE))

    def polygon(self, points: Points, colour: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon([(x * _FINE, y * _FINE) for x, y in points], fill=colour)

    def stroke(self, points: Points, width: float, colour: Colour) -> None:
        """A line with round ends."""
        fine = [(x * _FINE, y * _FINE) for x, y in points]
        self._draw.line(fine, fill=colour, width=round(width * _FINE), joint="curve")
        for x, y in (points[0], points[-1]):
            self.ellipse(x, y, width / 2, width / 2, colour)

    def finish(self, *, roundness: float = 9.0) -> Image.Image:
        """The sprite, shaded as if its outline bulged out over `roundness` units."""
        sheet = self._sheet.reduce(_FINE)
        outline = sheet.getchannel("A").filter(ImageFilter.GaussianBlur(roundness))
        height = np.asarray(outline, dtype=np.float32) / 255
        slope = np.asarray(np.gradient(height, axis=0)) + np.gradient(height, axis=1)
        light = 1 + 1.1 * roundness * slope[..., None]
        pixels = np.asarray(sheet, dtype=np.float32).copy()
        pixels[..., :3] = np.clip(pixels[..., :3] * light, 0, 255)
        return Image.fromarray(pixels.astype(np.uint8), "RGBA")


def tinted(colour: Colour, factor: float) -> Colour:
    """The colour, lighter (factor above 1) or darker."""
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue


def jittered(colour: Colour, rng: np.random.Generator, spread: float = 0.1) -> Colour:
    """The colour with each channel scaled by its own factor of 1 ± spread."""
    red, green, blue = np.clip(np.array(colour) * rng.uniform(1 - spread, 1 + spread, 3), 0, 255)
    return int(red), int(green), int(blue)


def _tomato(rng: np.random.Generator) -> Image.Image:
    pencil, red = Pencil(), jittered((214, 40, 32), rng)
    pencil.ellipse(48, 53, 39, 35, red)
    pencil.ellipse(34, 40, 9, 6, tinted(red, 1.5))
    leaves = [(48, 10), (53, 19), (68, 17), (57, 26), (64, 36), (49, 29), (36, 37), (40, 26)]
    pencil.polygon([*leaves, (28, 20), (43, 19)], (52, 128, 48))
    return pencil.finish()


def _eggplant(rng: np.random.Generator) -> Image.Image:
    pencil, purple = Pencil(), jittered((138, 36, 176), rng, 0.06)
    pencil.stroke([(64, 26), (48, 46)], 36, purple)
    pencil.ellipse(40, 58, 36, 35, purple)
    pencil.ellipse(26, 46, 7, 10, tinted(purple, 1.6))
    pencil.polygon([(52, 18), (64, 30), (74, 38), (78, 22), (68, 10)], (70, 140, 52))
    pencil.stroke([(72, 18), (82, 8)], 7, (62, 120, 46))
    return pencil.finish()


def _onion(rng: np.random.Generator) -> Image.Image:
    pencil, brown = Pencil(), jittered((204, 118, 60), rng)
    pencil.polygon([(36, 26), (45, 6), (52, 8), (60, 26)], brown)
    pencil.ellipse(48, 54, 36, 33, brown)
    for rx in (7, 18, 28):
        pencil.arc(48, 54, rx, 32, tinted(brown, 0.7), 2.2)
    return pencil.finish()


def _potato(rng: np.random.Generator) -> Image.Image:
    # Nearly the onion's brown and size: skin and outline tell them apart, the colour hardly does.
    pencil, brown = Pencil(), jittered((184, 148, 94), rng)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radii = 1 + 0.07 * np.sin(2 * angles + rng.uniform(0, 6)) + 0.04 * np.sin(3 * angles)
    x, y = 48 + 42 * radii * np.cos(angles), 54 + 28 * radii * np.sin(angles)
    pencil.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), brown)
    for spot_x, spot_y in rng.uniform((22, 38), (74, 70), (8, 2)).tolist():
        pencil.ellipse(spot_x, spot_y, 3.0, 2.0, tinted(brown, 0.62))
    return pencil.finish()


# Cup and bowl are of one service: only the form tells them apart.
_CERAMIC: tuple[Colour, ...] = ((224, 222, 214), (96, 148, 190), (226, 178, 84), (134, 172, 128))


def _vessel(
    pencil: Pencil, colour: Colour, rim: tuple[float, float], foot: tuple[float, float]
) -> None:
    """A round body from its rim to its foot, each (half width, height on the sheet)."""
    (wide, top), (narrow, bottom) = rim, foot
    pencil.ellipse(48, bottom, narrow, narrow * 0.3, tinted(colour, 0.9))
    sides = [(48 - wide, top), (48 + wide, top), (48 + narrow, bottom), (48 - narrow, bottom)]
    pencil.polygon(sides, colour)
    pencil.ellipse(48, top, wide, wide * 0.3, tinted(colour, 1.12))
    pencil.ellipse(48, top + 1, wide - 4, wide * 0.3 - 2.5, tinted(colour, 0.55))


def _cup(rng: np.random.Generator) -> Image.Image:
    pencil, colour = Pencil(), jittered(_CERAMIC[rng.integers(4)], rng)
    pencil.arc(78, 52, 14, 15, tinted(colour, 0.9), 6)
    _vessel(pencil, colour, (33, 26), (25, 80))
    return pencil.finish()


def _bowl(rng: np.random.Generator) -> Image.Image:
    pencil, colour = Pencil(), jittered(_CERAMIC[rng.integers(4)], rng)
    _vessel(pencil, colour, (44, 36), (22, 74))
    return pencil.finish()


def _pot(rng: np.random.Generator) -> Image.Image:
    pencil, steel = Pencil(), jittered((70, 74, 84), rng)
    pencil.stroke([(3, 44), (93, 44)], 8, (34, 32, 36))
    _vessel(pencil, steel, (39, 32), (37, 76))
    pencil.ellipse(48, 35, 31, 7, jittered((214, 122, 40), rng))
    return pencil.finish()


def _milk_carton(rng: np.random.Generator) -> Image.Image:
    pencil, white = Pencil(), jittered((238, 240, 242), rng, 0.03)
    blue = jittered((36, 92, 196), rng)
    pencil.polygon([(26, 30), (34, 8), (68, 8), (74, 26), (74, 90), (26, 92)], white)
    pencil.polygon([(60, 29), (74, 26), (74, 90), (60, 92)], tinted(white, 0.78))
    pencil.polygon([(26, 50), (60, 50), (74, 46), (74, 72), (60, 76), (26, 76)], blue)
    pencil.ellipse(43, 63, 9, 9, white)
    pencil.stroke([(34, 8), (68, 8)], 5, blue)
    return pencil.finish(roundness=5)


NOUN_SPRITES: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "tomato": _tomato,
    "eggplant": _eggplant,
    "onion": _onion,
    "potato": _potato,
    "cup": _cup,
    "bowl": _bowl,
    "pot": _pot,
    "milk carton": _milk_carton,
}


def hand(skin: Colour, sleeve: Colour) -> Image.Image:
    """A right hand and its forearm, (2 * SIDE) tall; it grips about (48, 30)."""
    pencil, crease = Pencil(2 * SIDE), tinted(skin, 0.72)
    pencil.polygon([(30, 118), (66, 118), (78, 191), (18, 191)], sleeve)
    pencil.polygon([(34, 84), (62, 84), (64, 120), (32, 120)], skin)
    pencil.stroke([(30, 116), (66, 116)], 9, tinted(sleeve, 1.15))
    pencil.stroke([(34, 80), (16, 62), (17, 42)], 13, skin)
    pencil.ellipse(48, 72, 24, 24, skin)
    for x, tip in ((64, 36), (53.5, 26), (42.5, 24), (31.5, 32)):
        pencil.stroke([(48 + (x - 48) * 0.95, 68), (x, tip)], 12.5, crease)
        pencil.stroke([(48 + (x - 48) * 0.95, 68), (x, tip)], 10.5, skin)
        pencil.ellipse(x, tip - 2, 2.8, 3.4, tinted(skin, 1.18))
    return pencil.finish(roundness=6)


def lid(colour: Colour) -> Image.Image:
    """A flat round lid with a knob."""
    pencil = Pencil()
    pencil.ellipse(48, 52, 45, 15, tinted(colour, 0.7))
    pencil.ellipse(48, 49, 45, 14, colour)
    pencil.ellipse(48, 47, 30, 8, tinted(colour, 1.15))
    pencil.ellipse(48, 42, 9, 7, (40, 36, 40))
    return pencil.finish(roundness=4)


@cache
def knife() -> Image.Image:
    """A kitchen knife, its blade to the left; held at about (80, 46)."""
    pencil = Pencil()
    pencil.polygon([(0, 58), (14, 44), (64, 40), (64, 60)], (206, 212, 220))
    pencil.polygon([(0, 58), (64, 54), (64, 60)], (240, 244, 248))
    pencil.stroke([(66, 46), (92, 46)], 11, (48, 34, 30))
    return pencil.finish(roundness=3)


@cache
def spoon() -> Image.Image:
    """A wooden spoon, its bowl at the top (48, 12); held at about (48, 84)."""
    pencil = Pencil()
    pencil.stroke([(48, 16), (48, 92)], 6, (176, 122, 66))
    pencil.ellipse(48, 13, 10, 13, (190, 136, 78))
    return pencil.finish(roundness=3)


@cache
def glass() -> Image.Image:
    """An empty tumbler, to pour into."""
    pencil = Pencil()
    _vessel(pencil, (176, 206, 214), (27, 22), (22, 84))
    return pencil.finish()


@cache
def board() -> Image.Image:
    """A cutting board, seen at a slant."""
    pencil = Pencil()
    pencil.polygon([(12, 30), (84, 30), (95, 72), (1, 72)], (214, 196, 158))
    pencil.polygon([(1, 72), (95, 72), (94, 77), (2, 77)], (150, 124, 84))
    return pencil.finish(roundness=2)


@cache
def faucet() -> Image.Image:
    """A tap that comes in from above; its mouth is at (48, 90)."""
    pencil = Pencil()
    pencil.stroke([(48, 0), (48, 82)], 18, (176, 182, 190))
    pencil.stroke([(48, 82), (48, 88)], 24, (132, 138, 148))
    return pencil.finish(roundness=5)


@cache
def shadow() -> Image.Image:
    """A soft dark ellipse, for under a thing."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE / 2) - 1
    alpha = 150 * np.clip(1 - (x**2 + (3.2 * y) ** 2), 0, 1)
    pixels = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    pixels[..., 3] = alpha
    return Image.fromarray(pixels, "RGBA")


@cache
def stream(colour: Colour) -> Image.Image:
    """A falling column of liquid, see-through, lighter in its middle."""
    pixels = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    across = np.abs(np.linspace(-1, 1, 17))[None, :, None]
    pixels[:, 40:57, :3] = np.clip(np.array(colour) * (1.25 - 0.35 * across), 0, 255)
    pixels[:, 40:57, 3] = 205
    return Image.fromarray(pixels, "RGBA")


def counter(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A (height, width) RGB worktop of wooden planks under a tiled wall."""
    wood = np.array([(168, 116, 70), (132, 90, 58), (196, 160, 116)][rng.integers(3)])
    grain = _noise(rng, (height, 5), width, height) + 0.6 * _noise(rng, (18, 3), width, height)
    shade = 1 + 0.06 * grain
    rows, columns = np.mgrid[0:height, 0:width]
    plank = (rows - height // 5) // 26
    shade *= rng.uniform(0.9, 1.08, 16)[plank % 16]
    shade[(rows - height // 5) % 26 == 0] *= 0.7
    picture = wood * shade[..., None]
    tile = np.array([(206, 214, 212), (176, 196, 206), (222, 210, 188)][rng.integers(3)])
    grout = (columns % 20 == 0) | (rows % 14 == 0)
    wall = rows < height // 5
    picture[wall] = (tile * np.where(grout, 0.82, 1.0)[..., None])[wall]
    picture[height // 5 : height // 5 + 4] *= np.linspace(0.45, 0.9, 4)[:, None, None]
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8), "RGB")


def _noise(
    rng: np.random.Generator, cells: tuple[int, int], width: int, height: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Smooth (height, width) noise of about unit size, with cells[0] x cells[1] features."""
    coarse = Image.fromarray(rng.normal(size=cells).astype(np.float32), "F")
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
