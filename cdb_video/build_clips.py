"""The clips side of `build`: from the records of a split to batches on this rank."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from cdb_video.clips.dataset import (
    ClipSampler,
    EvaluationViews,
    RecordOpener,
    TrainingClips,
    open_record,
)
from cdb_video.clips.features import FeatureClips
from cdb_video.clips.image_memory import ImageClips, ImageMemory
from cdb_video.clips.index_folder import IndexFolder
from cdb_video.clips.loader import EvaluationLoader, TrainingLoader, TrainingOrder
from cdb_video.clips.memory import ClipMemory
from cdb_video.clips.transforms import Augmentation, EvaluationCrops
from cdb_video.clips.untrusted import refuse_old_ffmpeg
from cdb_video.clips.watchdog import DecodePolicy
from cdb_video.config import Config
from cdb_video.datasets.annotations import Split, Vocabulary
from cdb_video.datasets.demo_plan import Counts
from cdb_video.distributed import Ranks
from cdb_video.errors import ConfigError

DEMO_ROOTS: dict[str, Counts] = {
    "demo": "mixed",
    "demo-rare-hard": "rare_hard",
    "demo-rare-easy": "rare_easy",
}
"""`data.root` -> which of the demo's classes are the rare ones."""


def cache_dir(config: Config) -> Path:
    """Where downloads and rendered data are kept."""
    return Path(config.data.cache_dir).expanduser()


def choose_device(config: Config, ranks: Ranks) -> torch.device:
    """The rank's GPU, or the CPU.

    Raises:
        ConfigError: train.device=cuda without a GPU for this rank.

    """
    wanted = config.train.device
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if ranks.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"train.device={wanted}: there are {torch.cuda.device_count()} GPUs and this is local "
            f"rank {ranks.local_rank}; use train.device=cpu or fewer processes"
        )
    return torch.device("cuda", ranks.local_rank)


def clip_sampler(config: Config) -> ClipSampler:
    """Which frames make a clip."""
    clip = config.clip
    return ClipSampler(
        num_frames=clip.num_frames, stride=clip.stride, fps=clip.fps, sampling=clip.sampling
    )


def decode_policy(config: Config) -> DecodePolicy:
    """What happens to clips that do not decode."""
    data = config.data
    return DecodePolicy(
        on_error=data.on_error, max_skipped=data.max_skipped, timeout_s=data.decode_timeout_s
    )


def index_folder(config: Config) -> IndexFolder:
    """Where the packet indices of the data's videos are kept."""
    root = str(config.data.root)
    folder = cache_dir(config)
    return IndexFolder(
        folder / "packet_index",
        root=folder / root if root in DEMO_ROOTS else Path(root).expanduser(),
    )


Memory = ClipMemory | ImageMemory
"""What data.in_memory keeps decoded clips in."""


def clip_memory(config: Config, *, in_child: bool = False) -> Memory | None:
    """An empty memory for clips, with data.in_memory."""
    if not config.data.in_memory:
        return None
    if config.data.format == "images":
        return ImageMemory(evaluation_crops(config), opener=file_opener(config, in_child=in_child))
    return ClipMemory(
        sampler=clip_sampler(config),
        short_side=config.clip.short_side,
        opener=file_opener(config, in_child=in_child),
        policy=decode_policy(config),
    )


def image_memory(config: Config, memory: Memory | None) -> ImageMemory | None:
    """With images in memory, where they are kept: `memory`, or an empty one."""
    if config.data.format != "images" or not config.data.in_memory:
        return None
    kept = memory if memory is not None else clip_memory(config)
    assert isinstance(kept, ImageMemory)  # noqa: S101 - by the format
    return kept


def record_opener(
    config: Config, memory: Memory | None = None, *, in_child: bool = False
) -> RecordOpener:
    """How the loaders open a record: in `memory`, where there is one for clips."""
    if memory is None:  # and not `or`: an empty memory has length 0
        memory = clip_memory(config, in_child=in_child)
    if isinstance(memory, ClipMemory):
        return memory.open
    return file_opener(config, in_child=in_child)


