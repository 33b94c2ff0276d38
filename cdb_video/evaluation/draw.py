"""A band for the bottom of a frame: a column for each head, a bar of its score for each class."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from cdb_video.evaluation.predict import Ranking

Color = tuple[int, int, int, int]

BACKGROUND: Color = (8, 10, 14, 185)
TRACK: Color = (38, 43, 52, 225)
"""A bar of score 1."""
PLAIN: Color = (84, 93, 108, 240)
ACCENTS: tuple[Color, ...] = (
    (0, 114, 178, 245),
    (190, 90, 0, 245),
    (0, 130, 95, 245),
    (165, 80, 135, 245),
)
"""Of the best class, a head each in turn: Okabe and Ito's hues, dark enough under white letters."""
BRIGHT: Color = (255, 255, 255, 255)
DIM: Color = (205, 210, 218, 255)

SMALLEST_LETTERS = 10
"""Pixels: smaller ones cannot be read."""
LARGEST_SHARE = 0.35
"""Of the frame's height that the band may take, if one class a head fits into that."""
NARROWEST = 9
"""Width of a column in letter heights, under which heads go below one another."""


class Layout(NamedTuple):
    """Sizes in pixels, and how many rows and columns fit."""

    letters: int
    row: int
    gap: int
    columns: int
    """Heads side by side."""
    classes: int
    """Rows a head, at most."""


def draw_band(
    size: tuple[int, int], rankings: Mapping[str, Ranking], *, threshold: float = 0.0
) -> Image.Image:
    """The band, RGBA, as wide as a frame of `size` (width, height).

    It shows as many classes of each ranking as there is room for, with letters that grow with the
    frame. Long names are cut. Letters that DejaVu Sans lacks, as Chinese ones, are shown as boxes.

    Args:
        size: of the frame, pixels.
        rankings: head -> classes, the best first.
        threshold: a best class below it is not highlighted.

    """
    width, height = size
    layout = _layout(size, rankings)
    lines = -(-len(rankings) // layout.columns)
    block = layout.row * (layout.classes + 1) + layout.gap
    band = Image.new("RGBA", (width, min(height, lines * block + layout.gap)), BACKGROUND)
    pen = ImageDraw.Draw(band)
    column = (width - layout.gap) // layout.columns
    for i, (head, ranking) in enumerate(rankings.items()):
        left = layout.gap + i % layout.columns * column
        top = layout.gap + i // layout.columns * block
        pen.text(
            (left, top + layout.row / 2), head, fill=DIM, font=_font(layout.letters), anchor="lm"
        )
        for rank, (name, score) in enumerate(ranking[: layout.classes]):
            color = ACCENTS[i % len(ACCENTS)] if rank == 0 and score >= threshold else PLAIN
            box = (left, top + (rank + 1) * layout.row, column - layout.gap, layout.row)
            _draw_row(pen, box, name, score, color=color, letters=layout.letters)
    return band


def _layout(size: tuple[int, int], rankings: Mapping[str, Ranking]) -> Layout:
    width, height = size
    letters = max(SMALLEST_LETTERS, round(min(size) / 32))
    row, gap = round(letters * 1.45), max(2, letters // 2)
    columns = max(1, min(len(rankings), width // (NARROWEST * letters)))
    lines = -(-len(rankings) // columns)
    room = (LARGEST_SHARE * height - gap) / lines - gap
    most = max((len(ranking) for ranking in rankings.values()), default=0)
    return Layout(letters, row, gap, columns, classes=max(1, min(most, int(room / row) - 1)))


def _draw_row(
    pen: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    name: str,
    score: float,
    *,
    color: Color,
    letters: int,
) -> None:
    """A bar as long as the score, on a full one, with the name and the score over it."""
    left, top, width, height = box
    font, inset = _font(letters), letters // 3
    bottom, middle = top + height - max(2, letters // 8), top + (height - 2) / 2
    pen.rectangle((left, top, left + width, bottom), fill=TRACK)
    if round(score * width) > 0:
        pen.rectangle((left, top, left + round(score * width), bottom), fill=color)
    figure = f"{100 * score:.0f}%"
    fill = DIM if color is PLAIN else BRIGHT
    pen.text((left + width - inset, middle), figure, fill=fill, font=font, anchor="rm")
    room = width - 3 * inset - font.getlength(figure)
    pen.text((left + inset, middle), cut(name, font, room), fill=fill, font=font, anchor="lm")


def cut(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text if it is at most `width` pixels wide, else the start that fits with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


@lru_cache
def _font(letters: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib carries: Pillow's own font knows no letters but Latin ones."""
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    return ImageFont.truetype(str(path), letters)
