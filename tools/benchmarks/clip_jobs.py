"""What every loader is asked for: the same frames of the same files, and the same windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cdb_video.clips.base import Window
from cdb_video.clips.dataset import ClipSampler, sample_generator
from cdb_video.clips.decoders import open_video
from cdb_video.clips.transforms import Augmentation

SEED = 0
SAMPLER = ClipSampler(num_frames=32, stride=2)


class Job(NamedTuple):
    """One clip of one file."""

    number: int
    path: Path
    indices: Tensor
    """(T,)"""
    size: tuple[int, int]
    """(height, width) of the file's frames."""
    cut: Window
    """A square of the crop's size, anywhere in the frame: nothing is scaled."""
    window: Window
    """What training's default augmentation draws, to be scaled to the crop's size."""


def make_jobs(paths: Sequence[Path], augmentation: Augmentation) -> list[Job]:
    """A job a file, with the draws that `TrainingClips` makes in epoch 0."""
    jobs = []
    for number, path in enumerate(paths):
        with open_video(path) as video:
            length, height, width = video.num_frames, video.height, video.width
        generator = sample_generator(SEED, 0, number)
        indices = SAMPLER.random(length, generator=generator)
        window = augmentation.window(height, width, generator=generator)
        side = augmentation.crop_size
        # By share, so that a file prepared in another size shows the same place.
        down, right = torch.rand(2, generator=generator).tolist()
        cut = Window(round(down * (height - side)), round(right * (width - side)), side, side)
        jobs.append(Job(number, path, indices, (height, width), cut, window))
    return jobs
