"""Tokens of every video of a split, in as many files as it takes.

They are a hundred times larger than pooled features, so they are never all in memory: each rank
writes its videos' as it goes, and at the end rank 0 the features file that says where each one is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdb_video import distributed
from cdb_video.clips.batch import Skipped
from cdb_video.clips.loader import EvaluationLoader
from cdb_video.clips.transforms import ToModelInput
from cdb_video.datasets.annotations import UNLABELLED
from cdb_video.distributed import Ranks
from cdb_video.evaluation.evaluate import gather_skipped
from cdb_video.evaluation.features import Features, describing_arrays, see_views, to_half
from cdb_video.evaluation.predictions import HeadClasses, metadata_of, save_arrays
from cdb_video.files import writing
from cdb_video.models.recognizer import Recognizer
from cdb_video.precision import Precision, autocast
from cdb_video.progress import Progress

SHARD_BYTES = 1 << 30


def save_tokens(
    path: Path,
    model: Recognizer,
    loader: EvaluationLoader,
    classes: Mapping[str, HeadClasses],
    *,
    device: torch.device,
    ranks: Ranks,
    source: str = "",
    precision: Precision = "fp32",
    micro_batch_size: int = 32,
    description: str = "extracting tokens",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `path` and, beside it, `<stem>.tokens-<rank>-<n>.npy` of (m, V, L, D) fp16 each.

    Args:
        path: an .npz; it is written last, so that what is there is whole. One of that name is
            removed first, with its shards.
        model: with a backbone that has tokens.
        loader: this rank's part of the split.
        classes: of the model's heads.
        device: where the model is.
        ranks: which process this is.
        source: what they were made with.
        precision: of the forward pass.
        micro_batch_size: clips a forward, at most.
        description: what the progress bar says.
        shard_bytes: a shard is closed when it is larger.

    Raises:
        ConfigError: a backbone without tokens.
        RunError: tokens beyond fp16's range.
        DecodeError: naming a video that does not decode.

    """
    if ranks.is_main:
        path.unlink(missing_ok=True)
        for shard in shards_of(path):  # which may be more than there will be now
            shard.unlink()
    distributed.barrier()
    shards = _Shards(path, rank=ranks.rank, limit=shard_bytes)
    to_input = ToModelInput(*model.normalization).to(device)
    skipped: list[Skipped] = []
    model.eval()
    with Progress(
        description, total=len(loader.order.indices), unit="videos", quiet=not ranks.is_main
    ) as bar:
        for batch in loader:
            if len(batch):
                with autocast(device, precision):
                    tokens = see_views(model.tokens, batch, to_input, micro_batch_size)
                shards.add(batch.indices, to_half(tokens.cpu(), path))
            skipped += batch.skipped
            bar.advance(len(batch) + len(batch.skipped))
    shards.close()
    reasons = gather_skipped(loader, skipped)
    parts = distributed.gather_objects((shards.names, shards.places))
    if ranks.is_main:
        _write_index(path, model, loader, classes, parts, reasons, source=source)
    distributed.barrier()


def shards_of(path: Path) -> list[Path]:
    """The shards that `save_tokens` left for a features file, also where it was cut short."""
    name = re.compile(rf"{re.escape(path.stem)}\.tokens-\d+-\d{{5,}}\.npy")
    return [file for file in path.parent.iterdir() if name.fullmatch(file.name)]


Places = dict[int, tuple[str, int]]
"""Index of a video in its split -> file and row."""


class _Shards:
    """One rank's files."""

    def __init__(self, path: Path, *, rank: int, limit: int) -> None:
        self.path = path
        self.rank = rank
        self.limit = limit
        self.names: list[str] = []
        self.places: Places = {}
        self._waiting: list[Tensor] = []
        self._bytes = 0

    def add(self, indices: Tensor, tokens: Tensor) -> None:
        """Tokens (B, V, L, D) of these videos."""
        name = f"{self.path.stem}.tokens-{self.rank}-{len(self.names):05}.npy"
        first = sum(map(len, self._waiting))
        self.places |= {index: (name, first + i) for i, index in enumerate(indices.tolist())}
        self._waiting.append(tokens)
        self._bytes += tokens.numel() * tokens.element_size()
        if self._bytes >= self.limit:
            self.close()

    def close(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        name = f"{self.path.stem}.tokens-{self.rank}-{len(self.names):05}.npy"
        shard = self.path.parent / name
        with writing(shard):
            np.save(shard, torch.cat(self._waiting).numpy(), allow_pickle=False)
        self.names.append(name)
        self._waiting, self._bytes = [], 0


def _write_index(
    path: Path,
    model: Recognizer,
    loader: EvaluationLoader,
    classes: Mapping[str, HeadClasses],
    parts: list[tuple[list[str], Places]],
    reasons: Mapping[int, str],
    *,
    source: str,
) -> None:
    names = [name for shard_names, _ in parts for name in shard_names]
    places = {index: place for _, found in parts for index, place in found.items()}
    kept = sorted(places)
    records = [loader.views.records[index] for index in kept]
    about = Features(
        ids=tuple(record.id for record in records),
        features=torch.zeros(len(records), 0),  # they are in the shards
        labels={
            head: torch.tensor([record.labels.get(head, UNLABELLED) for record in records])
            for head in model.num_classes
        },
        source=source,
        skipped=tuple((loader.views.records[i].id, why) for i, why in reasons.items()),
        recordings=tuple(record.recording for record in records),
        metadata=metadata_of(records),
    )
    where = {
        "shards": np.array(names, dtype=np.str_),
        "shard_of": np.array([names.index(places[index][0]) for index in kept]),
        "place_of": np.array([places[index][1] for index in kept]),
    }
    save_arrays(path, where | describing_arrays(about, classes), compress=False)
