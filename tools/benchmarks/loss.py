"""What CDB costs: a whole training step with it against one with cross entropy."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.made_up import (
    NUM_CLASSES,
    StepSize,
    made_up_batch,
    made_up_split,
    made_up_trainer,
    measure_difficulty,
)
from benchmarks.report import make_report
from benchmarks.timing import device_clock, interleave
from cdb_video.build_data import Data
from cdb_video.build_losses import build_criterion
from cdb_video.clips.batch import Batch
from cdb_video.config import LossConfig
from cdb_video.datasets.annotations import Split
from cdb_video.losses import MultiHeadLoss
from cdb_video.training.trainer import Trainer

SIZE = StepSize("slowfast_tiny", batch_size=8, num_frames=16, crop_size=64)
ARMS = ("cross_entropy", "cdb")


def measure(*, device: str, repeats: int) -> dict[str, Any]:
    """The report on steps and on the losses alone; `device` is auto, cpu or cuda.

    Raises:
        ConfigError: cuda without a GPU.

    """
    generator = torch.Generator().manual_seed(0)
    split = made_up_split(SIZE.batch_size, generator)
    trainer = made_up_trainer(split, SIZE, device=device)
    batch = made_up_batch(split, SIZE, generator, device=trainer.device)
    criteria = made_up_criteria(split, generator, device=trainer.device)
    labels = batch.to(trainer.device).labels
    logits = {
        head: torch.randn(SIZE.batch_size, k, generator=generator)
        .to(trainer.device)
        .requires_grad_()
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


def made_up_criteria(
    split: Split, generator: torch.Generator, *, device: torch.device
) -> dict[str, MultiHeadLoss]:
    """Both losses; CDB has seen one validation, so that its weights are not all 1."""
    data = Data(train=split, val=None, test=None)
    criteria = {
        name: build_criterion(LossConfig(name=name), data.classes).to(device) for name in ARMS
    }
    measure_difficulty(criteria["cdb"], generator)
    return criteria
