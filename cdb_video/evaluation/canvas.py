"""Figures with panels of known size, and what an HTML page needs to show one."""

from __future__ import annotations

import base64
import io
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGE_SVG = 500_000
"""Bytes from which on a PNG is tried as well: thousands of lines."""
CSS_PIXELS = 96
"""An inch, in a browser."""
PNG_SHARPNESS = 1.5
"""Pixels of the image for one of the page's."""


class Picture(NamedTuple):
    """An image for a page."""

    uri: str
    """The image itself, so that one file holds the page; ids of two pictures cannot meet."""
    width: int
    """In the page's pixels."""


def save_picture(figure: Figure) -> Picture:
    """The figure as SVG with real text, or as PNG where that is smaller."""
    import matplotlib

    with (
        warnings.catch_warnings(),
        # With the salt and without the date, the same report is the same file.
        matplotlib.rc_context({"svg.hashsalt": "cdb_video", "svg.fonttype": "none"}),
    ):
        # The browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        data, kind = _saved(figure, format="svg", metadata={"Date": None}), "svg+xml"
        if len(data) > LARGE_SVG:
            dpi = PNG_SHARPNESS * CSS_PIXELS
            png = _saved(figure, format="png", dpi=dpi, metadata={"Software": None})
            data, kind = min((data, kind), (png, "png"), key=lambda one: len(one[0]))
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(uri, round(CSS_PIXELS * figure.get_figwidth()))


def _saved(figure: Figure, **options: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, **options)
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
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=9)
        panel.title.set_fontsize(11)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.yaxis.set_major_locator(MaxNLocator(5))
    return figure, axes
