"""torchrun starts killed ranks again, and the run ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from tests.reliability.jobs import (
    PATIENCE_S,
    ForkedJob,
    alive,
    descendants,
    environment,
    events,
    make_data,
    steps_done,
    torchrun,
    wait_until,
    write_config,
)
from tests.reliability.outcome import Outcome, Row
from tests.states import differences, state_at

EPOCHS, STEPS_PER_EPOCH = 200, 4
KILLS_A_JOB = 10
GONE_WITHIN_S = 10.0
"""The workers of a loader whose rank was killed."""
STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it a restarted rank may be given a dead one's address (pytorch#135712)."""


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Kill one of two ranks again and again, in jobs of at most `KILLS_A_JOB` kills."""
    data = make_data(folder / "data")
    failures: list[str] = []
    seconds: list[float] = []
    jobs = -(-count // KILLS_A_JOB)
    for job in range(jobs):
        kills = count * (job + 1) // jobs - count * job // jobs
        generator = random.Random(f"{seed}-{job}")
        config = write_config(
            data, folder / f"job-{job}", data={"num_workers": 1}, train={"epochs": EPOCHS}
        )
        run = folder / f"job-{job}" / "tiny"
        log = folder / f"job-{job}-log"
        options = ["--standalone", f"--max-restarts={kills}"]
        agent = torchrun([str(config)], num_ranks=2, output=log, options=options, environment=STORE)
        try:
            for kill in range(kills):
                took, step, workers = kill_once(agent.pid, run, generator)
                seconds.append(took)
                if not workers or not are_gone(workers):
                    left = alive(workers)
                    failures.append(f"job {job}, kill {kill}: of {workers} {left} is left")
                if not came_back(run, step):
                    failures.append(f"job {job}, kill {kill}: {log.read_text()[-2000:]}")
                    break
        finally:
            os.kill(agent.pid, signal.SIGTERM)
            agent.wait(PATIENCE_S)
    if not failures:
        failures += end_as_if_not(data, folder, jobs)
    slowest = max(seconds, default=0.0)
    return Outcome(count, tuple(failures), {"slowest_restart_s": slowest})


def kill_once(agent: int, run: Path, generator: random.Random) -> tuple[float, int, set[int]]:
    """Kill a rank in the middle.

    Returns:
        Seconds until the log goes on, the step of the kill, and the rank's loader's workers.

    """
    before = steps_done(run)
    wait_until(lambda: steps_done(run) > before + 3)
    mark = f"RANK={generator.randrange(2)}".encode()
    of_rank = {pid for pid in descendants(agent) if mark in environment(pid)}
    rank = next(pid for pid in of_rank if of_rank - {pid} == descendants(pid) & of_rank)
    step = steps_done(run)
    lines = len(events(run))
    start = time.monotonic()
    workers = descendants(rank)
    os.kill(rank, signal.SIGKILL)
    wait_until(lambda: len(events(run)) < lines or steps_done(run) > step + 2)
    return time.monotonic() - start, step, workers


def came_back(run: Path, step: int) -> bool:
    """Whether training went on beyond a step."""
    return wait_until(lambda: steps_done(run) > step)


def are_gone(pids: set[int]) -> bool:
    """Whether processes ended in time."""
    return wait_until(lambda: not alive(pids), GONE_WITHIN_S)


def end_as_if_not(data: Path, folder: Path, jobs: int) -> list[str]:
    """A line for each job that differs from an uninterrupted run, without workers, at its step."""
    last = {}
    for job in range(jobs):
        saved = (folder / f"job-{job}" / "tiny" / "checkpoints").glob("step-*")
        steps = [int(path.name[5:]) for path in saved]
        # At an epoch's end one of the two may be from before the evaluation.
        last[job] = max(step for step in steps if step % STEPS_PER_EPOCH)
    config = write_config(data, folder / "whole", train={"epochs": EPOCHS, "keep_last": 10_000})
    whole = folder / "whole" / "tiny"
    uninterrupted = ForkedJob([str(config)], num_ranks=2, folder=folder / "whole-log")
    beyond = max(last.values()) + 1
    wait_until(lambda: (whole / "checkpoints" / f"step-{beyond}").exists())
    uninterrupted.kill(0, signal.SIGTERM)
    uninterrupted.wait()
    lines = []
    for job, step in last.items():
        found = differences(state_at(folder / f"job-{job}" / "tiny", step), state_at(whole, step))
        lines += [f"job {job}, step {step}: differs in {found[:3]}"] if found else []
    return lines


ROW = Row(
    name="restarts",
    promise="a rank killed under torchrun --max-restarts is started again, its loader's workers "
    "are gone, and the state is that of a run that nobody killed, in every job",
    measure=measure,
    quick=10,
    full=50,
)
