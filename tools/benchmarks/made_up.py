"""Training without files: labelled records, a batch of noise, the trainer of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cdb_video.build import build_trainer
from cdb_video.build_data import Data
from cdb_video.clips.batch import Appearance, Batch
from cdb_video.config_file import parse_config
from cdb_video.counts import ClassCounts
from cdb_video.datasets.annotations import Split, VideoRecord, Vocabulary
from cdb_video.distributed import ONE_PROCESS
from cdb_video.losses import MultiHeadLoss
from cdb_video.training.trainer import Trainer

NUM_CLASSES = {"verb": 19, "noun": 51, "action": 106}
"""Those of EGTEA Gaze+."""


@dataclass(frozen=True)
class StepSize:
    """What a training step computes."""

    backbone: str
    batch_size: int
    num_frames: int
    crop_size: int


def made_up_split(num_clips: int, generator: torch.Generator) -> Split:
    """Clips with random labels; there are no files."""
    labels = {
        head: torch.randint(k, (num_clips,), generator=generator).tolist()
        for head, k in NUM_CLASSES.items()
    }
    records = [
        VideoRecord(
            id=str(i),
            path=Path(f"{i}.mp4"),
            video_id=str(i),
            recording=str(i),
            labels={head: classes[i] for head, classes in labels.items()},
        )
        for i in range(num_clips)
    ]
    vocabularies = {head: Vocabulary(map(str, range(k))) for head, k in NUM_CLASSES.items()}
    return Split("made up", records, vocabularies)


def made_up_trainer(
    split: Split,
    size: StepSize,
    *,
    device: str,
    loss: str = "cross_entropy",
    optimizer: str = "adamw",
    **train: Any,
) -> Trainer:
    """What `build_trainer` makes of a configuration, up to the first step of an epoch.

    `train` are keys of that section, such as precision and compile.
    """
    values = {
        "clip": {
            "num_frames": size.num_frames,
            "crop_size": size.crop_size,
            "short_side": size.crop_size,
        },
        "data": {"num_workers": 0},
        "model": {"backbone": size.backbone},
        "loss": {"name": loss, "difficulty": {"source": "train"}},
        # The weights hardly move, so that the last step has the work of the first.
        "optim": {"name": optimizer, "lr": 1e-6},
        "train": {
            "global_batch_size": size.batch_size,
            "micro_batch_size": size.batch_size,
            "device": device,
            **train,
        },
    }
    config = parse_config(values, source="benchmark")
    data = Data(train=split, val=None, test=None)
    trainer = build_trainer(config, data=data, ranks=ONE_PROCESS, quiet=True)
    trainer.schedule.apply(trainer.optimizer, 0.0)
    trainer.model.train()
    return trainer


def made_up_batch(
    split: Split, size: StepSize, generator: torch.Generator, *, device: torch.device
) -> Batch:
    """Clips of noise on the host, as a loader gives them: in page-locked memory for a GPU."""
    shape = (len(split), 1, 3, size.num_frames, size.crop_size, size.crop_size)
    batch = Batch(
        clips=torch.randint(256, shape, dtype=torch.uint8, generator=generator),
        labels={head: split.labels(head) for head in split.heads},
        indices=torch.arange(len(split)),
        appearance=Appearance(
            flip=torch.rand(len(split), generator=generator) < 0.5,
            jitter=torch.ones(len(split), 3),
        ),
    )
    return batch.pin_memory() if device.type == "cuda" else batch


def measure_difficulty(criterion: MultiHeadLoss, generator: torch.Generator) -> None:
    """One made-up validation, so that CDB's weights are not all 1."""
    for head, k in NUM_CLASSES.items():
        counts, clips = ClassCounts(k), 10 * k
        scores = torch.rand(clips, k, generator=generator)
        counts.update(scores, torch.randint(k, (clips,), generator=generator))
        criterion.update({head: counts})
