"""The official CSVs of EPIC-KITCHENS-100 as text: segments, classes, actions, lists of ids."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdb_video.datasets.annotation_files import Row, read_text
from cdb_video.errors import DataError, UnknownSplitError

SPLIT_FILES = {
    "train": "EPIC_100_train.csv",
    "validation": "EPIC_100_validation.csv",
    "test": "EPIC_100_test_timestamps.csv",
}
"""Split -> its file. The labels of the test split are kept by the challenge."""

_FOLDERS = ("epic-kitchens-100-annotations", "annotations", ".")
_CLOCK = re.compile(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")

Pair = tuple[int, int]
"""A verb class and a noun class: an action."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One line of a split's file."""

    where: str
    """The file and the line, for errors."""
    split: str
    narration_id: str
    participant: str
    video_id: str
    seconds: tuple[float, float]
    """Start and stop in the video."""
    frames: tuple[int, int]
    """Start and stop in the official folder of frames, from 0."""
    pair: Pair | None
    """None in the test split."""


def find_annotations(root: Path, annotations: Path | None = None) -> Path | None:
    """The folder of the CSVs: the named one, or a usual one that has a split's; else None."""
    folders = [root / name for name in _FOLDERS] if annotations is None else [root / annotations]
    return next((folder for folder in folders if splits_in(folder)), None)


def splits_in(folder: Path) -> list[str]:
    """The splits whose files are there."""
    return [split for split, file in SPLIT_FILES.items() if (folder / file).is_file()]


def read_segments(folder: Path, split: str) -> list[Segment]:
    """The lines of a split, in the order of its file.

    Raises:
        UnknownSplitError: no such split, or its file is not there.
        DataError: a line that cannot be used.
    """
    if split not in splits_in(folder):
        there = ", ".join(splits_in(folder)) or "none"
        raise UnknownSplitError(f"{folder}: no split {split!r}; there are: {there}")
    names = ("narration_id", "participant_id", "video_id")
    times = ("start_timestamp", "stop_timestamp", "start_frame", "stop_frame")
    classes = () if split == "test" else ("verb_class", "noun_class")
    rows = read_rows(folder / SPLIT_FILES[split], [*names, *times, *classes])
    return [_segment(row, split) for row in rows]


def _segment(row: Row, split: str) -> Segment:
    seconds = _seconds(row, "start_timestamp"), _seconds(row, "stop_timestamp")
    frames = read_number(row, "start_frame"), read_number(row, "stop_frame")
    for unit, (start, stop) in (("second", seconds), ("frame", frames)):
        if stop <= start:
            raise DataError(f"{row.where}: stops at {unit} {stop:g}, not after {unit} {start:g}")
    pair = None
    if split != "test":
        pair = read_number(row, "verb_class"), read_number(row, "noun_class")
    return Segment(
        where=row.where,
        split=split,
        narration_id=row.cells["narration_id"],
        participant=row.cells["participant_id"],
        video_id=row.cells["video_id"],
        seconds=seconds,
        frames=frames,
        pair=pair,
    )


def read_classes(file: Path) -> list[str]:
    """Class names (the column `key`) in the order of their ids."""
    names: dict[int, str] = {}
    seen: dict[int | str, str] = {}
    for row in read_rows(file, ["id", "key"]):
        number, name = read_number(row, "id"), row.cells["key"]
        for key in (number, name):
            if key in seen:
                raise DataError(f"{row.where}: {key!r} is also at {seen[key]}")
            seen[key] = row.where
        names[number] = name
    _check_ids(file, names)
    return [names[i] for i in range(len(names))]


def read_pairs(file: Path, *, num_verbs: int, num_nouns: int) -> list[Pair]:
    """The (verb, noun) of a list of actions, in the order of their ids."""
    pairs: dict[int, Pair] = {}
    seen: dict[int | Pair, str] = {}
    for row in read_rows(file, ["id", "verb", "noun"]):
        number = read_number(row, "id")
        pair = read_number(row, "verb", below=num_verbs), read_number(row, "noun", below=num_nouns)
        for key in (number, pair):
            if key in seen:
                raise DataError(f"{row.where}: {key} is also at {seen[key]}")
            seen[key] = row.where
        pairs[number] = pair
    _check_ids(file, pairs)
    return [pairs[i] for i in range(len(pairs))]


def _check_ids(file: Path, ids: Collection[int]) -> None:
    missing = [i for i in range(max(len(ids), 1)) if i not in ids]
    if missing:
        raise DataError(f"{file}: ids must be 0, 1, 2 and so on; {missing[0]} is missing")


def read_rows(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a CSV in which these columns are, and have a value in every row."""
    reader = csv.reader(io.StringIO(read_text(file)), strict=True)
    try:
        header = next(reader, [])
        for name in columns:
            if name not in header:
                raise DataError(f"{file}: no column {name!r}; there are: {', '.join(header)}")
        for cells in filter(None, reader):
            where = f"{file}:{reader.line_num}"
            if len(cells) != len(header):
                raise DataError(f"{where}: {len(cells)} cells under {len(header)} columns")
            row = Row(where, dict(zip(header, map(str.strip, cells), strict=True)))
            for name in columns:
                if not row.cells[name]:
                    raise DataError(f"{where}: the column {name!r} is empty")
            yield row
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: not CSV ({error})") from error


def read_number(row: Row, column: str, *, below: int | None = None) -> int:
    """A cell's whole number, which is an id of `below` classes if that is given."""
    text = row.cells[column]
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"{row.where}: {column} {text!r} is not a whole number")
    if below is not None and int(text) >= below:
        raise DataError(f"{row.where}: {column} {text} is not an id from 0 to {below - 1}")
    return int(text)


def _seconds(row: Row, column: str) -> float:
    match = _CLOCK.fullmatch(row.cells[column])
    if match is None:
        raise DataError(f"{row.where}: {column} {row.cells[column]!r} is not hh:mm:ss.ss")
    return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])
