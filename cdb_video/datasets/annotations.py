"""What a reader makes of a data set's annotation files: records, class names, splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from cdb_video.errors import DataError

UNLABELLED = -1
"""Label of a record that has none for a head: out of its loss, counts and difficulty."""


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One line of annotations: which part of which video, with a label a head."""

    id: str
    """Unique in its split: views are averaged by it and predictions keyed by it."""
    path: Path
    """A video file, or a folder of frames."""
    video_id: str
    recording: str
    """What must not be in two splits: clips of one recording share room, light and person."""
    labels: Mapping[str, int]
    """Head -> class index, or `UNLABELLED`."""
    start_s: float | None = None
    """First second of the segment in the file; None: from the start."""
    stop_s: float | None = None
    """End of the segment, exclusive; None: to the end."""
    fps: float | None = None
    """Frames a second of a folder of frames, which carries no times of its own; None for files."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Other columns (participant, camera, ...): shown, and usable as report subsets."""


class Vocabulary:
    """The class names of one head, in the order of their indices."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._index = {name: i for i, name in enumerate(self.names)}
        if len(self._index) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise DataError(f"class name {twice[0]!r} is in the class list twice")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        more = ", ..." if len(self) > 3 else ""
        return f"Vocabulary({len(self)} classes: {', '.join(self.names[:3])}{more})"

    def index(self, name: str) -> int:
        """The class index of a name; KeyError if it is not in the list."""
        return self._index[name]


@dataclass(frozen=True)
class Split:
    """The records of one split and the class names of every head."""

    name: str
    """The annotation split it was read from, such as `train_split1`."""
    records: Sequence[VideoRecord]
    vocabularies: Mapping[str, Vocabulary]

    def __post_init__(self) -> None:
        if not self.records:
            raise DataError(f"split {self.name!r} is empty")

    def __len__(self) -> int:
        return len(self.records)

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the labels, such as ("verb", "noun", "action")."""
        return tuple(self.vocabularies)

    @cached_property
    def num_classes(self) -> dict[str, int]:
        """Head -> K."""
        return {head: len(names) for head, names in self.vocabularies.items()}

    def labels(self, head: str) -> Tensor:
        """(len(self),) int64 class indices of a head, `UNLABELLED` where a record has none."""
        return torch.tensor([record.labels[head] for record in self.records], dtype=torch.int64)

    def class_counts(self, head: str) -> Tensor:
        """(K,) int64: labelled records of every class."""
        labels = self.labels(head)
        return torch.bincount(labels[labels != UNLABELLED], minlength=len(self.vocabularies[head]))
