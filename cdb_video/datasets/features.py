"""Saved features as a data set: a file a split, with ids, labels and class names in it.

`tools/evaluate.py --features` writes them; docs/data_format.md names the arrays.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cdb_video.datasets.annotations import Split, VideoRecord, Vocabulary
from cdb_video.errors import DataError, UnknownSplitError
from cdb_video.files import refuse_unpacking

EXPECTED_FILES = "<split>.npz, as tools/evaluate.py --features writes them"
# What numpy and zipfile raise on files that are empty, cut short, damaged or something else.
NOT_SUCH_A_FILE = (
    OSError,
    EOFError,
    KeyError,
    MemoryError,  # an array that claims terabytes
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
Array = np.ndarray[Any, Any]


@contextmanager
def open_features(path: Path) -> Iterator[Mapping[str, Array]]:
    """The arrays of a features file, each read as it is asked for; without pickle.

    Raises:
        DataError: not such a file, or arrays that the body of the `with` cannot use.
    """
    try:
        refuse_unpacking(path)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            yield file
    except NOT_SUCH_A_FILE as error:
        raise DataError(f"{path}: not a features file: {error}") from None


def read_texts(arrays: Mapping[str, Array], name: str, count: int | None = None) -> list[str]:
    """An array of texts, one a clip where there are `count` clips.

    Raises:
        KeyError: there is no such array.
        ValueError: it is something else, or of another length.
    """
    found = arrays[name]
    if found.ndim != 1 or found.dtype.kind != "U":
        raise ValueError(f"{name} {found.dtype} {found.shape} is no list of texts")
    if count is not None and len(found) != count:
        raise ValueError(f"{len(found)} {name} for {count} clips")
    texts: list[str] = found.tolist()
    return texts


def read_features(root: Path, splits: Sequence[str]) -> Split:
    """The records of `root/<split>.npz`, one split or several.

    Raises:
        UnknownSplitError: no such file.
        DataError: not a features file, or files of other classes.
    """
    parts = [_read_file(root, split) for split in splits]
    first = parts[0]
    for part in parts[1:]:
        if part.vocabularies != first.vocabularies:
            raise DataError(
                f"{root}: {part.name}.npz and {first.name}.npz do not have the same classes; they "
                "must be made by one run"
            )
    records = [record for part in parts for record in part.records]
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise DataError(f"{record.path}: clip {record.id} is in the split twice")
        seen.add(record.id)
    return Split(" + ".join(splits), records, first.vocabularies)


def _read_file(root: Path, split: str) -> Split:
    path = root / f"{split}.npz"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in root.glob("*.npz"))) or "none"
        raise UnknownSplitError(f"{root}: no features of split {split!r}; there are: {there}")
    with open_features(path) as arrays:
        ids = read_texts(arrays, "ids")
        if not ids:
            raise ValueError("it has no clips")
        heads = [name.removeprefix("labels_") for name in arrays if name.startswith("labels_")]
        if not heads:
            raise ValueError("it has no labels")
        vocabularies = {
            head: Vocabulary(read_texts(arrays, f"class_names_{head}")) for head in heads
        }
        labels = {head: _labels(arrays, head, vocabularies[head], len(ids)) for head in heads}
        recordings = ids
        if "recordings" in arrays:
            recordings = read_texts(arrays, "recordings", len(ids))
        columns = {
            name.removeprefix("metadata_"): read_texts(arrays, name, len(ids))
            for name in arrays
            if name.startswith("metadata_")
        }
        records = [
            VideoRecord(
                id=ids[i],
                path=path,
                video_id=ids[i],
                recording=recordings[i],
                labels={head: labels[head][i] for head in heads},
                metadata={column: values[i] for column, values in columns.items() if values[i]},
            )
            for i in range(len(ids))
        ]
    return Split(split, records, vocabularies)


def _labels(
    arrays: Mapping[str, Array], head: str, vocabulary: Vocabulary, count: int
) -> list[int]:
    found = arrays[f"labels_{head}"]
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(f"labels of {head} are {found.dtype} {found.shape}, not class indices")
    labels: list[int] = found.tolist()
    if len(labels) != count:
        raise ValueError(f"{len(labels)} labels of {head} for {count} clips")
    if not -1 <= min(labels) <= max(labels) < len(vocabulary):
        raise ValueError(f"a label of {head} is none of its {len(vocabulary)} classes")
    return labels
