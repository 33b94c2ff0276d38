"""Tables of videos: a CSV with a column `path`, or Kinetics-style lists of `path label`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cdb_video.datasets.annotation_files import Row, Table, find_tables, read_table_file
from cdb_video.datasets.annotations import UNLABELLED, Split, VideoRecord, Vocabulary
from cdb_video.datasets.folder import VIDEO_SUFFIXES, sort_class_names
from cdb_video.errors import DataError, UnknownSplitError

_OWN_COLUMNS = (
    *("path", "video_id", "recording", "split"),
    *("start_s", "stop_s", "start_frame", "stop_frame"),
)
_LABEL_COLUMN = re.compile(r"verb|noun|action|label|label_.+")
_CLOCK = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d*)?)")
_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:")  # two letters at least: C: is a drive
_PLAYLISTS = (".m3u", ".m3u8", ".mpd", ".pls", ".ffconcat")


def read_table(
    root: Path,
    splits: Sequence[str],
    *,
    annotations: Path | None = None,
    heads: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    annotation_fps: float | None = None,
) -> Split:
    """The union of the named splits, by a column `split` or by one file a split, `<split>.csv`.

    Frame columns count from 0 and `stop_frame` is exclusive; a row that has seconds and frames is
    cut by its seconds. The classes of a head are those of every split, sorted by name (by value
    where all are integers).

    Args:
        root: `annotations` and the column `path` are relative to it.
        annotations: a table or list, or the folder of them.
        columns: our column name -> the file's.
        annotation_fps: frames a second of the frame columns and of folders of frames.
    """
    place = root if annotations is None else root / annotations
    tables = _read_splits(place, root, splits, columns or {})
    label_columns = _find_label_columns(tables, splits, heads)
    vocabularies = {head: _vocabulary(tables, name) for head, name in label_columns.items()}
    rows = [row for name in splits for row in tables[name].rows]
    records = [_record(row, root, label_columns, vocabularies, annotation_fps) for row in rows]
    _refuse_equal_ids(records, rows)
    return Split("+".join(splits), records, vocabularies)


def _read_splits(
    place: Path, root: Path, splits: Sequence[str], columns: Mapping[str, str]
) -> dict[str, Table]:
    """Every split of the data set, by name; those asked for have every column that is mapped."""
    files = find_tables(place, root, path_column=columns.get("path", "path"))
    tables = [read_table_file(file, root, columns) for file in files]
    if len(tables) == 1 and "split" in tables[0].header:
        by_name = _by_split_column(tables[0])
    elif place.is_file():  # its neighbours are the other splits
        return _read_splits(place.parent, root, splits, columns)
    else:
        by_name = {table.file.stem: table for table in tables}
    for name in splits:
        if name not in by_name:
            there = ", ".join(by_name) or "none"
            raise UnknownSplitError(
                f"{place}: no split {name!r}, as a value of a column 'split' or as a file "
                f"{name}.csv; there are: {there}"
            )
        for column, theirs in columns.items():
            by_name[name].require(column, theirs)
    return by_name


def _by_split_column(table: Table) -> dict[str, Table]:
    rows: dict[str, list[Row]] = {}
    for row in table.rows:
        if not row.cells["split"]:
            raise DataError(f"{row.where}: the column 'split' is empty")
        rows.setdefault(row.cells["split"], []).append(row)
    return {name: Table(table.file, table.header, part) for name, part in rows.items()}


def _find_label_columns(
    tables: Mapping[str, Table], splits: Sequence[str], heads: Sequence[str] | None
) -> dict[str, str]:
    """Head -> column; a column `label_x` is the head x. Every split that is read must have it."""
    file = tables[splits[0]].file
    header = list(dict.fromkeys(name for table in tables.values() for name in table.header))
    if heads is None:
        heads = [n.removeprefix("label_") for n in header if _LABEL_COLUMN.fullmatch(n)]
    if not heads:
        expected = "verb, noun, action, label, label_*, or one that model.heads names"
        raise DataError(f"{file}: no label column ({expected}); there are: {', '.join(header)}")
    columns = {}
    for head in heads:
        plain, prefixed = head, f"label_{head}"
        if plain in header and prefixed in header:
            raise DataError(f"{file}: columns {plain!r} and {prefixed!r} are the same head")
        columns[head] = prefixed if prefixed in header else plain
    for name in splits:
        for column in columns.values():
            tables[name].require(column)
    return columns


def _vocabulary(tables: Mapping[str, Table], column: str) -> Vocabulary:
    names = {row.cells.get(column, "") for table in tables.values() for row in table.rows} - {""}
    if not names:
        files = ", ".join(dict.fromkeys(str(table.file) for table in tables.values()))
        raise DataError(f"{files}: column {column!r} has no label in any row")
    return Vocabulary(sort_class_names(names))


def _record(
    row: Row,
    root: Path,
    label_columns: Mapping[str, str],
    vocabularies: Mapping[str, Vocabulary],
    annotation_fps: float | None,
) -> VideoRecord:
    path = _path(row, root)
    times, start_s, stop_s = _segment(row, annotation_fps)
    video_id = row.cells.get("video_id") or _without_suffix(row.cells["path"])
    labels = {}
    for head, column in label_columns.items():
        name = row.cells[column]
        labels[head] = vocabularies[head].index(name) if name else UNLABELLED
    used = {*_OWN_COLUMNS, *label_columns.values(), ""}
    return VideoRecord(
        id=video_id + times,
        path=path,
        video_id=video_id,
        recording=row.cells.get("recording") or video_id,
        labels=labels,
        start_s=start_s,
        stop_s=stop_s,
        fps=_frames_folder_fps(row, path, annotation_fps),
        metadata={name: cell for name, cell in row.cells.items() if name not in used},
    )


def _path(row: Row, root: Path) -> Path:
    text = row.cells["path"]
    if not text:
        raise DataError(f"{row.where}: the column 'path' is empty")
    if _SCHEME.match(text) or text.lower().endswith(_PLAYLISTS):
        raise DataError(f"{row.where}: path {text!r} is a URL or a playlist; give a local file")
    return root / text


def _without_suffix(path: str) -> str:
    return path[: path.rindex(".")] if path.lower().endswith(VIDEO_SUFFIXES) else path


def _frames_folder_fps(row: Row, path: Path, annotation_fps: float | None) -> float | None:
    if path.suffix.lower() in VIDEO_SUFFIXES or not path.is_dir():
        return None
    if annotation_fps is None:
        raise DataError(f"{row.where}: {path} is a folder of frames; give data.annotation_fps")
    return annotation_fps


def _segment(row: Row, annotation_fps: float | None) -> tuple[str, float | None, float | None]:
    """The times as the file writes them, "@start-stop", and in seconds; "" and None without."""
    in_seconds = row.cells.get("start_s") or row.cells.get("stop_s")
    unit = "s" if in_seconds else "frame"
    start, stop = (row.cells.get(f"{end}_{unit}", "") for end in ("start", "stop"))
    if not start and not stop:
        return "", None, None
    if not in_seconds and annotation_fps is None:
        raise DataError(f"{row.where}: start_frame and stop_frame need data.annotation_fps")
    rate = 1.0 if in_seconds or annotation_fps is None else annotation_fps
    parse = _parse_seconds if in_seconds else int
    try:
        start_s = parse(start) / rate if start else None
        stop_s = parse(stop) / rate if stop else None
    except ValueError as error:
        expected = "seconds or hh:mm:ss" if in_seconds else "whole frame numbers"
        raise DataError(f"{row.where}: {start!r} to {stop!r} are not {expected}") from error
    if (start_s or 0) < 0 or (stop_s is not None and stop_s <= (start_s or 0)):
        raise DataError(f"{row.where}: {start!r} to {stop!r}: expected 0 <= start < stop")
    return f"@{start}-{stop}", start_s, stop_s


def _parse_seconds(text: str) -> float:
    clock = _CLOCK.fullmatch(text)
    if clock:
        return 3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3])
    seconds = float(text)
    if not math.isfinite(seconds):
        raise ValueError(text)
    return seconds


def _refuse_equal_ids(records: Sequence[VideoRecord], rows: Sequence[Row]) -> None:
    seen: dict[str, Row] = {}
    for record, row in zip(records, rows, strict=True):
        first = seen.setdefault(record.id, row)
        if first is not row:
            raise DataError(
                f"{row.where}: id {record.id!r} is also at {first.where}; segments of one video "
                "need their times (start_s, stop_s), other rows their own video_id"
            )
