"""One clip of the demo kitchen: its room, person and camera, the frames, and the H.264 file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdb_video.datasets import demo_sprites as sprites
from cdb_video.datasets.demo_motions import MOTIONS, Act, Placed

WIDTH, HEIGHT, FPS, GOP = 128, 96, 24, 12
_MARGIN = 12  # pixels of room round the picture, for the camera to move over

# Where the sprite is held, or stands, in pixels of the sprite; its middle unless named here.
_ANCHORS = {
    "right hand": (48, 34),
    "left hand": (48, 34),
    "knife": (80, 46),
    "left knife": (16, 46),
    "spoon": (48, 12),
    "faucet": (48, 90),
    "stream": (48, 0),
}
_SKINS = ((236, 190, 158), (222, 168, 132), (198, 140, 102), (160, 106, 74), (116, 76, 54))
_SLEEVES = ((58, 84, 140), (150, 54, 58), (72, 110, 76), (70, 70, 76), (196, 170, 120))


def _draw_sprites(
    noun: str, person: np.random.Generator, rng: np.random.Generator
) -> dict[str, Image.Image]:
    skin = sprites.jittered(_SKINS[person.integers(5)], person, 0.05)
    right = sprites.hand(skin, sprites.jittered(_SLEEVES[person.integers(5)], person))
    knife = sprites.knife()
    mirror = Image.Transpose.FLIP_LEFT_RIGHT
    return {
        noun: sprites.NOUN_SPRITES[noun](rng),
        "right hand": right,
        "left hand": right.transpose(mirror),
        "knife": knife,
        "left knife": knife.transpose(mirror),
        "spoon": sprites.spoon(),
        "lid": sprites.lid(sprites.jittered((150, 156, 166), rng)),
        "glass": sprites.glass(),
        "board": sprites.board(),
        "faucet": sprites.faucet(),
        "shadow": sprites.shadow(),
        "stream": sprites.stream((150, 200, 236)),
    }


@dataclass(frozen=True)
class Shot:
    """All there is to know about a clip: what happens, and the seeds of what is left to chance."""

    verb: str
    noun: str
    num_frames: int
    person: tuple[int, ...]
    room: tuple[int, ...]
    clip: tuple[int, ...]


def _room(rng: np.random.Generator) -> Image.Image:
    """The worktop of a recording, with a few things along the wall that nobody touches."""
    width, height = WIDTH + 2 * _MARGIN, HEIGHT + 2 * _MARGIN
    room = sprites.counter(rng, width, height).convert("RGBA")
    nouns = rng.permutation(list(sprites.NOUN_SPRITES))[:3]
    for place, noun in enumerate(nouns):
        x, side = 8 + 46 * place + rng.integers(16), int(rng.integers(20, 26))
        thing = sprites.NOUN_SPRITES[noun](rng).resize((side, side))
        room.alpha_composite(thing, (int(x), 31 - side + int(rng.integers(6))))
    return room


def _paste(
    canvas: Image.Image, sprite: Image.Image, placed: Placed, camera: tuple[float, float]
) -> None:
    held_x, held_y = _ANCHORS.get(placed.sprite, (sprites.SIDE / 2, sprites.SIDE / 2))
    x = WIDTH / 2 + HEIGHT * placed.x - camera[0]
    y = HEIGHT / 2 + HEIGHT * placed.y - camera[1]
    scale, stretch = sprites.SIDE / (placed.size * HEIGHT), placed.stretch
    wide = max(held_x, sprite.width - held_x)
    tall = max(held_y, sprite.height - held_y) * stretch
    # Only the pixels that the sprite can reach: half the time of a clip is spent here.
    reach = math.hypot(wide, tall) / scale + 1
    left, top = max(0, int(x - reach)), max(0, int(y - reach))
    right, bottom = min(WIDTH, int(x + reach)), min(HEIGHT, int(y + reach))
    if right <= left or bottom <= top:
        return
    cos, sin = scale * math.cos(placed.angle), scale * math.sin(placed.angle)
    x, y = x - left, y - top
    # Pillow asks for the way back: from a pixel of the picture to one of the sprite.
    to_x = (cos, sin, held_x - cos * x - sin * y)
    to_y = (-sin / stretch, cos / stretch, held_y - (cos * y - sin * x) / stretch)
    size, method = (right - left, bottom - top), Image.Transform.AFFINE
    moved = sprite.transform(size, method, (*to_x, *to_y), Image.Resampling.BILINEAR)
    canvas.alpha_composite(moved, (left, top))


def render(shot: Shot) -> Iterator[NDArray[np.uint8]]:
    """The frames of a clip, each (HEIGHT, WIDTH, 3) uint8 RGB; equal shots give equal frames."""
    person, rng = np.random.default_rng(shot.person), np.random.default_rng(shot.clip)
    room_rng = np.random.default_rng(shot.room)
    room, light = _room(room_rng), room_rng.uniform(0.96, 1.04, 3)
    drawn = _draw_sprites(shot.noun, person, rng)
    act = Act.draw(shot.noun, rng)
    light = (light * rng.uniform(0.82, 1.12) * _vignette()).astype(np.float32)
    sway, phase = rng.uniform(0.1, 0.35, 2), rng.uniform(0, 2 * math.pi, 2)
    grain = rng.normal(0, 2, (2 * HEIGHT, 2 * WIDTH, 3)).astype(np.float32)
    for index in range(shot.num_frames):
        seconds = index / FPS
        pan_x, pan_y = (5 * np.sin(2 * math.pi * sway * seconds + phase)).tolist()
        back = (1, 0, _MARGIN + pan_x, 0, 1, _MARGIN + pan_y)
        canvas = room.transform(
            (WIDTH, HEIGHT), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR
        )
        for placed in MOTIONS[shot.verb](act, index / (shot.num_frames - 1), seconds):
            _paste(canvas, drawn[placed.sprite], placed, (pan_x, pan_y))
        picture = np.asarray(canvas.convert("RGB")) * light
        top, left = rng.integers(0, (HEIGHT, WIDTH))
        picture += grain[top : top + HEIGHT, left : left + WIDTH]
        yield np.clip(picture, 0, 255).astype(np.uint8)


def _vignette() -> NDArray[np.float32]:
    """(HEIGHT, WIDTH, 1) brightness that falls off to the corners."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    falloff: NDArray[np.float32] = np.asarray(1.04 - 0.17 * (x**2 + y**2), dtype=np.float32)
    return falloff[..., None]


def write_clip(path: Path, shot: Shot) -> None:
    """Render a shot into an H.264 mp4 file: 24 fps, a key frame every 12, yuv420p."""
    # One encoder thread: the clips are made in parallel, and the bytes do not depend on the cores.
    options = {"crf": "20", "preset": "veryfast", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt, stream.gop_size = "yuv420p", GOP
        for picture in render(shot):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
