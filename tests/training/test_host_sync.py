"""The training step never waits for the device: on a GPU each wait would idle it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cdb_video.build import build_trainer
from cdb_video.training.trainer import Trainer
from tests.host_sync import NoHostSync
from tests.tiny import tiny_config

LOSSES = ["cdb", "cross_entropy", "equalization", "recall", "seesaw"]


def made(root: Path, output: Path, loss: str, device: str = "cpu") -> Trainer:
    config = tiny_config(
        root, output, loss={"name": loss}, train={"device": device, "micro_batch_size": 3}
    )
    trainer = build_trainer(config, quiet=True)
    trainer.criterion.start_epoch(0, 2)
    return trainer


@pytest.mark.parametrize("loss", LOSSES)
def test_forward_loss_counts_and_backward_read_nothing_on_the_host(
    tiny_data: Path, tmp_path: Path, loss: str
) -> None:
    trainer = made(tiny_data, tmp_path, loss)
    batch = next(iter(trainer.loader.epoch(0)))
    parts = batch.split(3)

    with NoHostSync():
        for part in parts:
            trainer.backward(part, reduce=part is parts[-1])

    assert all(p.grad is not None for p in trainer.model.parameters())
    assert int(trainer.loss_sums[-1]) == len(batch)


@pytest.mark.gpu
@pytest.mark.parametrize("loss", LOSSES)
def test_a_whole_step_never_waits_for_the_gpu(tiny_data: Path, tmp_path: Path, loss: str) -> None:
    trainer = made(tiny_data, tmp_path, loss, device="cuda")
    batches = list(trainer.loader.epoch(0))
    trainer.train_step(batches[0])  # the optimiser's state is made in the first step
    torch.cuda.synchronize()

    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batches[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
