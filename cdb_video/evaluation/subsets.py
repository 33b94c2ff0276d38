"""Figures over some of the videos: those of a participant, of unseen kitchens, of a list."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cdb_video.errors import ConfigError, DataError
from cdb_video.evaluation.metrics import head_figures
from cdb_video.evaluation.predictions import HeadClasses, HeadPredictions, Predictions

UNASKED = {
    "unseen": {"verb": "unseen", "noun": "unseen", "action": "unseen"},
    "tail": {"verb": "tail_verb", "noun": "tail_noun", "action": "tail"},
}
"""Subset -> head -> the column that says "yes" of its videos, as read from EPIC-KITCHENS-100.

Over the tail each head is scored on the rare classes that are its own.
"""


def find_subsets(
    asked: Iterable[str],
    *,
    ids: Sequence[str],
    metadata: Mapping[str, Sequence[str]],
    skipped: Collection[str] = (),
) -> dict[str, frozenset[str]]:
    """Name -> ids of the subsets that a user names.

    Args:
        asked: a column, for a subset each of its values; `column=value`; or a file of ids, one a
            line. What is a column is no file.
        ids: of the split's videos.
        metadata: column -> a value a video.
        skipped: ids that a file may list besides.

    Raises:
        ConfigError: neither a column nor a file; a value that no video has; two subsets of a name.
        DataError: a file that cannot be read, or has an id that the split does not have.

    """
    found: dict[str, frozenset[str]] = {}
    given = {name for name, columns in UNASKED.items() if metadata.keys() & columns.values()}
    for text in asked:
        column, equals, value = text.partition("=")
        if column in metadata:
            new = _by_value(column, value if equals else None, ids, metadata[column])
        elif Path(text).is_file():
            new = {Path(text).stem: _from_file(Path(text), frozenset([*ids, *skipped]))}
        else:
            there = ", ".join(metadata) or "none"
            raise ConfigError(f"--subset {text}: neither a file nor a column; columns: {there}")
        for name, members in new.items():
            if name in given or found.get(name, members) != members:
                raise ConfigError(f"--subset {text}: there is another subset {name!r}; rename it")
        found |= new
    return found


def _by_value(
    column: str, wanted: str | None, ids: Sequence[str], values: Sequence[str]
) -> dict[str, frozenset[str]]:
    members: dict[str, set[str]] = {value: set() for value in sorted(set(values))}
    for id_, value in zip(ids, values, strict=True):
        members[value].add(id_)
    if wanted is not None and wanted not in members:
        there = ", ".join(map(repr, members))
        raise ConfigError(f"--subset {column}={wanted}: no video has it; there are: {there}")
    return {
        f"{column}={value}": frozenset(part)
        for value, part in members.items()
        if wanted in (None, value)
    }


def _from_file(path: Path, ids: frozenset[str]) -> frozenset[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a list of ids: {error}") from None
    found = set()
    for number, line in enumerate(lines, start=1):
        id_ = line.strip()
        if id_ and id_ not in ids:
            raise DataError(f"{path}:{number}: {id_!r} is no video of the split")
        found.update([id_] if id_ else [])
    if not found:
        raise DataError(f"{path}: no id in it")
    return frozenset(found)


def subset_figures(
    predictions: Predictions,
    classes: Mapping[str, HeadClasses],
    asked: Mapping[str, Collection[str]],
    *,
    adjusted: bool = False,
) -> dict[str, dict[str, Any]]:
    """Name -> head -> figures: of `UNASKED`, where the metadata has them, and of those asked for.

    Args:
        predictions: of the whole split.
        classes: head -> what is known of its classes.
        asked: name -> ids; those without predictions count for nothing.
        adjusted: see `head_figures`.

    """
    masks = _unasked(predictions)
    for name, ids in asked.items():
        mask = torch.tensor([id_ in ids for id_ in predictions.ids], dtype=torch.bool)
        masks[name] = dict.fromkeys(predictions.heads, mask)
    return {
        name: {
            head: head_figures(
                _rows(predictions.heads[head], mask),
                classes[head],
                per_class=False,
                adjusted=adjusted,
            )
            for head, mask in of_heads.items()
        }
        for name, of_heads in masks.items()
    }


def _unasked(predictions: Predictions) -> dict[str, dict[str, torch.Tensor]]:
    """Subset -> head -> (M,) bool, of the subsets that have a video."""
    masks = {}
    for name, columns in UNASKED.items():
        of_heads = {
            head: torch.tensor([value == "yes" for value in predictions.metadata[column]])
            for head, column in columns.items()
            if head in predictions.heads and "yes" in predictions.metadata.get(column, ())
        }
        if of_heads:
            masks[name] = of_heads
    return masks


def _rows(part: HeadPredictions, mask: torch.Tensor) -> HeadPredictions:
    return HeadPredictions(part.scores[mask], part.view_scores[mask], part.labels[mask])
