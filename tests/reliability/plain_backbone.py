"""A backbone without batch norm, and a note of the clips of every step; see `other_ranks`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from cdb_video.clips.batch import Batch
from cdb_video.clips.loader import TrainingLoader
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.base import Normalization


class Plain(nn.Module):
    """Two convolutions; nothing of it depends on the other clips of a batch."""

    num_features = 8
    normalization = Normalization((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))

    def __init__(self, *, num_frames: int, crop_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv3d(8, 8, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, clips: Tensor) -> Tensor:
        features: Tensor = self.layers(clips).mean((2, 3, 4))
        return features


BACKBONES["plain"] = Plain
_epoch = TrainingLoader.epoch


def noting(self: TrainingLoader, epoch: int, *, first_step: int = 0) -> Iterator[Batch]:
    """The loader's batches, each written down as it is taken."""
    path = Path(os.environ["NOTES"]) / f"rank{os.environ['RANK']}.jsonl"
    for step, batch in enumerate(_epoch(self, epoch, first_step=first_step), first_step):
        with path.open("a") as file:
            file.write(json.dumps([epoch, step, batch.indices.tolist()]) + "\n")
        yield batch


TrainingLoader.epoch = noting  # type: ignore[method-assign]
