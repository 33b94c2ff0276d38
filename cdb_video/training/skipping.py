"""The clips that a run leaves out, as they do not decode (`data.on_error=skip`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from cdb_video import distributed
from cdb_video.clips.batch import Appearance, Batch, Skipped
from cdb_video.clips.watchdog import RAISE, DecodePolicy
from cdb_video.datasets.annotations import UNLABELLED, VideoRecord
from cdb_video.training.run_log import RunLog


class SkippedClip(NamedTuple):
    """A clip that was left out of a step."""

    id: str
    reason: str
    step: int


class SkippedClips:
    """Every distinct clip that the run has left out, of training and validation; one a rank.

    Args:
        paths: id -> file of every clip of the run, for the log.
        policy: says how many there may be.

    """

    def __init__(
        self, paths: Mapping[str, Path] | None = None, *, policy: DecodePolicy = RAISE
    ) -> None:
        self.paths = paths or {}
        self.policy = policy
        self.reasons: dict[str, str] = {}
        """Id -> reason; the same on every rank, as all of them `add` the same."""
        self._noted: list[SkippedClip] = []

    @property
    def num_noted(self) -> int:
        """Clips that this rank met since the last `gather`."""
        return len(self._noted)

    def note(
        self, skipped: Iterable[Skipped], records: Sequence[VideoRecord], *, step: int
    ) -> None:
        """Remember what was left out of this rank's part of a step, until the next `gather`."""
        for one in skipped:
            name = records[one.index].id
            if name not in self.reasons:
                self._noted.append(SkippedClip(name, one.message, step))

    def gather(self) -> list[SkippedClip]:
        """What every rank noted, by step; every rank must call it."""
        noted, self._noted = self._noted, []
        return sorted(
            (clip for part in distributed.gather_objects(noted) for clip in part),
            key=lambda clip: (clip.step, clip.id),
        )

    def add(
        self,
        clips: Iterable[SkippedClip],
        *,
        epoch: float,
        log: RunLog,
        split: Literal["train", "val"] = "train",
    ) -> None:
        """Count clips of a split, and log each that is new.

        Raises:
            DecodeError: they are more than may be skipped.

        """
        for clip in clips:
            if clip.id in self.reasons:
                continue
            self.reasons[clip.id] = clip.reason
            log.write(
                "skip",
                epoch=epoch,
                step=clip.step,
                split=split,
                id=clip.id,
                path=str(self.paths.get(clip.id, "")),
                reason=clip.reason,
            )
        self.policy.check(self.reasons)


def blank_batch(batch: Batch, heads: Sequence[str]) -> Batch:
    """A clip of zeros without labels, for a rank whose every clip is left out.

    It adds nothing to the loss; the forward and backward are for the other ranks, which wait for
    this one's gradients. They must not touch batch norm's statistics: evaluate the network.
    """
    return Batch(
        clips=torch.zeros(1, *batch.clips.shape[1:], dtype=batch.clips.dtype),
        labels={head: torch.tensor([UNLABELLED]) for head in heads},
        indices=torch.tensor([-1]),
        appearance=Appearance(flip=torch.tensor([False]), jitter=torch.ones(1, 3)),
    )
