"""A record becomes a sample: open, choose frames, decode them once, cut the views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cdb_video.clips.base import VideoDecoder, Window
from cdb_video.clips.batch import Appearance, Sample
from cdb_video.clips.decoders import open_video
from cdb_video.clips.index_folder import IndexFolder
from cdb_video.clips.sampling import (
    grid_indices,
    random_clip,
    segment_clip,
    segment_clips,
    uniform_clips,
)
from cdb_video.clips.transforms import (
    Augmentation,
    EvaluationCrops,
    bounding_window,
    crop,
    crop_planes,
)
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import DecodeError

Decoder = Literal["pyav", "decord", "torchcodec", "frames"]
Pixels = Literal["rgb", "yuv"]
RecordOpener = Callable[[VideoRecord], VideoDecoder]


@dataclass(frozen=True)
class ClipSampler:
    """Which frames of a segment make its clips."""

    num_frames: int
    stride: int
    fps: float | None = None
    """Grid in frames a second that `stride` counts on; None: the video's own frames."""
    sampling: Literal["dense", "segments"] = "dense"

    def segment(self, video: VideoDecoder, record: VideoRecord) -> Tensor:
        """(L,) indices of the frames that the record's segment offers, in order.

        Raises:
            DecodeError: the segment starts behind the last frame, or ends before its first.

        """
        start_s = record.start_s or 0.0
        first = video.index_at(start_s)
        last = video.num_frames if record.stop_s is None else video.index_at(record.stop_s)
        if first >= last:
            raise DecodeError(
                f"{record.path}: segment {record.id} from {start_s:g} s to "
                f"{'the end' if record.stop_s is None else f'{record.stop_s:g} s'} has no frame; "
                f"the last frame is shown at {float(video.times[-1]):.3f} s"
            )
        if self.fps is None:
            return torch.arange(first, last)
        # The last frame is shown for one period.
        end_s = float(video.times[last - 1]) + 1 / video.fps
        stop_s = end_s if record.stop_s is None else min(record.stop_s, end_s)
        return grid_indices(video.times, start_s=start_s, stop_s=stop_s, fps=self.fps)

    def random(self, length: int, *, generator: torch.Generator) -> Tensor:
        """(T,) positions in a segment of this length."""
        if self.sampling == "segments":
            return segment_clip(length, num_frames=self.num_frames, generator=generator)
        return random_clip(
            length, num_frames=self.num_frames, stride=self.stride, generator=generator
        )

    def uniform(self, length: int, *, num_clips: int) -> Tensor:
        """(K, T) positions in a segment of this length, evenly spread over it."""
        if self.sampling == "segments":
            return segment_clips(length, num_clips=num_clips, num_frames=self.num_frames)
        return uniform_clips(
            length, num_clips=num_clips, num_frames=self.num_frames, stride=self.stride
        )


def open_record(
    record: VideoRecord,
    *,
    decoder: Decoder = "pyav",
    index_folder: IndexFolder | None = None,
    untrusted: bool = False,
    deadline_s: float | None = None,
) -> VideoDecoder:
    """The record's video, by a decoder; a folder of frames, which has its fps, by its own.

    `untrusted` and `deadline_s` as in `open_video`.
    """
    return open_video(
        record.path,
        decoder=decoder if record.fps is None else "frames",
        fps=record.fps,
        index_folder=index_folder,
        untrusted=untrusted,
        deadline_s=deadline_s,
    )


def cut_windows(
    video: VideoDecoder,
    indices: Tensor,
    windows: Sequence[Window],
    *,
    crop_size: int,
    pixels: Pixels = "rgb",
) -> tuple[list[Tensor], Tensor | None]:
    """Each window of the frames (T,), decoded once, scaled to (T, 3, crop_size, crop_size).

    With pixels `yuv`, the planes, and the matrix (3, 4) that makes them RGB.
    """
    around = bounding_window(windows)
    if pixels == "rgb":
        frames = video.frames(indices, window=around)
        return [crop(frames, w.within(around), crop_size=crop_size) for w in windows], None
    planes = video.planes(indices, window=around)
    clips = [crop_planes(planes, w.within(around), crop_size=crop_size) for w in windows]
    return clips, planes.to_rgb


class TrainingClips(Dataset[Sample]):
    """One random clip a video; a function of the seed and the key and of nothing else."""

    def __init__(
        self,
        records: Sequence[VideoRecord],
        *,
        sampler: ClipSampler,
        augmentation: Augmentation,
        seed: int,
        opener: RecordOpener = open_record,
        pixels: Pixels = "rgb",
    ) -> None:
        self.records = records
        self.sampler = sampler
        self.augmentation = augmentation
        self.seed = seed
        self.opener = opener
        self.pixels: Pixels = pixels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, ...]) -> Sample:
        """The sample of (epoch, index), with one view; its n-th repeat is (epoch, index, n).

        Raises:
            DecodeError: naming the file.

        """
        index = key[1]
        record = self.records[index]
        generator = sample_generator(self.seed, *key)
        with self.opener(record) as video:
            segment = self.sampler.segment(video, record)
            positions = self.sampler.random(len(segment), generator=generator)
            window = self.augmentation.window(video.height, video.width, generator=generator)
            [clip], to_rgb = cut_windows(
                video,
                segment[positions],
                [window],
                crop_size=self.augmentation.crop_size,
                pixels=self.pixels,
            )
        clip = self.augmentation.pixels(clip, generator=generator)
        return Sample(
            clips=clip.transpose(0, 1)[None],
            labels=record.labels,
            index=index,
            appearance=self.augmentation.appearance(record.labels, generator=generator),
            to_rgb=to_rgb,
        )


class EvaluationViews(Dataset[Sample]):
    """Every view of a video, from one decode; nothing is random."""

    def __init__(
        self,
        records: Sequence[VideoRecord],
        *,
        sampler: ClipSampler,
        crops: EvaluationCrops,
        num_clips: int = 1,
        opener: RecordOpener = open_record,
        pixels: Pixels = "rgb",
    ) -> None:
        self.records = records
        self.sampler = sampler
        self.crops = crops
        self.num_clips = num_clips
        self.opener = opener
        self.pixels: Pixels = pixels

    @property
    def num_views(self) -> int:
        """V: clips times crops."""
        return self.num_clips * self.crops.num_crops

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """The sample of a record with `num_views` views: clip 0 under each crop, clip 1, ...

        Raises:
            DecodeError: naming the file.

        """
        record = self.records[index]
        with self.opener(record) as video:
            segment = self.sampler.segment(video, record)
            positions = self.sampler.uniform(len(segment), num_clips=self.num_clips)
            # Clips of a short video share frames: each is decoded and scaled once.
            wanted, where = segment[positions].unique(return_inverse=True)
            crops, to_rgb = cut_windows(
                video,
                wanted,
                self.crops.windows(video.height, video.width),
                crop_size=self.crops.crop_size,
                pixels=self.pixels,
            )
        views = [cut[clip].transpose(0, 1) for clip in where for cut in crops]
        return Sample(
            clips=torch.stack(views),
            labels=record.labels,
            index=index,
            appearance=Appearance.plain(),
            to_rgb=to_rgb,
        )


def sample_generator(*key: int) -> torch.Generator:
    """A generator that depends on the key, such as (seed, epoch, index), and on nothing else."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    # manual_seed takes a signed 64-bit number.
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
