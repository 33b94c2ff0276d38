"""Video-level scores with what is needed to score them again, as one .npz without pickle."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdb_video.counts import ClassCounts
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import DataError
from cdb_video.files import refuse_unpacking, replaced

# What numpy, zipfile and torch raise on files that are empty, cut short, damaged or something else.
_NOT_SUCH_A_FILE = (
    OSError,
    EOFError,
    KeyError,
    MemoryError,  # an array that claims terabytes
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class HeadPredictions:
    """One head's scores of M videos."""

    scores: Tensor
    """(M, K) fp32: the mean over views of the softmax."""
    view_scores: Tensor
    """(M, V, K) fp16."""
    labels: Tensor
    """(M,) int64, -1 where unlabelled."""

    @cached_property
    def counts(self) -> ClassCounts:
        """Every labelled video counted once; kept, as thousands of classes take seconds."""
        counts = ClassCounts(self.scores.shape[1])
        # In double, the log keeps every two scores apart.
        counts.update(self.scores.double().log(), self.labels)
        return counts

    @property
    def loss(self) -> float:
        """Mean negative log score of the own class, over labelled videos; NaN without any."""
        labelled = self.labels >= 0
        own = self.scores[labelled].gather(1, self.labels[labelled][:, None])
        return float(-own.double().clamp(min=1e-30).log().mean())


