"""What hands and things do in the demo kitchen, one function a verb.

Places are in picture heights from the middle of the picture, x to the right and y down, so the
left and right edges lie at -2/3 and 2/3. Every verb means the same when the picture is mirrored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

# How far above its middle the opening of a container is, in parts of its size.
_OPENING = {"cup": 0.22, "bowl": 0.17, "pot": 0.16, "milk carton": 0.38}
_LID_SIZE = {"cup": 0.75, "bowl": 0.95, "pot": 0.88, "milk carton": 0.5}


@dataclass(frozen=True)
class Placed:
    """A sprite in the picture; `size` is its width in picture heights, `angle` is clockwise."""

    sprite: str
    x: float
    y: float
    size: float
    angle: float = 0.0
    stretch: float = 1.0
    """Height over width, relative to the sprite's own."""


@dataclass(frozen=True)
class Act:
    """How this clip's person does it: drawn once a clip, so no two clips are alike."""

    noun: str
    side: int
    """1: right-handed, -1: left-handed, the whole act mirrored."""
    x: float
    y: float
    size: float
    pace: float
    reach: float
    phase: float

    @classmethod
    def draw(cls, noun: str, rng: np.random.Generator) -> Act:
        """Somebody's way of doing it to that noun."""
        return cls(
            noun,
            side=1 if rng.random() < 0.5 else -1,
            x=rng.uniform(-0.14, 0.14),
            y=rng.uniform(-0.04, 0.06),
            size=rng.uniform(0.4, 0.48),
            pace=rng.uniform(0.85, 1.15),
            reach=rng.uniform(0.85, 1.15),
            phase=rng.uniform(0, 1),
        )


Motion: TypeAlias = Callable[[Act, float, float], list[Placed]]
"""(act, progress in [0, 1], seconds) -> what is in the picture, from back to front."""


def _ease(progress: float) -> float:
    """From 0 to 1 with a slow start and end; flat outside."""
    progress = min(1.0, max(0.0, progress))
    return progress * progress * (3 - 2 * progress)


def _between(start: float, stop: float, progress: float) -> float:
    return start + (stop - start) * progress


def _hand(act: Act, side: int, x: float, y: float) -> Placed:
    """The hand of that side at (x, y), its arm coming in from the lower edge."""
    elbow_x, elbow_y = 0.34 * side, 1.0
    angle = math.atan2(elbow_x - x, elbow_y - y)
    return Placed("right hand" if side > 0 else "left hand", x, y, 0.42, -angle)


def _standing(noun: str, x: float, y: float, size: float) -> list[Placed]:
    return [Placed("shadow", x + 0.03, y + 0.4 * size, 1.1 * size), Placed(noun, x, y, size)]


def _take(act: Act, progress: float, seconds: float) -> list[Placed]:
    """A hand reaches out and brings the thing down the picture, to the person."""
    carried = _ease((progress - 0.3) / 0.6)
    x = _between(act.x, 0.3 * act.x, carried)
    y = _between(act.y - 0.12, act.y - 0.12 + 0.3 * act.reach, carried)
    size = act.size * _between(0.94, 1.06, carried)
    come = _ease(progress / 0.3)
    hand_x = _between(0.4 * act.side, x + 0.3 * size * act.side, come)
    hand_y = _between(0.75, y + 0.3 * size, come)
    return [*_standing(act.noun, x, y, size), _hand(act, act.side, hand_x, hand_y)]


def _put(act: Act, progress: float, seconds: float) -> list[Placed]:
    """Take, backwards in time: the two share every single frame."""
    return _take(act, 1 - progress, seconds)


def _open(act: Act, progress: float, seconds: float) -> list[Placed]:
    """One hand holds the container, the other lays its lid beside it."""
    x, y, size = act.x - 0.14 * act.side, act.y + 0.05, act.size * 1.1
    top = y - size * _OPENING[act.noun]
    moved = _ease((progress - 0.25) / 0.55)
    lid_x = _between(x, x + 0.46 * act.reach * act.side, moved)
    lid_y = _between(top, y + 0.25 * size, moved) - 0.2 * math.sin(math.pi * moved)
    held = _ease(progress / 0.25) - _ease((progress - 0.85) / 0.15)
    hand_x = _between(0.5 * act.side, lid_x + 0.08 * act.side, held)
    hand_y = _between(0.75, lid_y, held)
    cover = Placed("lid", lid_x, lid_y, size * _LID_SIZE[act.noun], 0.5 * act.side * moved)
    steady = _hand(act, -act.side, x - 0.42 * size * act.side, y + 0.2 * size)
    return [
        *_standing(act.noun, x, y, size),
        cover,
        steady,
        _hand(act, act.side, hand_x, hand_y),
    ]


