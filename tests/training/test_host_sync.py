"""The training step never waits for the device: on a GPU each wait would idle it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from cdb_video.build import build_trainer
from cdb_video.training.trainer import Trainer
from tests.host_sync import NoHostSync
from tests.tiny import tiny_config

LOSSES = ["cdb", "cross_entropy", "equalization", "recall", "seesaw"]


def made(
    root: Path,
    output: Path,
    loss: str,
    device: str = "cpu",
    *,
    backbone: str = "r3d_10",
    optim: str = "adamw",
    **train: object,
) -> Trainer:
    config = tiny_config(
        root,
        output,
        clip={"num_frames": 8, "crop_size": 32, "short_side": 32},
        model={"backbone": backbone},
        loss={"name": loss},
        optim={"name": optim},
        train={"device": device, "micro_batch_size": 3, **train},
    )
    trainer = build_trainer(config, quiet=True)
    trainer.criterion.start_epoch(0, 2)
    return trainer


@pytest.mark.parametrize(
    ("loss", "backbone"), [*((loss, "r3d_10") for loss in LOSSES), ("cdb", "slowfast_tiny")]
)
def test_forward_loss_counts_and_backward_read_nothing_on_the_host(
    tiny_data: Path, tmp_path: Path, loss: str, backbone: str
) -> None:
    trainer = made(tiny_data, tmp_path, loss, backbone=backbone)
    batch = next(iter(trainer.loader.epoch(0)))
    parts = batch.split(3)

    with NoHostSync():
        for part in parts:
            trainer.backward(part, reduce=part is parts[-1])

    assert all(p.grad is not None for p in trainer.model.parameters())
    assert int(trainer.loss_sums[-1]) == len(batch)


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_a_whole_step_reads_nothing_on_the_host(
    tiny_data: Path, tmp_path: Path, optim: str
) -> None:
    trainer = made(tiny_data, tmp_path, "cdb", optim=optim, ema=0.9, clip_grad_norm=1.0)
    batches = list(trainer.loader.epoch(0))
    trainer.train_step(batches[0])

    with NoHostSync():
        trainer.train_step(batches[1])

    assert trainer.state.position.step == 2


@pytest.mark.gpu
@pytest.mark.parametrize("loss", LOSSES)
def test_a_whole_step_never_waits_for_the_gpu(tiny_data: Path, tmp_path: Path, loss: str) -> None:
    assert_no_wait(made(tiny_data, tmp_path, loss, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", ["slowfast_tiny", "slowfast_r50"])
@pytest.mark.parametrize("train", [{"precision": "fp32"}, {"precision": "bf16"}, {"compile": True}])
def test_no_fast_path_waits_for_the_gpu(
    tiny_data: Path, tmp_path: Path, backbone: str, train: dict[str, object]
) -> None:
    assert_no_wait(made(tiny_data, tmp_path, "cdb", device="cuda", backbone=backbone, **train))


def assert_no_wait(trainer: Trainer) -> None:
    """In the second step: the optimiser's state is made, and graphs are compiled, in the first."""
    batches = list(trainer.loader.epoch(0))
    trainer.train_step(batches[0])
    torch.cuda.synchronize()

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mode itself is said to be a prototype
            torch.cuda.set_sync_debug_mode("error")
        trainer.train_step(batches[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
