"""Saved features in place of clips: whole arrays in memory, no decoding, no worker processes.

They travel as clips (B, V, D, L, 1, 1): channels are features, frames are tokens; pooled features
are one token. So loss, sampler, trainer and evaluation do not know of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdb_video.clips.batch import Appearance, Batch, Skipped
from cdb_video.clips.dataset import sample_generator
from cdb_video.clips.feature_files import (
    FeatureFile,
    feature_shape,
    read_feature_file,
    refuse_not_finite,
)
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import DataError

Plan = Sequence[Sequence[Any]]


class FeatureClips:
    """The saved features of a split, batch by batch.

    Args:
        records: of the split; their paths are features files.
        seed: training: one view of a clip at random, a function of the seed and the key and of
            nothing else. None: evaluation, every view.
    """

    def __init__(self, records: Sequence[VideoRecord], *, seed: int | None = None) -> None:
        self.records = records
        self.seed = seed
        self.num_views, self.num_tokens, self.num_features = feature_shape(records)
        files = {path: read_feature_file(path) for path in {record.path for record in records}}
        found = [(files[record.path], files[record.path].rows[record.id]) for record in records]
        heads = list(records[0].labels)
        self._labels = {head: torch.tensor([r.labels[head] for r in records]) for head in heads}
        self._whole = _in_memory(found)
        self._found = found

    def __len__(self) -> int:
        return len(self.records)

    def blank(self, size: int) -> Tensor:
        """(size, D, L, 1, 1) zeros, of the shape and type of the clips."""
        return torch.zeros(size, self.num_features, self.num_tokens, 1, 1)

    def batches(self, plan: Plan) -> Iterator[tuple[Batch, tuple[Skipped, ...]]]:
        """A batch for each list of keys; nothing is ever skipped.

        A key is (epoch, index) or (epoch, index, repeat) in training, an index in evaluation.
        """
        for keys in plan:
            yield self._batch(list(keys)), ()

    def _batch(self, keys: list[Any]) -> Batch:
        if self.seed is None:
            indices = torch.tensor(keys, dtype=torch.int64)
            features = self._views(indices)
        else:
            indices = torch.tensor([key[1] for key in keys], dtype=torch.int64)
            views = torch.tensor([self._view(key) for key in keys], dtype=torch.int64)
            features = self._views(indices)[torch.arange(len(keys)), views][:, None]
        return Batch(
            clips=features.mT[..., None, None],  # (B, V, D, L, 1, 1)
            labels={head: labels[indices] for head, labels in self._labels.items()},
            indices=indices,
            appearance=Appearance(
                flip=torch.zeros(len(keys), dtype=torch.bool), jitter=torch.ones(len(keys), 3)
            ),
        )

    def _view(self, key: tuple[int, ...]) -> int:
        if self.num_views == 1 or self.seed is None:
            return 0
        generator = sample_generator(self.seed, *key)
        return int(torch.randint(self.num_views, (), generator=generator))

    def _views(self, indices: Tensor) -> Tensor:
        """(B, V, L, D)."""
        if self._whole is not None:
            return self._whole[indices]
        rows = [self._found[index] for index in indices.tolist()]
        found = torch.from_numpy(
            np.stack([f.shards[f.shard_of[row]][f.place_of[row]] for f, row in rows])
        )
        # Here, as nobody reads gigabytes twice before a training starts.
        records = [self.records[index] for index in indices.tolist()]
        try:
            refuse_not_finite(found, [record.id for record in records])
        except ValueError as error:
            raise DataError(f"{records[0].path}: {error}") from None
        return found


def _in_memory(found: Sequence[tuple[FeatureFile, int]]) -> Tensor | None:
    """(M, V, L, D) in the order of the split; None of files in shards."""
    if any(isinstance(file.shards[0], np.memmap) for file, _ in found):
        return None
    # Of one file or a few: a slice of each, in runs of one file, is a copy at the speed of memory.
    parts, start = [], 0
    for end in range(1, len(found) + 1):
        if end == len(found) or found[end][0] is not found[start][0]:
            rows = np.array([row for _, row in found[start:end]])
            parts.append(torch.from_numpy(found[start][0].shards[0][rows]))
            start = end
    return torch.cat(parts)
