"""What test_hub_runs.py runs on two ranks: each family of transformers trains and leaves a run.

torchrun --nproc_per_node=2 tests/hub_ranks.py OUT CONFIG.yaml ...
"""

from __future__ import annotations

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


def main() -> None:
    out, paths = Path(sys.argv[1]), sys.argv[2:]
    ranks = Ranks.from_environment()
    configs = [load_config(path) for path in paths]
    with process_group(ranks, choose_device(configs[0], ranks)):
        for path, config in zip(paths, configs, strict=True):
            run = None
            if ranks.is_main:
                run, config = open_run(config, config_name="hub", resume=False)
            config = distributed.broadcast_object(config)
            trainer = build_trainer(config, data=read_data(config), ranks=ranks, run=run)
            trainer.fit()
            state = {"model": trainer.model.state_dict(), "step": trainer.state.position.step}
            torch.save(state, out / f"{Path(path).stem}-rank{ranks.rank}.pt")
            if run:
                run.close()


if __name__ == "__main__":
    main()
