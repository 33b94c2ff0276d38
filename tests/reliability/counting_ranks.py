"""What `counting` runs on every real rank: evaluate splits of a few videos, write the counts.

torchrun --nproc_per_node=N -m tests.reliability.counting_ranks OUT SEED
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch

from cdb_video.distributed import Ranks, process_group
from tests.reliability.counting import REAL_BATCHES, REAL_VIDEOS, evaluated


def main() -> None:
    out, seed = Path(sys.argv[1]), int(sys.argv[2])
    ranks = Ranks.from_environment()
    found = {}
    with process_group(ranks, torch.device("cpu")):
        for num_videos, batch in itertools.product(REAL_VIDEOS, REAL_BATCHES):
            report = evaluated(num_videos, seed, batch, ranks)
            for head, counts in report.counts.items():
                found[f"{num_videos}/{batch}/{head}"] = counts.to_dict()["table"]
        torch.save(found, out / f"rank{ranks.rank}.pt")


if __name__ == "__main__":
    main()
