"""Files of saved features: which arrays are in them, and that they are what they should be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdb_video.datasets.annotations import VideoRecord
from cdb_video.datasets.features import Array, open_features, read_texts
from cdb_video.errors import DataError

Source = Mapping[str, Any]
"""What features were made with, as far as their file says: `weights`, and keys of the `clip`."""
# What torch takes; numpy has more, and other byte orders.
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class FeatureFile:
    """The features of one file, by row."""

    rows: dict[str, int]
    """Id -> row."""
    shards: tuple[Array, ...]
    """(m, V, L, D) each; from disk as they are asked for, where there are several."""
    shard_of: Array
    """(M,) shard of each row."""
    place_of: Array
    """(M,) place in its shard."""
    source: Source

    @property
    def shape(self) -> tuple[int, int, int]:
        """(V, L, D) of each row."""
        _, views, tokens, width = self.shards[0].shape
        return views, tokens, width


def read_feature_file(path: Path) -> FeatureFile:
    """A file's features; kept for the next one who asks, as a comparison asks for each run.

    Raises:
        DataError: not a features file, or one of its shards is missing.
    """
    try:
        written = path.stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"{path}: not a features file: {error}") from None
    return _read(path, written)


@lru_cache(maxsize=8)
def _read(path: Path, written: int) -> FeatureFile:
    with open_features(path) as arrays:
        ids = read_texts(arrays, "ids")
        rows, source = {name: row for row, name in enumerate(ids)}, _source(arrays)
        if "shards" in arrays:
            return FeatureFile(rows, *_read_shards(path.parent, arrays, ids), source)
        zeros = np.zeros(len(ids), dtype=np.int64)
        return FeatureFile(rows, (_read_whole(arrays, ids),), zeros, np.arange(len(ids)), source)


def _source(arrays: Mapping[str, Array]) -> Source:
    """Another's file may say what it likes, or nothing."""
    try:
        about = json.loads(str(arrays["source"])) if "source" in arrays else {}
    except (ValueError, RecursionError):
        return {}
    kinds = {"weights": str, "commit": str, "clip": dict}
    if not isinstance(about, dict):
        return {}
    return {key: about[key] for key, kind in kinds.items() if isinstance(about.get(key), kind)}


def _read_whole(arrays: Mapping[str, Array], ids: Sequence[str]) -> Array:
    """(M, V, 1, D)."""
    found = arrays["features"]
    whole = found.reshape(len(ids), -1, 1, found.shape[-1]) if _is_table(found, ids) else None
    if whole is None or whole.dtype not in _FLOATS:
        raise ValueError(f"features {found.dtype} {found.shape} for {len(ids)} clips")
    refuse_not_finite(torch.from_numpy(whole), ids)
    return whole


def _is_table(found: Array, ids: Sequence[str]) -> bool:
    return found.ndim in (2, 3) and len(found) == len(ids) and found.size > 0


def _read_shards(
    folder: Path, arrays: Mapping[str, Array], ids: Sequence[str]
) -> tuple[tuple[Array, ...], Array, Array]:
    """The shards, and the shard and the place in it of each row."""
    names = read_texts(arrays, "shards")
    if not names or any(Path(name).name != name for name in names):
        raise ValueError(f"shards {names[:4]} are no files beside it")
    # Mapped: of tokens there may be more than memory holds.
    shards = tuple(np.lib.format.open_memmap(folder / name, mode="r") for name in names)
    if any(
        shard.ndim != 4
        or shard.size == 0
        or shard.shape[1:] != shards[0].shape[1:]
        or shard.dtype not in _FLOATS
        for shard in shards
    ):
        raise ValueError("its shards are not of one shape (m, views, tokens, features), of floats")
    shard_of, place_of = arrays["shard_of"], arrays["place_of"]
    for name, found in (("shard_of", shard_of), ("place_of", place_of)):
        if found.shape != (len(ids),) or found.dtype.kind not in "iu":
            raise ValueError(f"{name} {found.dtype} {found.shape} for {len(ids)} clips")
    lengths = dict(enumerate(map(len, shards)))
    for name, shard, place in zip(ids, shard_of.tolist(), place_of.tolist(), strict=True):
        if not 0 <= place < lengths.get(shard, 0):
            raise ValueError(f"clip {name} is in row {place} of shard {shard}, which is not there")
    return shards, shard_of, place_of


def refuse_not_finite(features: Tensor, ids: Sequence[str]) -> None:
    """Features (M, ...), a row for each id; one pass, without a mask of their size.

    Raises:
        ValueError: naming the clip of the first that is no finite number.
    """
    if bool(torch.stack(features.aminmax()).isfinite().all()):
        return
    for row, name in zip(features, ids, strict=True):
        if not bool(row.isfinite().all()):
            raise ValueError(f"a feature of clip {name} is no finite number")


def feature_shape(records: Sequence[VideoRecord]) -> tuple[int, int, int]:
    """(V, L, D) of the features of a split.

    Raises:
        DataError: its files differ in it.
    """
    paths = list(dict.fromkeys(record.path for record in records))
    shapes = [read_feature_file(path).shape for path in paths]
    for path, shape in zip(paths, shapes, strict=True):
        if shape != shapes[0]:
            raise DataError(
                f"{path}: {shape} views, tokens and features a clip, and {paths[0]} has "
                f"{shapes[0]}; the files of a split must be alike"
            )
    return shapes[0]


def feature_source(records: Sequence[VideoRecord]) -> Source:
    """What the features of a split were made with; empty where no file says.

    Raises:
        DataError: its files differ in it.
    """
    paths = list(dict.fromkeys(record.path for record in records))
    known: Source = {}
    for path in paths:
        found = read_feature_file(path).source
        difference = source_difference(known, found)
        if difference:
            raise DataError(
                f"{path}: made with {difference} of other files; the files of a split must be alike"
            )
        known = {**found, **known}
    return known


def source_difference(known: Source, found: Source) -> str | None:
    """The first thing that both say, and say otherwise: "clip.stride=4, against 2"; None: none."""
    theirs = _flat(known)
    for key, value in _flat(found).items():
        if theirs.get(key, value) != value:
            return f"{key}={value}, against {theirs[key]}"
    return None


def _flat(source: Source) -> dict[str, Any]:
    clip = {f"clip.{key}": value for key, value in source.get("clip", {}).items()}
    return {key: value for key, value in source.items() if key != "clip"} | clip
