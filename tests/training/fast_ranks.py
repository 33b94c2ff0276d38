"""What test_fast_steps.py runs on every rank: the summed gradient of a step, three ways.

torchrun --nproc_per_node=N tests/training/fast_ranks.py CONFIG.yaml OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from cdb_video.build import build_trainer
from cdb_video.build_clips import choose_device
from cdb_video.build_data import Data, read_data
from cdb_video.config import Config
from cdb_video.config_file import load_config
from cdb_video.distributed import Ranks, process_group
from cdb_video.models import compiling


def main() -> None:
    compiling.BACKEND = "aot_eager"
    config, out = load_config(sys.argv[1]), Path(sys.argv[2])
    ranks = Ranks.from_environment()
    data = read_data(config)
    arms = {
        "plain": {"compile": False},
        "compiled": {"compile": True},
        "compressed": {"compile": False, "compress_gradients": True},
    }
    with process_group(ranks, choose_device(config, ranks)):
        found = {arm: gradient(with_train(config, keys), data, ranks) for arm, keys in arms.items()}
    torch.save(found, out / f"rank{ranks.rank}.pt")


def with_train(config: Config, keys: dict[str, bool]) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=keys)})


def gradient(config: Config, data: Data, ranks: Ranks) -> Tensor:
    """Of the first batch, in parts of 2 clips, summed over the ranks."""
    trainer = build_trainer(config, data=data, ranks=ranks, quiet=True)
    trainer.model.train()
    parts = next(iter(trainer.loader.epoch(0))).split(2)
    for part in parts:
        trainer.backward(part, reduce=part is parts[-1])
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


if __name__ == "__main__":
    main()
