"""difficulty.csv, as a run wrote it, or as a power cut left it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

DIFFICULTY_COLUMNS = ("epoch", "head", "class", "train_count", "accuracy", "difficulty", "weight")


def read_difficulty_rows(path: Path) -> Iterator[dict[str, str]]:
    """The whole rows, column -> cell; an epoch is a whole number, a figure a number or empty.

    Rows of another form are left out: torn at the file's end, or full of zeros.
    """
    if not path.exists():
        return
    text = path.read_bytes().decode("utf-8", errors="replace")
    # Without the end of its line, a last row may lack digits.
    reader = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            continue
        if len(row) == len(DIFFICULTY_COLUMNS) and _has_numbers(row):
            yield dict(zip(DIFFICULTY_COLUMNS, row, strict=True))


def _has_numbers(row: Sequence[str]) -> bool:
    epoch, _, _, *figures = row
    try:
        int(epoch)
        for figure in figures:
            float(figure or "nan")
    except ValueError:  # also of the header
        return False
    return True