def _close(act: Act, progress: float, seconds: float) -> list[Placed]:
    """Open, backwards in time."""
    return _open(act, 1 - progress, seconds)


def _stir(act: Act, progress: float, seconds: float) -> list[Placed]:
    """A wooden spoon goes round in the container."""
    x, y, size = act.x - 0.05 * act.side, act.y + 0.08, act.size * 1.15
    turn = 2 * math.pi * (1.5 * act.pace * seconds + act.phase) * act.side
    tip_x = x + 0.24 * size * math.cos(turn)
    tip_y = y - size * (_OPENING[act.noun] - 0.05 - 0.07 * math.sin(turn))
    hand_x = tip_x + 0.16 * act.side + 0.12 * math.cos(turn)
    hand_y = tip_y + 0.12 + 0.1 * math.sin(turn)
    angle = math.atan2(tip_x - hand_x, hand_y - tip_y)
    stick = Placed("spoon", tip_x, tip_y, 0.4, angle)
    steady = _hand(act, -act.side, x - 0.45 * size * act.side, y + 0.15 * size)
    return [
        *_standing(act.noun, x, y, size),
        stick,
        steady,
        _hand(act, act.side, hand_x, hand_y),
    ]


def _cut(act: Act, progress: float, seconds: float) -> list[Placed]:
    """A knife chops up and down over the food on its board."""
    x, y, size = act.x - 0.08 * act.side, act.y + 0.05, act.size
    lift = 0.13 * (1 + math.cos(2 * math.pi * (2.2 * act.pace * seconds + act.phase)))
    hand_x, hand_y = x + 0.36 * act.side, y - 0.02 - lift
    knife = "knife" if act.side > 0 else "left knife"
    return [
        Placed("board", x, y + 0.2 * size, 1.9 * size),
        *_standing(act.noun, x, y, size),
        _hand(act, -act.side, x - 0.38 * size * act.side, y + 0.18 * size),
        Placed(knife, hand_x, hand_y, 0.6, -0.25 * act.side),
        _hand(act, act.side, hand_x, hand_y + 0.03),
    ]


def _pour(act: Act, progress: float, seconds: float) -> list[Placed]:
    """The container is lifted and tipped over a glass until it runs."""
    tipped = _ease((progress - 0.1) / 0.35)
    size = act.size
    x = act.x + 0.16 * act.side
    y = act.y + _between(0.05, -0.16, tipped)
    angle = -1.75 * act.side * tipped
    spout = (_OPENING[act.noun] + 0.06) * size
    lip_x, lip_y = x + spout * math.sin(angle), y - spout * math.cos(angle)
    glass_y = act.y + 0.28
    placed = _standing("glass", x - spout * act.side, glass_y, 0.34)
    if tipped > 0.85:
        placed.append(Placed("stream", lip_x, lip_y, 0.25, stretch=(glass_y - lip_y) / 0.25))
    held = _hand(act, act.side, x + 0.32 * size * act.side, y + 0.2 * size)
    return [*placed, Placed(act.noun, x, y, size, angle), held]


def _wash(act: Act, progress: float, seconds: float) -> list[Placed]:
    """Two hands rub the thing quickly from side to side under running water."""
    size = act.size
    x = act.x + 0.1 * math.sin(2 * math.pi * (3.0 * act.pace * seconds + act.phase))
    y = act.y + 0.12
    running = Placed("stream", act.x, -0.3, 0.34, 0.0, (y + 0.3) / 0.34)
    return [
        Placed("faucet", act.x, -0.27, 0.5),
        *_standing(act.noun, x, y, size),
        running,
        _hand(act, -1, x - 0.42 * size, y + 0.12),
        _hand(act, 1, x + 0.42 * size, y + 0.12),
    ]


MOTIONS: dict[str, Motion] = {
    "Take": _take,
    "Put": _put,
    "Open": _open,
    "Close": _close,
    "Stir": _stir,
    "Cut": _cut,
    "Pour": _pour,
    "Wash": _wash,
}
