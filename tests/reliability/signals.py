"""A run that is asked to stop saves, leaves, and leaves nobody behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from cdb_video.training.checkpoint import newest_valid
from tests.reliability.jobs import (
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

STOPPED = 75
HANDLED = ["--standalone", "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Every kind in turn."""
    data = make_data(folder / "data")
    failures: list[str] = []
    slowest = 0.0
    for case in range(count):
        name, kind = list(KINDS.items())[case % len(KINDS)]
        config = write_config(
            data,
            folder / f"case-{case}",
            data={"num_workers": 1},
            # No save but the one that is asked for; far more epochs than there is time for.
            train={"epochs": 1000, "save_every_steps": 10_000, "keep_last": 1},
        )
        run = folder / f"case-{case}" / "tiny"
        found, seconds = kind(config, run, folder / f"case-{case}-log")
        failures += [f"{name} (case {case}): {line}" for line in found]
        slowest = max(slowest, seconds)
    return Outcome(count, tuple(failures), {"slowest_s": slowest})


def to_agent(
    number: signal.Signals, *options: str, rank: bool = False, num_ranks: int = 2
) -> Callable[..., tuple[list[str], float]]:
    """A signal to torchrun's agent alone, or to one of its ranks alone."""

    def run_it(config: Path, run: Path, log: Path) -> tuple[list[str], float]:
        agent = torchrun(
            [str(config)],
            num_ranks=num_ranks,
            output=log / "agent.txt",
            options=options or HANDLED,
            environment={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )
        output = lambda: (log / "agent.txt").read_text()[-1500:]  # noqa: E731
        if not wait_until(lambda: steps_done(run) >= 5 or agent.poll() is not None):
            agent.kill()
            return [f"it did not begin: {output()}"], 0.0
        below = descendants(agent.pid)
        start = time.monotonic()
        os.kill(rank_1(below) if rank else agent.pid, number)
        gone = wait_until(lambda: agent.poll() is not None and not alive(below), 45)
        seconds = time.monotonic() - start
        found = saved(run) + ([] if gone else [f"left behind: {alive(below)}"])
        for pid in alive(below):
            os.kill(pid, signal.SIGKILL)
        return [f"{line}; {output()}" for line in found], seconds

    return run_it


def rank_1(pids: set[int]) -> int:
    """The process that is rank 1, and not one of its loader's."""
    return min(pid for pid in pids if b"RANK=1" in environment(pid))


def to_ranks(number: signal.Signals, *, one: bool) -> Callable[..., tuple[list[str], float]]:
    """A signal to one rank, or to all ranks and their loaders' workers as Slurm sends it."""

    def run_it(config: Path, run: Path, log: Path) -> tuple[list[str], float]:
        job = ForkedJob([str(config)], num_ranks=2, folder=log)
        if not wait_until(lambda: steps_done(run) >= 5 or not job.ranks[0].is_alive()):
            job.wait(0)
            return [f"it did not begin: {job.output()}"], 0.0
        ranks = [process.pid or 0 for process in job.ranks]
        workers = descendants(ranks[0]) | descendants(ranks[1])
        start = time.monotonic()
        for pid in ranks[1:] if one else [*ranks, *sorted(workers)]:
            os.kill(pid, number)
        statuses = job.wait(45)
        gone = wait_until(lambda: not alive(workers), 10)
        seconds = time.monotonic() - start
        found = saved(run)
        if statuses != [STOPPED, STOPPED]:
            found.append(f"exit statuses {statuses}")
        if not workers:
            found.append("there was no loader's worker")
        if not gone:
            found.append(f"left behind: {alive(workers)}")
        return [f"{line}; {job.output()}" for line in found], seconds

    return run_it


def in_evaluation(config: Path, run: Path, log: Path) -> tuple[list[str], float]:
    """SIGTERM to rank 1 in the middle of the first evaluation."""
    values = yaml.safe_load(config.read_text())
    values["data"]["val_split"] = "val"
    config.write_text(yaml.safe_dump(values))
    start = time.monotonic()
    prepare = "tests.reliability.stop_in_evaluation"
    job = ForkedJob([str(config)], num_ranks=2, folder=log, prepare=prepare)
    statuses = job.wait(90)
    found = saved(run) + ([] if statuses == [STOPPED, STOPPED] else [f"statuses {statuses}"])
    if (run / "report_val.json").exists():
        found.append("the evaluation went on to its end")
    return [f"{line}; {job.output()}" for line in found], time.monotonic() - start


def saved(run: Path) -> list[str]:
    """What is wrong with the checkpoint and the marks of a run that was asked to stop."""
    found = []
    newest, damaged = newest_valid(run / "checkpoints")
    last = events(run)[-1]
    if newest is None or damaged:
        found.append(f"checkpoint {newest}, damaged {damaged}")
    elif int(newest.name[5:]) != last["step"]:
        found.append(f"saved {newest.name}, and the last step was {last['step']}")
    if last["event"] != "stop":
        found.append(f"the last event is {last['event']}")
    if not (run / "stopped.json").exists():
        found.append("no stopped.json")
    return found


KINDS = {
    "SIGTERM to the agent": to_agent(signal.SIGTERM, "--standalone"),
    "SIGTERM to one rank": to_ranks(signal.SIGTERM, one=True),
    "SIGUSR1 to ranks and workers": to_ranks(signal.SIGUSR1, one=False),
    "SIGUSR1 to the agent": to_agent(signal.SIGUSR1),
    # It is not started again, though it may be.
    "SIGUSR1 to one rank of an agent with restarts": to_agent(
        signal.SIGUSR1, "--standalone", "--max-restarts=2", rank=True
    ),
    "SIGTERM to ranks and workers": to_ranks(signal.SIGTERM, one=False),
    "SIGKILL to the agent": to_agent(signal.SIGKILL),
    "SIGKILL to the agent of one rank": to_agent(signal.SIGKILL, "--standalone", num_ranks=1),
    "SIGTERM to one rank in an evaluation": in_evaluation,
}

ROW = Row(
    name="signals",
    promise="SIGTERM and SIGUSR1, to the agent, one rank or all with their workers, and the "
    "agent's death: the state is saved and no process is left",
    measure=measure,
    quick=len(KINDS),
    full=20,
)
