"""What CDB costs: a whole training step with it against one with cross entropy."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import make_report
from benchmarks.timing import device_clock, interleave
from cdb_video.build import build_trainer
from cdb_video.build_data import Data
from cdb_video.build_losses import build_criterion
from cdb_video.clips.batch import Appearance, Batch
from cdb_video.config import LossConfig
from cdb_video.config_file import parse_config
from cdb_video.counts import ClassCounts
from cdb_video.datasets.annotations import Split, VideoRecord, Vocabulary
from cdb_video.distributed import ONE_PROCESS
from cdb_video.losses import MultiHeadLoss
from cdb_video.training.trainer import Trainer

NUM_CLASSES = {"verb": 19, "noun": 51, "action": 106}
"""Those of EGTEA Gaze+."""
BATCH_SIZE, NUM_FRAMES, CROP_SIZE = 8, 16, 64
ARMS = ("cross_entropy", "cdb")


def measure(*, device: str, repeats: int) -> dict[str, Any]:
    """The report on steps and on the losses alone; `device` is auto, cpu or cuda.

    Raises:
        ConfigError: cuda without a GPU.

    """
    generator = torch.Generator().manual_seed(0)
    split = made_up_split(generator)
    trainer = made_up_trainer(split, device=device)
    batch = made_up_batch(split, generator, device=trainer.device)
    criteria = made_up_criteria(split, generator, device=trainer.device)
    labels = batch.to(trainer.device).labels
    logits = {
        head: torch.randn(BATCH_SIZE, k, generator=generator).to(trainer.device).requires_grad_()
        for head, k in NUM_CLASSES.items()
    }
    clock = device_clock(trainer.device)
    steps = {name: partial(step, trainer, criteria[name], batch) for name in ARMS}
    alone = {f"{name}_alone": partial(loss_alone, criteria[name], logits, labels) for name in ARMS}
    seconds = interleave(steps, repeats=repeats, clock=clock)
    seconds |= interleave(alone, repeats=repeats, clock=clock)
    return make_report(
        "loss",
        seconds,
        ratios=[("cdb", "cross_entropy"), ("cdb_alone", "cross_entropy_alone")],
        device=trainer.device,
        clock=clock,
        precision=trainer.options.precision,
    )


def step(trainer: Trainer, criterion: MultiHeadLoss, batch: Batch) -> None:
    """A training step with this loss.

    One trainer serves both arms: two would differ in where their tensors lie in memory.
    """
    trainer.criterion = criterion
    trainer.train_step(batch)


def loss_alone(
    criterion: MultiHeadLoss, logits: dict[str, Tensor], labels: dict[str, Tensor]
) -> None:
    """Forward and backward from the logits of every head, {head: (B, K)}."""
    total = criterion.total(criterion(logits, labels))
    torch.autograd.grad(total, list(logits.values()))


def made_up_split(generator: torch.Generator) -> Split:
    """A clip for each place of a batch, randomly labelled; there are no files."""
    labels = {
        head: torch.randint(k, (BATCH_SIZE,), generator=generator).tolist()
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
        for i in range(BATCH_SIZE)
    ]
    vocabularies = {head: Vocabulary(map(str, range(k))) for head, k in NUM_CLASSES.items()}
    return Split("made up", records, vocabularies)


def made_up_trainer(split: Split, *, device: str) -> Trainer:
    """What `build_trainer` makes of a configuration, up to the first step of an epoch."""
    values = {
        "clip": {"num_frames": NUM_FRAMES, "crop_size": CROP_SIZE, "short_side": CROP_SIZE},
        "data": {"num_workers": 0},
        "model": {"backbone": "slowfast_tiny"},
        "loss": {"name": "cross_entropy"},
        # The weights hardly move, so that the last step has the work of the first.
        "optim": {"name": "adamw", "lr": 1e-6},
        "train": {
            "global_batch_size": BATCH_SIZE,
            "micro_batch_size": BATCH_SIZE,
            "device": device,
        },
    }
    config = parse_config(values, source="benchmark")
    data = Data(train=split, val=None, test=None)
    trainer = build_trainer(config, data=data, ranks=ONE_PROCESS)
    trainer.schedule.apply(trainer.optimizer, 0.0)
    trainer.model.train()
    return trainer


def made_up_batch(split: Split, generator: torch.Generator, *, device: torch.device) -> Batch:
    """Clips of noise on the host, as a loader gives them: in page-locked memory for a GPU."""
    shape = (BATCH_SIZE, 1, 3, NUM_FRAMES, CROP_SIZE, CROP_SIZE)
    batch = Batch(
        clips=torch.randint(256, shape, dtype=torch.uint8, generator=generator),
        labels={head: split.labels(head) for head in split.heads},
        indices=torch.arange(BATCH_SIZE),
        appearance=Appearance(
            flip=torch.rand(BATCH_SIZE, generator=generator) < 0.5, jitter=torch.ones(BATCH_SIZE, 3)
        ),
    )
    return batch.pin_memory() if device.type == "cuda" else batch


def made_up_criteria(
    split: Split, generator: torch.Generator, *, device: torch.device
) -> dict[str, MultiHeadLoss]:
    """Both losses; CDB has seen one validation, so that its weights are not all 1."""
    data = Data(train=split, val=None, test=None)
    criteria = {
        name: build_criterion(LossConfig(name=name), data.classes).to(device) for name in ARMS
    }
    for head, k in NUM_CLASSES.items():
        counts, clips = ClassCounts(k), 10 * k
        scores = torch.rand(clips, k, generator=generator)
        counts.update(scores, torch.randint(k, (clips,), generator=generator))
        criteria["cdb"].update({head: counts})
    return criteria
