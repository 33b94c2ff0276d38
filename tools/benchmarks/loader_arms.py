"""Loaders that are timed, ours first: each makes what a job asks for, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from benchmarks import other_loaders
from benchmarks.clip_jobs import SAMPLER, SEED, Job
from cdb_video.clips import pyav
from cdb_video.clips.base import VideoDecoder
from cdb_video.clips.dataset import Pixels, TrainingClips, open_record
from cdb_video.clips.decoders import open_video
from cdb_video.clips.index_folder import IndexFolder
from cdb_video.clips.transforms import Augmentation
from cdb_video.datasets.annotations import VideoRecord

Load = Callable[[Job], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Arm:
    """A loader and its jobs."""

    name: str
    makes: str
    """For the table."""
    load: Load
    jobs: Sequence[Job]
    hands_over: bool = True
    """Send clips to the main process. Frames in full size stay: no loader sends 29 MB a clip."""
    library: str | None = None
    """A module that need not be installed."""


def all_arms(
    jobs: Sequence[Job],
    prepared: Sequence[Job],
    *,
    augmentation: Augmentation,
    index_folder: IndexFolder,
) -> list[Arm]:
    """Every arm; all on the same jobs, but for `ours_prepared`."""
    opener = partial(open_indexed, index_folder=index_folder)
    side = augmentation.crop_size
    clips = partial(training_clips, jobs, augmentation=augmentation, index_folder=index_folder)
    return [
        Arm("ours_full", "RGB, full size", partial(load_full, opener), jobs, hands_over=False),
        Arm("ours_crop", "RGB crop", partial(load_crop, opener), jobs),
        Arm("ours_planes", "YUV crop", partial(load_planes, opener), jobs),
        Arm("ours_loader", "RGB, scaled", clips(pixels="rgb"), jobs),
        Arm("ours_loader_yuv", "YUV, scaled", clips(pixels="yuv"), jobs),
        Arm("ours_prepared", "RGB crop, 256p file", partial(load_crop, opener), prepared),
        *other_loaders_arms(jobs, side),
        Arm("floor", "nothing: decodes", other_loaders.decode_floor, jobs, hands_over=False),
    ]


def other_loaders_arms(jobs: Sequence[Job], side: int) -> list[Arm]:
    """Other libraries' loaders, which need not be installed."""
    other = other_loaders
    pytorchvideo = partial(other.pytorchvideo_clip, crop_size=side)
    scaled = partial(other.decord_scaled, crop_size=side)
    return [
        Arm("decord", "RGB, full size", other.decord_full, jobs, False, "decord"),
        Arm("decord_crop", "RGB crop", other.decord_crop, jobs, True, "decord"),
        Arm("decord_scaled", "RGB, scaled", scaled, jobs, True, "decord"),
        Arm("pytorchvideo", "fp32, scaled", pytorchvideo, jobs, True, "pytorchvideo"),
        Arm("torchcodec", "RGB crop", other.torchcodec_crop, jobs, True, "torchcodec.decoders"),
    ]


def open_indexed(job: Job, *, index_folder: IndexFolder) -> VideoDecoder:
    """The file, its index read from the disk, as in training after the first epoch."""
    _forget_indices()
    return open_video(job.path, index_folder=index_folder)


def _forget_indices() -> None:
    # EGTEA has 8,299 clips: by the time one comes up again, a process has let go of its index.
    pyav._INDICES.clear()


def load_full(opener: Callable[[Job], VideoDecoder], job: Job) -> tuple[Tensor]:
    """(T, H, W, C): whole frames, in the order of memory that decoders make."""
    with opener(job) as video:
        return (video.frames(job.indices).permute(0, 2, 3, 1),)


def load_crop(opener: Callable[[Job], VideoDecoder], job: Job) -> tuple[Tensor]:
    """(T, crop, crop, C)."""
    with opener(job) as video:
        return (video.frames(job.indices, window=job.cut).permute(0, 2, 3, 1),)


def load_planes(opener: Callable[[Job], VideoDecoder], job: Job) -> tuple[Tensor, ...]:
    """Luma, chroma of even edges, and the matrix; RGB is made of them on the device."""
    # The widening of odd edges would make chroma of different sizes, which do not stack.
    window = job.cut._replace(top=job.cut.top // 2 * 2, left=job.cut.left // 2 * 2)
    with opener(job) as video:
        return tuple(video.planes(job.indices, window=window))


def training_clips(
    jobs: Sequence[Job], *, augmentation: Augmentation, index_folder: IndexFolder, pixels: Pixels
) -> Load:
    """The project's own dataset, with its default augmentation."""
    records = [
        VideoRecord(job.path.stem, job.path, video_id=job.path.stem, recording="", labels={})
        for job in jobs
    ]
    clips = TrainingClips(
        records,
        sampler=SAMPLER,
        augmentation=augmentation,
        seed=SEED,
        opener=partial(open_record, index_folder=index_folder),
        pixels=pixels,
    )

    def load(job: Job) -> tuple[Tensor]:
        _forget_indices()
        return (clips[0, job.number].clips,)

    return load
