"""A rank that hangs ends the job, in a time that was stated before."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.reliability.jobs import (
    alive,
    descendants,
    environment,
    make_data,
    steps_done,
    torchrun,
    wait_until,
    write_config,
)
from tests.reliability.outcome import Outcome, Row

TIMEOUT_S, SHUTDOWN_S, SLACK_S = 5, 30, 5
"""`train.rank_timeout_s`; what torchrun gives ranks to end after another one failed, before it
kills them (its --shutdown-timeout is not asked in that case); and for the rest."""


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Stop one of two ranks with SIGSTOP, in turn."""
    data = make_data(folder / "data", train=24)
    found = [stop_one(data, folder / f"case-{case}", case % 2) for case in range(count)]
    failures = tuple(f"case {i}: {line}" for i, (line, _) in enumerate(found) if line)
    return Outcome(count, failures, {"slowest_s": max(seconds for _, seconds in found)})


def stop_one(data: Path, output: Path, rank: int) -> tuple[str, float]:
    """What went wrong, and the seconds from the signal to the end of the last process."""
    train = {"epochs": 1000, "rank_timeout_s": TIMEOUT_S}
    config = write_config(data, output, data={"num_workers": 1}, train=train)
    run, log = output / "tiny", output.with_suffix(".txt")
    agent = torchrun([str(config)], num_ranks=2, output=log)
    if not wait_until(lambda: steps_done(run) >= 3 or agent.poll() is not None):
        agent.kill()
    below = descendants(agent.pid)
    ranks = sorted(pid for pid in below if f"RANK={rank}".encode() in environment(pid))
    if not ranks:
        return f"it did not begin: {log.read_text()[-1500:]}", 0.0
    start = time.monotonic()
    os.kill(ranks[0], signal.SIGSTOP)
    limit = TIMEOUT_S + SHUTDOWN_S + SLACK_S
    gone = wait_until(lambda: agent.poll() is not None and not alive(below), limit)
    seconds = time.monotonic() - start
    left = alive(below)
    for pid in left | ({agent.pid} if agent.poll() is None else set()):
        os.kill(pid, signal.SIGKILL)
    agent.wait()
    return "" if gone else f"after {limit} s {left}: {log.read_text()[-1500:]}", seconds


ROW = Row(
    name="stopped_rank",
    promise="a stopped rank ends the job, loader's workers and all, within train.rank_timeout_s "
    "and the 30 s that torchrun gives ranks to end, and 5 s",
    measure=measure,
    quick=1,
    full=6,
)
