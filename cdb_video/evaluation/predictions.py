"""Video-level scores with what is needed to score them again, as one .npz without pickle."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdb_video.counts import ClassCounts
from cdb_video.errors import DataError

# What numpy, zipfile and torch raise on files that are empty, cut short, damaged or something else.
_NOT_SUCH_A_FILE = (
    OSError,
    EOFError,
    KeyError,
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

    @property
    def counts(self) -> ClassCounts:
        """Every labelled video counted once."""
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


@dataclass(frozen=True)
class Predictions:
    """The scores of a split."""

    ids: tuple[str, ...]
    heads: Mapping[str, HeadPredictions]
    source: str = ""
    """What they were made with, for whoever keeps them; any text."""

    def __post_init__(self) -> None:
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


def save_predictions(
    path: Path, predictions: Predictions, classes: Mapping[str, HeadClasses]
) -> None:
    """Write `predictions_<split>.npz`; a file of that name is replaced in one move."""
    arrays: dict[str, np.ndarray] = {
        "ids": np.array(predictions.ids, dtype=np.str_),
        "source": np.array(predictions.source, dtype=np.str_),
    }
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
        return Predictions(ids, heads, source), classes_of(arrays, heads)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool) -> None:
    """Write an .npz; a file of that name is replaced in one move."""
    beside = path.with_name(f"{path.stem}.tmp{os.getpid()}.npz")
    save = np.savez_compressed if compress else np.savez
    save(beside, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the options for arrays
    beside.replace(path)


@contextmanager
def load_arrays(path: Path, *, kind: str) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of an .npz, without pickle.

    Raises:
        DataError: not such a file, or arrays that the body of the `with` cannot use.

    """
    try:
        # Opened here: numpy leaves a file open of which it finds that it is no archive.
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
        arrays[f"train_counts_{head}"] = classes[head].train_counts.numpy()
    return arrays


def classes_of(arrays: Mapping[str, np.ndarray], heads: Iterable[str]) -> dict[str, HeadClasses]:
    """Head -> names and training counts."""
    return {
        head: HeadClasses(
            names=tuple(arrays[f"class_names_{head}"].tolist()),
            train_counts=torch.from_numpy(arrays[f"train_counts_{head}"]),
        )
        for head in heads
    }
