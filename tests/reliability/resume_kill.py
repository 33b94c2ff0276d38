"""Ranks killed in the middle of an epoch, and the run taken up again, end bit for bit as if not."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.reliability.jobs import (
    ForkedJob,
    make_data,
    steps_done,
    wait_until,
    write_config,
)
from tests.reliability.outcome import Outcome, Row
from tests.states import differences, lines_of, state_at

LAST_STEP = 8
"""Of two epochs of four steps."""


class Kind(NamedTuple):
    """Of a run."""

    ranks: int
    precision: str
    validates: bool
    """Difficulty and the best epoch from validation, and two loader workers a rank."""

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """Of the configuration: with averaged weights, dropout, and parts of steps."""
        values: dict[str, dict[str, Any]] = {
            "model": {"dropout": 0.5},
            # Saved between two lines of the log, and not at every step.
            "train": {
                "ema": 0.9,
                "precision": self.precision,
                "log_every": 3,
                "save_every_steps": 2,
            },
        }
        if self.validates:
            values["data"] = {"val_split": "val", "num_workers": 2}
            values["loss"] = {"difficulty": {"source": "val"}}
        return values


# What validates takes longer: its report has pictures.
KINDS = [
    Kind(ranks, precision, validates=(ranks, precision) in ((3, "fp32"), (2, "fp16")))
    for precision in ("fp32", "bf16", "fp16")
    for ranks in (2, 3)
]


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """One to three kills a run; every kind of run in turn."""
    data = make_data(folder / "data")
    whole: dict[Kind, Path] = {}
    failures: list[str] = []
    kills = 0
    for case in range(count):
        kind = KINDS[case % len(KINDS)]
        if kind not in whole:
            whole[kind] = run_whole(data, folder, f"whole-{kind.ranks}-{kind.precision}", kind)
        generator = random.Random(f"{seed}-{case}")
        name = f"case-{case}"
        config = write_config(data, folder / name, **kind.sections)
        run = folder / name / "tiny"
        steps = sorted(generator.sample(range(1, LAST_STEP), 1 + case // len(KINDS) % 3))
        for step in steps:
            rank, log = generator.randrange(kind.ranks), folder / f"{name}-log"
            kill_at(config, run, step, rank, kind.ranks, log, generator.random())
            kills += 1
        job = ForkedJob([str(config), "--resume"], num_ranks=kind.ranks, folder=log)
        job.wait()
        failures += compare(run, whole[kind], f"{name}: {kind}, killed at {steps}", job)
    return Outcome(count, tuple(failures), {"kills": kills})


def run_whole(data: Path, folder: Path, name: str, kind: Kind) -> Path:
    """A run that nobody interrupts."""
    config = write_config(data, folder / name, **kind.sections)
    job = ForkedJob([str(config)], num_ranks=kind.ranks, folder=folder / f"{name}-log")
    statuses = job.wait()
    if steps_done(folder / name / "tiny") != LAST_STEP:
        raise RuntimeError(f"{name} did not end: {statuses}\n{job.output()}")
    return folder / name / "tiny"


def kill_at(
    config: Path,
    run: Path,
    step: int,
    rank: int,
    ranks: int,
    folder: Path,
    part: float,
    *,
    prepare: str | None = None,
    more: Mapping[str, str] | None = None,
) -> None:
    """Start or resume the run, and kill one rank when it has logged a step, or a little later."""
    job = ForkedJob(
        [str(config), "--resume"],
        num_ranks=ranks,
        folder=folder,
        prepare=prepare,
        environment=more,
    )
    if not wait_until(lambda: steps_done(run) >= step or not any(p.is_alive() for p in job.ranks)):
        raise RuntimeError(f"step {step} did not come\n{job.output()}")
    time.sleep(0.03 * part)
    job.kill(rank)
    job.wait()


def compare(run: Path, whole: Path, what: str, job: ForkedJob) -> list[str]:
    """A line if two runs' last states or logs differ."""
    try:
        found = differences(state_at(run, LAST_STEP), state_at(whole, LAST_STEP))
    except (ValueError, OSError) as error:
        return [f"{what}: {error}; {job.output()}"]
    if lines_of(run) != lines_of(whole):
        found.append("metrics.jsonl")
    return [f"{what}: {len(found)} parts differ, such as {found[:3]}"] if found else []


ROW = Row(
    name="resume_kill",
    promise="killed in mid-epoch and resumed, a run ends with the same state bit for bit "
    "(2 and 3 ranks; fp32, bf16, fp16)",
    measure=measure,
    quick=6,
    full=20,
)