@dataclass(frozen=True)
class HeadClasses:
    """What is known of a head's classes."""

    names: tuple[str, ...]
    train_counts: Tensor
    """(K,) int64: labelled training clips."""
    annotated_counts: Tensor | None = None
    """(K,) int64: with those that were held out of training to validate; None: none were."""
    pairs: Tensor | None = None
    """What `consistency.known_pairs` says of the head, (P, 2) int64; None: nothing."""

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` takes, for JSON."""
        known: dict[str, Any] = {"names": list(self.names)}
        for name in _CLASS_ARRAYS:
            values = getattr(self, name)
            if values is not None:
                known[name] = values.tolist()
        return known

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> HeadClasses:
        """The classes that `to_dict` gave."""
        arrays = {name: torch.tensor(known[name]) for name in _CLASS_ARRAYS if name in known}
        return cls(tuple(known["names"]), **arrays)


_CLASS_ARRAYS = ("train_counts", "annotated_counts", "pairs")


@dataclass(frozen=True)
class Predictions:
    """The scores of a split."""

    ids: tuple[str, ...]
    heads: Mapping[str, HeadPredictions]
    source: str = ""
    """What they were made with, for whoever keeps them; any text."""
    metadata: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> a value a video, such as its participant; empty where it has none."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What `make_report` is given beside them, as JSON has it; empty of an earlier version."""

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(id, reason) of the videos of the split that do not decode."""
        return tuple((id_, reason) for id_, reason in self.about.get("skipped", ()))

    def __post_init__(self) -> None:
        for column, values in self.metadata.items():
            if len(values) != len(self.ids):
                raise ValueError(f"{column!r} has {len(values)} values of {len(self.ids)} videos")
        for head, part in self.heads.items():
            sizes = {len(self.ids), len(part.scores), len(part.view_scores), len(part.labels)}
            if len(sizes) != 1:
                raise ValueError(f"head {head!r}: ids, scores and labels differ in length: {sizes}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> dict[str, Tensor]:
        """Head -> (M,) int64, -1 where unlabelled."""
        return {head: part.labels for head, part in self.heads.items()}

    @property
    def counts(self) -> dict[str, ClassCounts]:
        """Head -> counts over the videos."""
        return {head: part.counts for head, part in self.heads.items()}


def metadata_of(records: Sequence[VideoRecord]) -> dict[str, tuple[str, ...]]:
    """Column -> a value a record, empty where it has none; the columns of any of them."""
    columns = dict.fromkeys(column for record in records for column in record.metadata)
    return {
        column: tuple(record.metadata.get(column, "") for record in records) for column in columns
    }


def with_metadata(predictions: Predictions, records: Sequence[VideoRecord]) -> Predictions:
    """The predictions with the metadata of their videos' records, found by id."""
    found = {record.id: record for record in records}
    return replace(predictions, metadata=metadata_of([found[id_] for id_ in predictions.ids]))


def save_predictions(
    path: Path, predictions: Predictions, classes: Mapping[str, HeadClasses]
) -> None:
    """Write `predictions_<split>.npz`; a file of that name is replaced in one move."""
    arrays: dict[str, np.ndarray] = {
        "ids": np.array(predictions.ids, dtype=np.str_),
        "source": np.array(predictions.source, dtype=np.str_),
        "about": np.array(json.dumps(dict(predictions.about)), dtype=np.str_),
    }
    for column, values in predictions.metadata.items():
        arrays[f"metadata_{column}"] = np.array(values, dtype=np.str_)
    for head, part in predictions.heads.items():
        arrays[f"scores_{head}"] = part.scores.numpy()
        arrays[f"view_scores_{head}"] = part.view_scores.numpy()
        arrays[f"labels_{head}"] = part.labels.numpy()
    save_arrays(path, arrays | class_arrays(classes, predictions.heads), compress=True)


def load_predictions(path: Path) -> tuple[Predictions, dict[str, HeadClasses]]:
    """The predictions and classes of a file that `save_predictions` wrote.

    Raises:
        DataError: not such a file.

    """
    with load_arrays(path, kind="predictions") as arrays:
        heads = {
            head: HeadPredictions(
                scores=torch.from_numpy(arrays[f"scores_{head}"]),
                view_scores=torch.from_numpy(arrays[f"view_scores_{head}"]),
                labels=torch.from_numpy(arrays[f"labels_{head}"]),
            )
            for head in heads_of(arrays, "scores_")
        }
        ids, source = tuple(arrays["ids"].tolist()), str(arrays.get("source", ""))
        about = json.loads(str(arrays.get("about", "{}")))
        metadata = {
            name.removeprefix("metadata_"): tuple(values.tolist())
            for name, values in arrays.items()
            if name.startswith("metadata_")
        }
        return Predictions(ids, heads, source, metadata, about), classes_of(arrays, heads)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool) -> None:
    """Write an .npz; a file of that name is replaced in one move."""
    save = np.savez_compressed if compress else np.savez
    # Opened here: numpy adds .npz to a name without it.
    with replaced(path) as beside, beside.open("wb") as stream:
        save(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes options for arrays


@contextmanager
def load_arrays(path: Path, *, kind: str) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of an .npz, without pickle.

    Raises:
        DataError: not such a file, or arrays that the body of the `with` cannot use.

    """
    try:
        # Opened here: numpy leaves a file open of which it finds that it is no archive.
        refuse_unpacking(path)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        yield arrays
    except _NOT_SUCH_A_FILE as error:
        raise DataError(f"{path}: not a {kind} file: {error}") from None


def heads_of(arrays: Mapping[str, np.ndarray], prefix: str) -> list[str]:
    """The heads of a file, by the arrays `<prefix><head>` that each must have."""
    heads = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
    if not heads:
        raise ValueError(f"it has no {prefix.rstrip('_')}")
    return heads


def class_arrays(classes: Mapping[str, HeadClasses], heads: Iterable[str]) -> dict[str, np.ndarray]:
    """What `classes_of` reads again."""
    arrays: dict[str, np.ndarray] = {}
    for head in heads:
        arrays[f"class_names_{head}"] = np.array(classes[head].names, dtype=np.str_)
        for name in _CLASS_ARRAYS:
            values = getattr(classes[head], name)
            if values is not None:
                arrays[f"{name}_{head}"] = values.numpy()
    return arrays


def classes_of(arrays: Mapping[str, np.ndarray], heads: Iterable[str]) -> dict[str, HeadClasses]:
    """Head -> what is known of its classes."""
    return {
        head: HeadClasses(
            names=tuple(arrays[f"class_names_{head}"].tolist()),
            train_counts=torch.from_numpy(arrays[f"train_counts_{head}"]),
            **{
                name: torch.from_numpy(arrays[f"{name}_{head}"])
                for name in ("annotated_counts", "pairs")
                if f"{name}_{head}" in arrays
            },
        )
        for head in heads
    }
