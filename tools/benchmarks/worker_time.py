"""An arm's workers, and what their processes spend."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.loader_arms import Arm
from benchmarks.timing import Clock

BATCH_SIZE = 4


class Reading(NamedTuple):
    """A worker's process so far."""

    pid: int
    cpu_s: float
    """Of all its threads."""
    peak_rss: int
    """Bytes."""


class Workers:
    """Processes that run an arm's jobs, from round to round the same ones."""

    def __init__(self, arm: Arm, *, num_workers: int) -> None:
        self.num_jobs = len(arm.jobs)
        self.wall_s: list[float] = []
        """Of each round."""
        self.peak_rss = 0
        """Bytes, of the largest worker."""
        self._cpu_s: dict[int, float] = {}
        self._loader = DataLoader(
            ArmJobs(arm),
            batch_size=BATCH_SIZE,
            num_workers=num_workers,
            collate_fn=stack_and_read,
            persistent_workers=True,
        )

    def run(self) -> None:
        """A round: every job once."""
        start = time.perf_counter()
        for _, reading in self._loader:
            self._cpu_s[reading.pid] = reading.cpu_s
            self.peak_rss = max(self.peak_rss, reading.peak_rss)
        self.wall_s.append(time.perf_counter() - start)

    @property
    def cpu_s(self) -> float:
        """All that the processes have computed up to their last batch: decoding, handing over."""
        return sum(self._cpu_s.values())


class ArmJobs(Dataset[tuple[Tensor, ...]]):
    """An arm's clips."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm

    def __len__(self) -> int:
        return len(self.arm.jobs)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        made = self.arm.load(self.arm.jobs[index])
        return made if self.arm.hands_over else ()


def stack_and_read(items: Sequence[tuple[Tensor, ...]]) -> tuple[list[Tensor], Reading]:
    """A batch as training's workers make it, and the worker's spending up to then."""
    batch = [torch.stack(parts) for parts in zip(*items, strict=True)]
    # Kilobytes, as Linux counts.
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return batch, Reading(os.getpid(), time.process_time(), peak_rss)


def worker_clock(workers: Sequence[Workers]) -> Clock:
    """Seconds that the processes of all arms have computed; only the arm that runs adds to it."""
    return Clock("CPU time of the workers", lambda: sum(arm.cpu_s for arm in workers))
