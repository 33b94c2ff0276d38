"""`read_split`: the records of a split, whatever the format of the annotations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from cdb_video.datasets import egtea, epic100, epic100_files, features, images
from cdb_video.datasets.annotation_files import find_tables, starts_bare
from cdb_video.datasets.annotations import UNLABELLED, Split, VideoRecord, Vocabulary
from cdb_video.datasets.columns import refuse_unknown
from cdb_video.datasets.folder import find_videos, read_folder
from cdb_video.datasets.inside import refuse_links_out, refuse_outside, refuse_paths_out
from cdb_video.datasets.long_tail import LongTail
from cdb_video.datasets.table import read_table
from cdb_video.errors import DataError

Format = Literal["auto", "egtea", "epic100", "table", "folder", "features", "images"]
Part = Literal["all", "rest", "held_out"]

_SUBJECT_COLUMN = {
    "egtea": "subject",
    "epic100": "participant",
    "table": "participant",
    "folder": "participant",
    "features": "participant",
    "images": "participant",
}
_FORMAT_OF_KEY = {
    "columns": "table",
    "annotation_fps": "table",
    "annotation_first_frame": "table",
    "split_seed": "folder",
    "group_pattern": "folder",
    "val_per_class": "images",
    "long_tail": "images",
}
_EXPECTED_FILES = {
    "egtea": egtea.EXPECTED_FILES,
    "epic100": epic100.EXPECTED_FILES,
    "features": features.EXPECTED_FILES,
    "images": images.EXPECTED_FILES,
}


def read_split(
    root: str | Path,
    *,
    format: Format = "auto",
    split: str | Sequence[str],
    annotations: str | Path | None = None,
    heads: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    annotation_fps: float | None = None,
    annotation_first_frame: int = 0,
    split_seed: int = 0,
    group_pattern: str | None = None,
    val_per_class: int = 0,
    long_tail: LongTail | None = None,
    draw_seed: int | None = None,
    hold_out_subjects: Sequence[str] = (),
    hold_out_column: str | None = None,
    part: Part = "all",
    check_files: bool = True,
    vocabularies: Mapping[str, Vocabulary] | None = None,
    untrusted: bool = False,
) -> Split:
    """The records of one split, or of the union of several, with the classes of the whole data set.

    The formats are described in `docs/data_format.md` and by `read_egtea`, `read_epic100`,
    `read_table`, `read_folder` and `read_images`.

    Args:
        annotations: relative to the root; where they lie if not where the format expects them.
        heads: which labels; None: every label the data has, or the heads of `vocabularies`.
        columns: for a table, our column name -> the file's, or a template: "{video_id}.mp4".
        annotation_fps: for a table, frames a second of its frame columns and folders of frames.
        annotation_first_frame: for a table, the number that its frame columns give the first frame.
        split_seed: for class folders without split folders, of the draw of train, val and test.
        group_pattern: for folders, a regular expression with one group, found in a file's name: the
            record's recording, which such a draw keeps in one split.
        val_per_class: for images, so many of each training class that are the split `val`.
        long_tail: for images, the tail that is made of the training split.
        draw_seed: for images, which these are; None: by their order in the files.
        hold_out_subjects: values of `hold_out_column` (egtea: subject, others: participant).
        part: "rest" leaves the records of those subjects out, "held_out" keeps only them.
        check_files: every video must be there.
        vocabularies: the classes of a checkpoint; a label that is none of them is refused.
        untrusted: refuse absolute paths, "..", and links anywhere in the root that lead out of it.

    Raises:
        DataError: annotations, labels or videos that cannot be used, each with its file and line.
    """
    root, place = Path(root), None if annotations is None else Path(annotations)
    names = (split,) if isinstance(split, str) else tuple(dict.fromkeys(split))
    _refuse_bad_arguments(root, names, part)
    if untrusted:  # before any file is read
        refuse_links_out(root)
        if place is not None:
            refuse_outside(root / place, root)
    if format == "auto":
        format = _detect_format(root, place, columns or {})
    _refuse_other_formats_keys(
        format,
        {
            "columns": bool(columns),
            "annotation_fps": annotation_fps is not None,
            "annotation_first_frame": annotation_first_frame != 0,
            "split_seed": split_seed != 0,
            "group_pattern": group_pattern is not None,
            "val_per_class": val_per_class != 0,
            "long_tail": long_tail is not None,
        },
    )
    if heads is None and vocabularies is not None:
        heads = tuple(vocabularies)
    if format == "table":
        subject = hold_out_column or _SUBJECT_COLUMN[format]
        refuse_unknown(columns or {}, [subject, *(heads or ())])
        read = read_table(
            root,
            names,
            annotations=place,
            heads=heads,
            columns=columns,
            annotation_fps=annotation_fps,
            annotation_first_frame=annotation_first_frame,
            vocabularies=vocabularies,
        )
    elif format == "folder":
        if annotations is not None:
            raise DataError(f"data.annotations: {annotations} given, but format 'folder' has none")
        folder = read_folder(root, names, seed=split_seed, group_pattern=group_pattern)
        read = _select_heads(folder, heads)
    elif format == "images":
        found = images.read_images(
            root,
            names,
            annotations=place,
            val_per_class=val_per_class,
            long_tail=long_tail,
            seed=draw_seed,
        )
        read = _select_heads(found, heads)
    elif format == "features":
        if annotations is not None:
            raise DataError(
                f"data.annotations: {annotations} given, but format 'features' has none"
            )
        read = _select_heads(features.read_features(root, names), heads)
    else:
        read = _select_heads(_read_by_layout(root, names, format, place), heads)
    if part != "all":
        column = hold_out_column or _SUBJECT_COLUMN[format]
        read = _hold_out(read, column=column, subjects=hold_out_subjects, part=part)
    if vocabularies is not None:
        read = _relabel(read, vocabularies)
    if untrusted:
        refuse_paths_out(read, root)
    if check_files:
        _check_files(read, _EXPECTED_FILES.get(format, f"paths relative to {root}"))
    return read


def _read_by_layout(
    root: Path, splits: Sequence[str], format: Format, annotations: Path | None
) -> Split:
    """Of the formats that need to be told nothing but where they are."""
    if format == "egtea":
        return egtea.read_egtea(root, splits, annotations=annotations)
    if format == "epic100":
        return epic100.read_epic100(root, splits, annotations=annotations)
    raise DataError(f"data.format: {format!r}; allowed: {', '.join(get_args(Format))}")


def _refuse_other_formats_keys(format: str, given: Mapping[str, bool]) -> None:
    for key, is_given in given.items():
        if is_given and _FORMAT_OF_KEY[key] != format:
            raise DataError(
                f"data.{key}: not for format {format!r}; it is for {_FORMAT_OF_KEY[key]!r}"
            )


def _refuse_bad_arguments(root: Path, splits: Sequence[str], part: str) -> None:
    if not root.is_dir():
        raise DataError(f"data.root: no folder {root}")
    if not splits:
        raise DataError("no split is named")
    if part not in get_args(Part):
        raise DataError(f"part: {part!r}; allowed: {', '.join(get_args(Part))}")


def _detect_format(
    root: Path, annotations: Path | None, columns: Mapping[str, str]
) -> Literal["egtea", "epic100", "table", "folder"]:
    if (egtea.find_annotations(root, annotations) / "action_idx.txt").is_file():
        return "egtea"
    if epic100_files.find_annotations(root, annotations) is not None:
        return "epic100"
    place = root if annotations is None else root / annotations
    tables = find_tables(place, root, path_column=columns.get("path", "path"))
    if any(not starts_bare(file) for file in tables):  # a list of files may lie about anywhere
        return "table"
    if find_videos(root, depth=1) or find_videos(root, depth=2):
        return "folder"
    raise DataError(
        f"{place}: no data set found; looked for action_idx.txt (egtea), EPIC_100_train.csv "
        "(epic100), a .csv with a column 'path' or a .txt of lines 'path label' (table), "
        "<split>/<class>/<video> or <class>/<video> (folder); images are read with "
        "data.format=images"
    )


def _select_heads(split: Split, heads: Sequence[str] | None) -> Split:
    if heads is None:
        return split
    for head in heads:
        if head not in split.heads:
            there = ", ".join(split.heads)
            raise DataError(f"model.heads: the data has no label {head!r}; there are: {there}")
    records = [
        dataclasses.replace(record, labels={head: record.labels[head] for head in heads})
        for record in split.records
    ]
    return Split(split.name, records, {head: split.vocabularies[head] for head in heads})


def _hold_out(
    split: Split, *, column: str, subjects: Sequence[str], part: Literal["rest", "held_out"]
) -> Split:
    if not subjects:
        raise DataError(f"data.hold_out_subjects: empty, so split {split.name!r} has no {part}")
    there = sorted({r.metadata[column] for r in split.records if column in r.metadata})
    if not there:
        columns = ", ".join(split.records[0].metadata) or "none"
        raise DataError(f"data.hold_out_column: no column {column!r}; there are: {columns}")
    for subject in subjects:
        if subject not in there:
            raise DataError(
                f"data.hold_out_subjects: no {column} {subject!r} in split {split.name!r}; "
                f"there are: {', '.join(there)}"
            )
    records = [
        record
        for record in split.records
        if (record.metadata.get(column) in subjects) == (part == "held_out")
    ]
    return Split(f"{split.name} ({part})", records, split.vocabularies)


def _relabel(split: Split, vocabularies: Mapping[str, Vocabulary]) -> Split:
    """The same records under other class lists, by name."""
    for head in split.heads:
        if head not in vocabularies:
            given = ", ".join(vocabularies)
            raise DataError(f"model.heads: no class list for {head!r}; there are: {given}")
    records = [
        dataclasses.replace(
            record,
            labels={head: _index(record, head, split, vocabularies[head]) for head in split.heads},
        )
        for record in split.records
    ]
    return Split(split.name, records, {head: vocabularies[head] for head in split.heads})


def _index(record: VideoRecord, head: str, split: Split, vocabulary: Vocabulary) -> int:
    label = record.labels[head]
    if label == UNLABELLED:
        return UNLABELLED
    name = split.vocabularies[head].names[label]
    if name not in vocabulary:
        raise DataError(
            f"split {split.name!r}: {record.id}: {head} {name!r} is none of the "
            f"{len(vocabulary)} classes given"
        )
    return vocabulary.index(name)


def _check_files(split: Split, expected: str) -> None:
    there = {path: path.exists() for path in {record.path for record in split.records}}
    missing = [record.path for record in split.records if not there[record.path]]
    if missing:
        raise DataError(
            f"{missing[0]}: no such video; {len(missing)} of {len(split)} records of split "
            f"{split.name!r} have none; expected {expected}"
        )
