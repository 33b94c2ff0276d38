"""Tables of videos: a CSV with a column `path`, or Kinetics-style lists of `path label`."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cdb_video.datasets.annotation_files import Row, Table, find_tables, read_table_file
from cdb_video.datasets.annotations import UNLABELLED, Split, VideoRecord, Vocabulary
from cdb_video.datasets.columns import OWN_COLUMNS, is_label
from cdb_video.datasets.folder import VIDEO_SUFFIXES, sort_class_names
from cdb_video.datasets.segments import FrameNumbers, read_segment
from cdb_video.errors import DataError, UnknownSplitError

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
    annotation_first_frame: int = 0,
    vocabularies: Mapping[str, Vocabulary] | None = None,
) -> Split:
    """The union of the named splits, by a column `split` or by one file a split, `<split>.csv`.

    `stop_frame` is exclusive, `last_frame` is not; a row that has seconds and frames is cut by its
    seconds. The classes of a head are those of every split, sorted by name (by value where all are
    integers). A split without any label column, or with empty ones, is unlabelled.

    Args:
        root: `annotations` and the column `path` are relative to it.
        annotations: a table or list, or the folder of them.
        columns: our column name -> the file's, or a template of the file's: "{video_id}.mp4".
        annotation_fps: frames a second of the frame columns and of folders of frames.
        annotation_first_frame: the number that the frame columns give the first frame.
        vocabularies: the classes of heads that no split has a label for.
    """
    place = root if annotations is None else root / annotations
    known, columns = vocabularies or {}, columns or {}
    tables = _read_splits(place, root, splits, columns)
    label_columns = _find_label_columns(tables, splits, heads, columns, known)
    classes = {head: _vocabulary(tables, name, known.get(head)) for head, name in label_columns}
    numbers = FrameNumbers(annotation_fps, annotation_first_frame)
    rows = [row for name in splits for row in tables[name].rows]
    records = [_record(row, root, dict(label_columns), classes, numbers) for row in rows]
    _refuse_equal_ids(records, rows)
    return Split("+".join(splits), records, classes)


def _read_splits(
    place: Path, root: Path, splits: Sequence[str], columns: Mapping[str, str]
) -> dict[str, Table]:
    """Every split of the data set, by name; those asked for have every column that is mapped."""
    files = find_tables(place, root, path_column=columns.get("path", "path"))
    tables = [read_table_file(file, root, columns) for file in files]
    # A list of files that lies about is no split beside a table that names the splits.
    with_more = [table for table in tables if not table.is_bare_list]
    if len(with_more) == 1 and "split" in with_more[0].header:
        by_name = _by_split_column(with_more[0])
    elif place.is_file():  # its neighbours are the other splits
        return _read_splits(place.parent, root, splits, columns)
    else:
        by_name = {table.file.stem: table for table in tables}
    for name in splits:
        if name not in by_name:
            _refuse_unknown_split(place, name, by_name)
        for column in columns.keys() & set(OWN_COLUMNS):
            by_name[name].require(column, columns[column])
    for column, theirs in columns.items():  # labels: an unlabelled split has none
        if not any(column in table.header for table in by_name.values()):
            by_name[splits[0]].require(column, theirs)
    return by_name


def _refuse_unknown_split(place: Path, name: str, tables: Mapping[str, Table]) -> None:
    there = ", ".join(tables) or "none"
    how = ""
    if len(tables) == 1 and "split" not in next(iter(tables.values())).header:
        [only] = tables
        how = (
            f"; to divide {only}: add a column 'split', or give data.train_split={only}, "
            "data.val_split=held_out and data.hold_out_subjects"
        )
    raise UnknownSplitError(
        f"{place}: no split {name!r}, as a value of a column 'split' or as a file {name}.csv; "
        f"there are: {there}{how}"
    )


def _by_split_column(table: Table) -> dict[str, Table]:
    rows: dict[str, list[Row]] = {}
    for row in table.rows:
        if not row.cells["split"]:
            raise DataError(f"{row.where}: the column 'split' is empty")
        rows.setdefault(row.cells["split"], []).append(row)
    return {name: dataclasses.replace(table, rows=part) for name, part in rows.items()}


def _find_label_columns(
    tables: Mapping[str, Table],
    splits: Sequence[str],
    heads: Sequence[str] | None,
    columns: Mapping[str, str],
    known: Mapping[str, Vocabulary],
) -> list[tuple[str, str]]:
    """Heads with their column; a column `label_x` is the head x."""
    file = tables[splits[0]].file
    header = list(dict.fromkeys(name for table in tables.values() for name in table.header))
    if heads is None:
        heads = [name.removeprefix("label_") for name in header if is_label(name)]
    if not heads:
        expected = "verb, noun, action, label, label_*, or one that model.heads names"
        raise DataError(f"{file}: no label column ({expected}); there are: {', '.join(header)}")
    found = []
    for head in heads:
        plain, prefixed = head, f"label_{head}"
        if plain in header and prefixed in header:
            raise DataError(f"{file}: columns {plain!r} and {prefixed!r} are the same head")
        found.append((head, prefixed if prefixed in header else plain))
    for name in splits:
        _refuse_half_labelled(tables[name], [column for _, column in found], columns)
    for head, column in found:
        if column not in header and head not in known:
            tables[splits[0]].require(column, columns.get(column))
    return found


def _refuse_half_labelled(
    table: Table, label_columns: Sequence[str], columns: Mapping[str, str]
) -> None:
    """A table has every label column, or none: then it is unlabelled, unless one looks misspelt."""
    theirs = [columns.get(column, column) for column in label_columns]
    names = [name.casefold() for name in table.file_header]
    misspelt = any(difflib.get_close_matches(t.casefold(), names, cutoff=0.8) for t in theirs)
    if misspelt or any(column in table.header for column in label_columns):
        for column in label_columns:
            table.require(column, columns.get(column))


def _vocabulary(tables: Mapping[str, Table], column: str, known: Vocabulary | None) -> Vocabulary:
    names = {row.cells.get(column, "") for table in tables.values() for row in table.rows} - {""}
    if names:
        return Vocabulary(sort_class_names(names))
    if known is not None:
        return known
    files = ", ".join(dict.fromkeys(str(table.file) for table in tables.values()))
    raise DataError(f"{files}: column {column!r} has no label in any row")


def _record(
    row: Row,
    root: Path,
    label_columns: Mapping[str, str],
    vocabularies: Mapping[str, Vocabulary],
    numbers: FrameNumbers,
) -> VideoRecord:
    path = _path(row, root)
    segment = read_segment(row, numbers)
    video_id = row.cells.get("video_id") or _without_suffix(row.cells["path"])
    labels = {}
    for head, column in label_columns.items():
        name = row.cells.get(column)
        labels[head] = vocabularies[head].index(name) if name else UNLABELLED
    used = {*OWN_COLUMNS, *label_columns.values(), ""}
    return VideoRecord(
        id=video_id + segment.times,
        path=path,
        video_id=video_id,
        recording=row.cells.get("recording") or video_id,
        labels=labels,
        start_s=segment.start_s,
        stop_s=segment.stop_s,
        fps=_frames_folder_fps(row, path, numbers.fps),
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


def _refuse_equal_ids(records: Sequence[VideoRecord], rows: Sequence[Row]) -> None:
    seen: dict[str, Row] = {}
    for record, row in zip(records, rows, strict=True):
        first = seen.setdefault(record.id, row)
        if first is not row:
            raise DataError(
                f"{row.where}: id {record.id!r} is also at {first.where}; segments of one video "
                "need their times (start_s, stop_s), other rows their own video_id"
            )
