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
    descendants,
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
        config = write_config(data, folder / f"job-{job}", train={"epochs": EPOCHS})
        run = folder / f"job-{job}" / "tiny"
        log = folder / f"job-{job}-log"
        options = ["--standalone", f"--max-restarts={kills}"]
        agent = torchrun([str(config)], num_ranks=2, output=log, options=options, environment=STORE)
        try:
            for kill in range(kills):
                took, step = kill_once(agent.pid, run, generator)
                seconds.append(took)
                if not came_back(run, step):
                    failures.append(f"job {job}, kill {kill}: {log.read_text()[-2000:]}")
                    break
        finally:
            os.kill(agent.pid, signal.SIGTERM)
            agent.wait(PATIENCE_S)
    if not failures:
        failures += ends_as_if_not(data, folder)
    slowest = max(seconds, default=0.0)
    return Outcome(count, tuple(failures), {"slowest_restart_s": slowest})


def kill_once(agent: int, run: Path, generator: random.Random) -> tuple[float, int]:
    """Kill a rank in the middle; seconds until the log goes on, and the step of the kill."""
    before = steps_done(run)
    wait_until(lambda: steps_done(run) > before + 3)
    ranks = [p for p in descendants(agent) if b"train.py" in _command(p)]
    step = steps_done(run)
    lines = len(events(run))
    start = time.monotonic()
    os.kill(generator.choice(sorted(ranks)), signal.SIGKILL)
    wait_until(lambda: len(events(run)) < lines or steps_done(run) > step + 2)
    return time.monotonic() - start, step


def came_back(run: Path, step: int) -> bool:
    """Whether training went on beyond a step."""
    return wait_until(lambda: steps_done(run) > step)


def ends_as_if_not(data: Path, folder: Path) -> list[str]:
    """A line if the state that the first job left is not an uninterrupted run's at that step."""
    run = folder / "job-0" / "tiny"
    steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")]
    # At an epoch's end one of the two may be from before the evaluation.
    last = max(step for step in steps if step % STEPS_PER_EPOCH)
    config = write_config(data, folder / "whole", train={"epochs": EPOCHS, "keep_last": 10_000})
    whole = folder / "whole" / "tiny"
    job = ForkedJob([str(config)], num_ranks=2, folder=folder / "whole-log")
    wait_until(lambda: (whole / "checkpoints" / f"step-{last + 1}").exists())
    job.kill(0, signal.SIGTERM)
    job.wait()
    found = differences(state_at(run, last), state_at(whole, last))
    return [f"step {last} differs in {found[:3]}"] if found else []


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


ROW = Row(
    name="restarts",
    promise="a rank killed under torchrun --max-restarts is started again, and the state is that "
    "of a run that nobody killed",
    measure=measure,
    quick=10,
    full=50,
)
