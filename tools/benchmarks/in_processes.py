"""Work that is done before anything is measured, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TypeVar

from cdb_video.errors import RunError
from cdb_video.prepare.pool import run_watched

SILENCE_S = 600.0
"""A process that yields nothing for so long hangs."""

Job = TypeVar("Job")


def on_all_cores(
    task: Callable[[Job], Iterator[None]], jobs: Sequence[Job], *, progress: Callable[[], None]
) -> None:
    """Run a module's function over jobs, in the order given; `progress` is called after each.

    Raises:
        RunError: a job's process ended before it.

    """
    workers = len(os.sched_getaffinity(0))
    with closing(run_watched(task, jobs, num_workers=workers, timeout_s=SILENCE_S)) as outcomes:
        for outcome in outcomes:
            if outcome.hung or outcome.died:
                how = outcome.died or f"no sign of life for {SILENCE_S:g} s"
                raise RunError(f"the process that made {outcome.job} ended: {how}")
            progress()
