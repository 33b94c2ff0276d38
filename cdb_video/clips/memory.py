"""Clips decoded once and kept in memory, for data that fits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor
from torch.utils.data import Dataset

from cdb_video.clips.base import BaseDecoder, Image, Window, cut
from cdb_video.clips.dataset import ClipSampler, RecordOpener, open_record
from cdb_video.clips.guarded_loader import GuardedLoader
from cdb_video.clips.watchdog import RAISE, DecodePolicy
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.distributed import local_world_size
from cdb_video.errors import ConfigError, DecodeError

BLOCK_BYTES = 2**28
LARGEST_SHARE = 0.8
"""Of the machine's memory: more than this is refused before the machine starts to swap."""


def most_bytes() -> float:
    """What a rank may keep: its part of the share of this machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return LARGEST_SHARE * machine / local_world_size()


class MemoryVideo(BaseDecoder):
    """The frames of one segment, in memory; `times` and indices are those of the whole video."""

    def __init__(
        self, path: Path, *, times: Tensor, fps: float, kept: Tensor, pixels: Tensor
    ) -> None:
        height, width = pixels.shape[1:3]
        super().__init__(path, times=times, fps=fps, height=height, width=width)
        self.kept = kept
        """(L,) increasing indices of the frames that are here."""
        self.pixels = pixels
        """(L, H, W, C) uint8."""

    def _decode(self, wanted: list[int], window: Window) -> list[Image]:
        rows = torch.searchsorted(self.kept, torch.tensor(wanted))
        if not torch.equal(self.kept[rows.clamp(max=len(self.kept) - 1)], torch.tensor(wanted)):
            raise DecodeError(f"{self.path}: a frame outside the segment that was kept in memory")
        return [cut(self.pixels[row].numpy(), window) for row in rows.tolist()]

    def close(self) -> None:
        """Nothing is open."""


class ClipMemory:
    """Segments with their shorter side scaled to `short_side`, and no larger than they were.

    A crop of kept frames is scaled twice, and so differs a little from one cut out of the file;
    records that were not loaded are decoded and scaled when they are opened, to the same frames.

    Args:
        sampler: which frames a segment offers; all of them are kept.
        short_side: in pixels.
        opener: opens a record's video, to be decoded.
        policy: what happens to clips that do not decode. One that is skipped is remembered, and
            opening it is the error that it was.

    """

    def __init__(
        self,
        *,
        sampler: ClipSampler,
        short_side: int,
        opener: RecordOpener = open_record,
        policy: DecodePolicy = RAISE,
    ) -> None:
        self.sampler = sampler
        self.short_side = short_side
        self.opener = opener
        self.policy = policy
        self.num_bytes = 0
        self._videos: dict[str, MemoryVideo] = {}
        self._skipped: dict[str, str] = {}
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def __len__(self) -> int:
        return len(self._videos)

    def open(self, record: VideoRecord) -> MemoryVideo:
        """The record's segment; closing it keeps it.

        Raises:
            DecodeError: naming the file.

        """
        if _key(record) in self._skipped:
            raise DecodeError(self._skipped[_key(record)])
        kept = self._videos.get(_key(record))
        return self.decode(record) if kept is None else kept

    def decode(self, record: VideoRecord) -> MemoryVideo:
        """The record's segment, decoded and scaled now."""
        with self.opener(record) as video:
            kept = self.sampler.segment(video, record).unique()
            # In parts: a long segment in full size would be gigabytes.
            parts = [self._scaled(video.frames(part)) for part in kept.split(64)]
            return MemoryVideo(
                record.path, times=video.times, fps=video.fps, kept=kept, pixels=torch.cat(parts)
            )

    def load(
        self,
        records: Sequence[VideoRecord],
        *,
        num_workers: int = 0,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Decode and keep what is not kept yet; `progress` is called after each.

        Raises:
            DecodeError: naming the file that cannot be decoded, or too many were skipped.
            ConfigError: more than the machine can hold.

        """
        known = self._videos.keys() | self._skipped.keys()
        missing = [record for record in records if _key(record) not in known]
        loader = GuardedLoader(
            _Decoding(self, missing),
            missing,
            collate=list,
            policy=self.policy,
            num_workers=min(num_workers, len(missing)),
        )
        plan = [[i] for i in range(len(missing))]
        for record, (videos, skipped) in zip(missing, loader.batches(plan), strict=True):
            for bad in skipped:
                self._skipped[_key(record)] = bad.message
            for video in videos:
                self._videos[_key(record)] = self._keep(video)
            progress()

    def _scaled(self, frames: Tensor) -> Tensor:
        """(T, C, H, W) -> (T, H, W, C), as decoders give frames."""
        if min(frames.shape[-2:]) > self.short_side:
            frames = TF.resize(frames, [self.short_side], antialias=True)
        return frames.permute(0, 2, 3, 1).contiguous()

    def _keep(self, video: MemoryVideo) -> MemoryVideo:
        # In blocks, which a loader's workers share: a tensor a video would need a file each.
        size = video.pixels.numel()
        self.num_bytes += size
        limit = most_bytes()
        if self.num_bytes > limit:
            raise ConfigError(
                f"data.in_memory=true: the first {len(self) + 1} clips take more than a rank's "
                f"{limit / 1e9:.0f} GB; use data.in_memory=false or a smaller clip.short_side"
            )
        if len(self._block) - self._used < size:
            self._block = torch.empty(max(size, BLOCK_BYTES), dtype=torch.uint8)
            self._used = 0
        kept = self._block[self._used : self._used + size].view(video.pixels.shape)
        kept.copy_(video.pixels)
        self._used += size
        # Clones: what a worker sent keeps an open file for as long as it is held.
        return MemoryVideo(
            video.path,
            times=video.times.clone(),
            fps=video.fps,
            kept=video.kept.clone(),
            pixels=kept,
        )


class _Decoding(Dataset[MemoryVideo]):
    """Decodes in a loader's workers."""

    def __init__(self, memory: ClipMemory, records: Sequence[VideoRecord]) -> None:
        self.memory = memory
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> MemoryVideo:
        return self.memory.decode(self.records[index])


def _key(record: VideoRecord) -> str:
    return f"{record.path}@{record.start_s}-{record.stop_s}"
