"""A run goes on with another number of ranks: the same clips in every step, the same losses."""

from __future__ import annotations

import json
from pathlib import Path

from tests.reliability.jobs import ForkedJob, events, make_data, steps_done, write_config
from tests.reliability.outcome import Outcome, Row
from tests.reliability.resume_kill import kill_at

LAST_STEP = 8
TOLERANCE = 1e-6
PAIRS = [(a, b) for a in range(1, 5) for b in range(1, 5) if a != b]
QUICK = [(3, 2), (2, 3)]
PREPARE = "tests.reliability.plain_backbone"


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Start on some ranks, kill, go on with others; compared with one process."""
    data = make_data(folder / "data")
    pairs = (QUICK + [pair for pair in PAIRS if pair not in QUICK])[:count]
    alone, order = run(data, folder, "alone", [(1, LAST_STEP)])
    failures: list[str] = []
    worst = 0.0
    for first, second in pairs:
        name = f"{first}-{second}"
        losses, mine = run(data, folder, name, [(first, 3), (second, LAST_STEP)])
        if mine != order:
            failures.append(f"{name}: other clips in a step: {mine} in place of {order}")
        if losses.keys() != alone.keys():
            failures.append(f"{name}: logged steps {sorted(losses)}")
            continue
        difference = max(abs(losses[step] / alone[step] - 1) for step in alone)
        worst = max(worst, difference)
        if difference > TOLERANCE:
            failures.append(f"{name}: the loss differs by {difference:.1e}")
    return Outcome(len(pairs), tuple(failures), {"largest_relative_difference": worst})


def run(
    data: Path, folder: Path, name: str, parts: list[tuple[int, int]]
) -> tuple[dict[int, float], dict[int, list[int]]]:
    """Step -> its loss, and step -> its clips, of a run on (ranks, up to this step) in turn."""
    config = write_config(
        data,
        folder / name,
        model={"backbone": "plain", "dropout": 0.0},
        loss={"difficulty": {"source": "train"}},
        optim={"name": "sgd", "lr": 0.1},
    )
    made = folder / name / "tiny"
    order: dict[int, list[int]] = {}
    for ranks, step in parts:
        notes = folder / f"{name}-{ranks}-notes"
        notes.mkdir()
        environment = {"NOTES": str(notes)}
        log = folder / f"{name}-{ranks}-log"
        if step < LAST_STEP:
            kill_at(config, made, step, 0, ranks, log, 0, prepare=PREPARE, more=environment)
        else:
            job = ForkedJob(
                [str(config), "--resume"],
                num_ranks=ranks,
                folder=log,
                prepare=PREPARE,
                environment=environment,
            )
            job.wait()
            if steps_done(made) != LAST_STEP:
                raise RuntimeError(f"{name} did not end: {job.output()}")
        order |= clips_of_steps(notes, ranks)
    losses = {e["step"]: e["loss"] for e in events(made) if e["event"] == "train"}
    return losses, order


def clips_of_steps(notes: Path, ranks: int) -> dict[int, list[int]]:
    """Step -> the clips of all ranks, in the order of the epoch, of steps that all of them took."""
    taken: dict[int, list[list[int]]] = {}
    for rank in range(ranks):
        for line in (notes / f"rank{rank}.jsonl").read_text().splitlines():
            epoch, step, indices = json.loads(line)
            taken.setdefault(4 * epoch + step, []).append(indices)
    return {
        step: [index for together in zip(*parts, strict=True) for index in together]
        for step, parts in taken.items()
        if len(parts) == ranks
    }


ROW = Row(
    name="other_ranks",
    promise="resumed on another number of ranks, every step has the same clips and, without batch "
    "norm and dropout, the same loss to 1e-6 (fp32)",
    measure=measure,
    quick=2,
    full=len(PAIRS),
)
