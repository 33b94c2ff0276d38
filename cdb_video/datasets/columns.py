"""`data.columns`: our column names from a file's, one for one or composed by a template."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from cdb_video.errors import DataError

OWN_COLUMNS = (
    *("path", "video_id", "recording", "split"),
    *("start_s", "stop_s", "start_frame", "stop_frame", "last_frame"),
)
"""The columns of a table that are neither labels nor metadata."""
_LABELS = ("verb", "noun", "action", "label")
_FIELD = re.compile(r"\{([^{}]+)\}")


def is_label(name: str) -> bool:
    """Whether a column of this name is a head without being asked for: verb, label_tool, ..."""
    return name in _LABELS or re.fullmatch(r"label_.+", name) is not None


def fields(theirs: str) -> list[str]:
    """The file's columns that a value of `data.columns` names: a template's fields, or itself."""
    return _FIELD.findall(theirs) or [theirs]


def our_columns(header: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Our name -> the file's column or a template, of all that can be made of this header.

    A column that is renamed keeps no second name, and one whose name a renamed one takes is gone.
    """
    renamed = set(columns.values())
    kept = {name: name for name in header if name not in renamed and name not in columns}
    mapped = {
        name: theirs
        for name, theirs in columns.items()
        if all(field in header for field in fields(theirs))
    }
    return kept | mapped


def compose(theirs: str, cells: Mapping[str, str]) -> str:
    """The cell of a column, or of a template; empty where a field of the template is."""
    if theirs in cells:
        return cells[theirs]
    if not all(cells[field] for field in fields(theirs)):
        return ""
    return _FIELD.sub(lambda field: cells[field[1]], theirs)


def refuse_unknown(columns: Mapping[str, str], others: Iterable[str]) -> None:
    """DataError for a key of `data.columns` that is no column of ours, nor one of `others`."""
    known = list(dict.fromkeys([*OWN_COLUMNS, *_LABELS, *others]))
    for name in columns:
        if name not in known and not is_label(name):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise DataError(
                f"data.columns: {name!r} is no column of ours{hint} (our name: the file's name); "
                f"allowed: {', '.join(known)}, label_NAME, and the heads of model.heads"
            )
