"""What test_distributed.py runs on every rank: train, evaluate, write what this rank has.

torchrun --nproc_per_node=N tests/ranks.py CONFIG.yaml OUT
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cdb_video import distributed
from cdb_video.build import build_trainer
from cdb_video.build_clips import build_evaluation_loader, choose_device
from cdb_video.build_data import read_data
from cdb_video.config import Config
from cdb_video.config_file import load_config
from cdb_video.distributed import Ranks, process_group
from cdb_video.evaluation.evaluate import evaluate
from cdb_video.experiments import open_run
from cdb_video.losses import CDBLoss, RecallLoss
from cdb_video.training.precise_bn import measure_batch_norms

State = dict[str, Any]


def main() -> None:
    config, out = load_config(sys.argv[1]), Path(sys.argv[2])
    ranks = Ranks.from_environment()
    data = read_data(config)
    run = None
    if ranks.is_main:
        run, config = open_run(config, config_name="ranks", resume=False)
    with process_group(ranks, choose_device(config, ranks)):
        config = distributed.broadcast_object(config)
        trainer = build_trainer(config, data=data, ranks=ranks, run=run)
        assert data.val is not None
        loader = build_evaluation_loader(config, data.val, ranks=ranks)
        before = evaluate(trainer.model, loader, device="cpu")
        trainer.fit()
        after = evaluate(trainer.model, loader, device="cpu")
        drawing = build_trainer(with_cdb_sampler(config), data=data, ranks=ranks, quiet=True)
        drawing.fit()
        assert drawing.sampling is not None
        state = {
            "indices": list(loader.order.indices),
            "counts_before": {head: c.to_dict()["table"] for head, c in before.counts.items()},
            "counts_after": {head: c.to_dict()["table"] for head, c in after.counts.items()},
            "train_counts": {h: c.to_dict()["table"] for h, c in trainer.train_counts.items()},
            "criterion": trainer.criterion.state_dict(),
            "model": trainer.model.state_dict(),
            "drawing": {
                "criterion": drawing.criterion.state_dict(),
                "model": drawing.model.state_dict(),
                "sampling": drawing.sampling.state_dict(),
                "probabilities": drawing.sampling.probabilities(2, 3),
                "train_counts": drawing.train_counts["noun"].to_dict()["table"],
            },
            "plain_loop": plain_loop(ranks),
            "batch_norm": measured_batch_norm(ranks),
        }
        torch.save(state, out / f"rank{ranks.rank}.pt")
    if run:
        run.close()


def plain_loop(ranks: Ranks) -> State:
    """Losses that count, without the trainer, after an epoch of one batch.

    A clip of class 0 on every rank, right on rank 0 alone; a clip of class 1 on the last, right.
    """
    is_last = ranks.rank == ranks.world_size - 1
    logits = F.one_hot(torch.tensor([0 if ranks.is_main else 1, 1]), 3).float()
    target = torch.tensor([0, 1 if is_last else -1])
    cdb, recall = CDBLoss(3, ignore_index=-1), RecallLoss(3, ignore_index=-1)
    cdb.observe(logits, target)
    cdb.step()
    recall(logits, target)
    recall.start_epoch(1, 2)
    return {
        "difficulty": cdb.difficulty,
        "cdb": cdb.state_dict(),
        "recall_weights": recall.class_weights,
        "recall": recall.state_dict(),
    }


def measured_batch_norm(ranks: Ranks) -> State:
    """Of six clips of one pixel, 0 to 5: every rank has every `world_size`-th, in one forward."""
    norm = nn.BatchNorm3d(1)
    clips = torch.arange(6.0)[ranks.rank :: ranks.world_size].view(-1, 1, 1, 1, 1)
    measure_batch_norms(norm, [clips], autocast=nullcontext())
    return norm.state_dict()


def with_cdb_sampler(config: Config) -> Config:
    data = config.data.model_copy(update={"sampler": "cdb", "sampler_head": "noun"})
    return config.model_copy(update={"data": data})


if __name__ == "__main__":
    main()
