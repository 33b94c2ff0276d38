"""What test_skipping.py runs on every rank: train over broken clips, write what this rank has.

torchrun --nproc_per_node=N tests/training/skipping_ranks.py CONFIG.yaml OUT
"""

import sys
from pathlib import Path

import torch

from cdb_video import distributed
from cdb_video.build import build_trainer
from cdb_video.build_clips import choose_device
from cdb_video.build_data import read_data
from cdb_video.config_file import load_config
from cdb_video.distributed import Ranks, process_group
from cdb_video.experiments import open_run


def main():
    config, out = load_config(sys.argv[1]), Path(sys.argv[2])
    ranks = Ranks.from_environment()
    data = read_data(config)
    run = None
    if ranks.is_main:
        run, config = open_run(config, config_name="ranks", resume=False)
    with process_group(ranks, choose_device(config, ranks)):
        config = distributed.broadcast_object(config)
        trainer = build_trainer(config, data=data, ranks=ranks, run=run)
        trainer.fit()
        report = trainer.validate(trainer.model)
        state = {
            "step": trainer.state.position.step,
            "model": trainer.model.state_dict(),
            "skipped": trainer.skipped.reasons,
            "skipped_videos": [name for name, _ in report.skipped],
            "train_total": int(trainer.train_counts["verb"].total.sum()),
        }
        torch.save(state, out / f"rank{ranks.rank}.pt")
    if run:
        run.close()


if __name__ == "__main__":
    main()
