"""Batches of one split, on this rank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from cdb_video.clips.batch import Appearance, Batch, Sample, Skipped, collate
from cdb_video.clips.dataset import EvaluationViews, TrainingClips
from cdb_video.clips.features import FeatureClips
from cdb_video.clips.guarded_loader import GuardedLoader, Plan
from cdb_video.clips.image_memory import ImageClips
from cdb_video.clips.order import EvaluationOrder, TrainingOrder
from cdb_video.clips.watchdog import RAISE, DecodePolicy
from cdb_video.distributed import ONE_PROCESS, Ranks

__all__ = ["EvaluationLoader", "EvaluationOrder", "TrainingLoader", "TrainingOrder"]


class _BatchSource(Protocol):
    """What gives the batches of a plan: workers that decode, or features or images in memory."""

    def batches(self, plan: Plan) -> Iterator[tuple[Batch, tuple[Skipped, ...]]]: ...


class TrainingLoader:
    """Batches of random clips, or of saved features, epoch by epoch."""

    _loader: _BatchSource

    def __init__(
        self,
        clips: TrainingClips | FeatureClips | ImageClips,
        order: TrainingOrder,
        *,
        num_workers: int,
        pin_memory: bool,
        policy: DecodePolicy = RAISE,
    ) -> None:
        self.clips = clips
        self.order = order
        self._pins = pin_memory and not isinstance(clips, TrainingClips)
        if not isinstance(clips, TrainingClips):
            self._loader = clips
            return
        self._loader = GuardedLoader(
            clips,
            clips.records,
            collate=_Collate((1, *_shape_of(clips))),
            policy=policy,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )

    def blank_clips(self, size: int) -> torch.Tensor:
        """(size, C, T, H, W) zeros, of the shape and type of the loader's clips."""
        if not isinstance(self.clips, TrainingClips):
            return self.clips.blank(size)
        return torch.zeros(size, *_shape_of(self.clips), dtype=torch.uint8)

    @property
    def fingerprint(self) -> str:
        """Changes with the clips, their order and their labels, and not with where they lie."""
        lines = [f"{record.id} {sorted(record.labels.items())}" for record in self.clips.records]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return self.order.steps_per_epoch

    def epoch(
        self, epoch: int, *, first_step: int = 0, num_steps: int | None = None
    ) -> Iterator[Batch]:
        """The batches of an epoch from a step on; of length 0 where every clip is left out.

        Args:
            epoch: counted from 0.
            first_step: in the epoch, counted from 0.
            num_steps: at most; None: to the end of the epoch.

        Raises:
            DecodeError: naming the file that cannot be decoded, or too many were left out.

        """
        self.order.set_position(epoch, first_step)
        yield from _batches(self._loader, list(self.order)[:num_steps], pin=self._pins)


def _shape_of(clips: TrainingClips) -> tuple[int, int, int, int]:
    side = clips.augmentation.crop_size
    return 3, clips.sampler.num_frames, side, side


class EvaluationLoader:
    """Batches of all views of this rank's videos.

    Args:
        views: the split.
        clips_per_batch: clips a batch at most, but always a whole video.
        ranks: which process this is.
        num_workers: decoding processes.
        pin_memory: whether batches are to go to a GPU.
        policy: what happens to videos that do not decode.

    """

    _loader: _BatchSource

    def __init__(
        self,
        views: EvaluationViews | FeatureClips | ImageClips,
        *,
        clips_per_batch: int,
        ranks: Ranks = ONE_PROCESS,
        num_workers: int = 0,
        pin_memory: bool = False,
        policy: DecodePolicy = RAISE,
    ) -> None:
        self.views = views
        self.policy = policy
        self._pins = pin_memory and not isinstance(views, EvaluationViews)
        batch_size = max(1, clips_per_batch // views.num_views)
        self.order = EvaluationOrder(len(views), batch_size=batch_size, ranks=ranks)
        if not isinstance(views, EvaluationViews):
            self._loader = views
            return
        side = views.crops.crop_size
        self._loader = GuardedLoader(
            views,
            views.records,
            collate=_Collate((views.num_views, 3, views.sampler.num_frames, side, side)),
            policy=policy,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        yield from _batches(self._loader, list(self.order), pin=self._pins)


def _batches(loader: _BatchSource, plan: Plan, *, pin: bool) -> Iterator[Batch]:
    """The source's; with `pin` in page-locked memory, where it does not do that by itself."""
    for batch, skipped in loader.batches(plan):
        yield replace(batch.pin_memory() if pin else batch, skipped=skipped)


@dataclass(frozen=True)
class _Collate:
    """`collate`, and of nothing a batch of nothing."""

    shape: tuple[int, ...]
    """(V, C, T, H, W)."""

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        if samples:
            return collate(samples)
        return Batch(
            clips=torch.zeros(0, *self.shape, dtype=torch.uint8),
            labels={},
            indices=torch.zeros(0, dtype=torch.int64),
            appearance=Appearance(flip=torch.zeros(0, dtype=torch.bool), jitter=torch.ones(0, 3)),
        )
