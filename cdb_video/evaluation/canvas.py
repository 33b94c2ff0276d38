"""Figures with panels of known size, and what an HTML page needs to show one."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

LARGE_SVG = 500_000
"""Bytes from which on a PNG is tried as well: thousands of lines."""
CSS_PIXELS = 96
"""An inch, in a browser."""
PNG_SHARPNESS = 1.5
"""Pixels of the image for one of the page's."""
# Of Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#c8c8c8"
NOT_IN_XML = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Characters that no SVG may hold, and others that no one can see."""


class Picture(NamedTuple):
    """An image for a page."""

    uri: str
    """The image itself, so that one file holds the page; ids of two pictures cannot meet."""
    width: int
    """In the page's pixels."""


def save_picture(figure: Figure) -> Picture:
    """The figure as SVG with real text, or as PNG where that is smaller; on no ground."""
    import matplotlib

    with (
        _missing_glyphs_are_fine(),
        # With the salt and without the date, the same report is the same file.
        matplotlib.rc_context({"svg.hashsalt": "cdb_video", "svg.fonttype": "none"}),
    ):
        data, kind = _saved(figure, format="svg", metadata={"Date": None}), "svg+xml"
        if len(data) > LARGE_SVG:
            dpi = PNG_SHARPNESS * CSS_PIXELS
            png = _saved(figure, format="png", dpi=dpi, metadata={"Software": None})
            data, kind = min((data, kind), (png, "png"), key=lambda one: len(one[0]))
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(uri, round(CSS_PIXELS * figure.get_figwidth()))


def pixels(figure: Figure) -> np.ndarray:
    """The figure as (H, W, 3) uint8, on white, 100 dots an inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
    with _missing_glyphs_are_fine():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@contextmanager
def _missing_glyphs_are_fine() -> Iterator[None]:
    """A browser has what matplotlib's font lacks; in an image, a box is no reason to stop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _saved(figure: Figure, **options: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, facecolor="none", **options)
    return stream.getvalue()


def panels(
    rows: int,
    columns: int,
    *,
    figsize: tuple[float, float],
    margins: tuple[float, float, float, float] = (0.65, 0.55, 0.15, 0.3),
    gaps: tuple[float, float] = (0.5, 0.2),
    **options: Any,
) -> tuple[Figure, Any]:
    """A figure and its flat array of axes; Any, as what subplots gives depends on its arguments.

    All sizes are inches: margins left, bottom, right and top; gaps between columns and rows. A
    layout engine would find them by drawing everything twice.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    width, height = figsize
    left, bottom, right, top = margins
    figure = Figure(figsize=figsize)
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    figure.subplots_adjust(
        left=left / width,
        bottom=bottom / height,
        right=1 - right / width,
        top=1 - top / height,
        wspace=gaps[0] * columns / (width - left - right - gaps[0] * (columns - 1)),
        hspace=gaps[1] * rows / (height - bottom - top - gaps[1] * (rows - 1)),
    )
    for panel in axes:
        panel.set_facecolor("none")
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=9)
        panel.title.set_fontsize(11)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.yaxis.set_major_locator(MaxNLocator(5))
    return figure, axes


def as_percent(axis: Axis) -> None:
    """Show fractions in percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def short(name: str, most: int = 28) -> str:
    """A name that fits a picture; a control character becomes a space."""
    name = NOT_IN_XML.sub(" ", name)
    return name if len(name) <= most else name[: most - 1] + "…"