def file_opener(config: Config, *, in_child: bool = False) -> RecordOpener:
    """How a record's file is opened.

    Args:
        config: its `data` section.
        in_child: in a process of its own, as with data.untrusted: where no loader's process is, the
            only way to hold data.decode_timeout_s whatever the library does.

    Raises:
        ConfigError: data.untrusted with an FFmpeg that has a known hole.

    """
    data = config.data
    if data.untrusted:
        refuse_old_ffmpeg()
    return partial(
        open_record,
        decoder=data.decoder,
        index_folder=index_folder(config),
        untrusted=data.untrusted,
        deadline_s=data.decode_timeout_s if data.untrusted or in_child else None,
    )


def evaluation_crops(config: Config) -> EvaluationCrops:
    """The windows of a frame's views."""
    return EvaluationCrops(
        crop_size=config.clip.crop_size,
        short_side=config.clip.short_side,
        num_crops=config.views.num_crops,
    )


def build_augmentation(config: Config, vocabularies: Mapping[str, Vocabulary]) -> Augmentation:
    """How training clips vary.

    Raises:
        ConfigError: `augment.no_flip_classes` names an unknown class.

    """
    augment = config.augment
    no_flip: dict[str, set[int]] = {}
    for head, names in augment.no_flip_classes.items():
        for name in names:
            if name not in vocabularies[head]:
                close = difflib.get_close_matches(name, vocabularies[head].names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"augment.no_flip_classes: {name!r} is no {head} class{hint}")
            no_flip.setdefault(head, set()).add(vocabularies[head].index(name))
    return Augmentation(
        crop_size=config.clip.crop_size,
        short_side=config.clip.short_side,
        crop=augment.crop,
        padding=augment.padding,
        area=augment.area,
        aspect=augment.aspect,
        scale=augment.scale,
        flip=augment.flip,
        no_flip_labels=no_flip,
        color_jitter=augment.color_jitter,
        rand_augment=augment.rand_augment,
        erase=augment.erase,
    )


def build_training_loader(
    config: Config, split: Split, *, ranks: Ranks, memory: Memory | None = None
) -> TrainingLoader:
    """This rank's part of every training step."""
    clips = build_training_clips(config, split, memory)
    order = TrainingOrder(
        len(split),
        global_batch_size=config.train.global_batch_size,
        seed=config.run.seed,
        ranks=ranks,
    )
    return TrainingLoader(
        clips,
        order,
        num_workers=config.data.num_workers,
        pin_memory=choose_device(config, ranks).type == "cuda",
        policy=decode_policy(config),
    )


def build_training_clips(
    config: Config, split: Split, memory: Memory | None = None
) -> TrainingClips | FeatureClips | ImageClips:
    """A random clip of every video, a random view of its saved features, or an image changed."""
    if config.data.format == "features":
        return FeatureClips(split.records, seed=config.run.seed)
    if (images := image_memory(config, memory)) is not None:
        return ImageClips(
            split.records,
            images,
            augmentation=build_augmentation(config, split.vocabularies),
            seed=config.run.seed,
        )
    return TrainingClips(
        split.records,
        sampler=clip_sampler(config),
        augmentation=build_augmentation(config, split.vocabularies),
        seed=config.run.seed,
        opener=record_opener(config, memory),
        pixels=config.data.pixels,
    )


def build_evaluation_loader(
    config: Config, split: Split, *, ranks: Ranks, memory: Memory | None = None
) -> EvaluationLoader:
    """This rank's part of a split, every view of it."""
    views: EvaluationViews | FeatureClips | ImageClips
    if config.data.format == "features":
        views = FeatureClips(split.records)
    elif (images := image_memory(config, memory)) is not None:
        views = ImageClips(split.records, images)
    else:
        views = EvaluationViews(
            split.records,
            sampler=clip_sampler(config),
            crops=evaluation_crops(config),
            num_clips=config.views.num_clips,
            opener=record_opener(config, memory),
            pixels=config.data.pixels,
        )
    return EvaluationLoader(
        views,
        clips_per_batch=config.train.micro_batch_size,
        ranks=ranks,
        num_workers=config.data.num_workers,
        pin_memory=choose_device(config, ranks).type == "cuda",
        policy=decode_policy(config),
    )
