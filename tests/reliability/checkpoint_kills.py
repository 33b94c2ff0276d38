"""A writer that saves in a loop is killed at any moment: no checkpoint on the disk is lost."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from cdb_video.errors import RunError
from cdb_video.training.checkpoint import (
    CheckpointFolder,
    checkpoints,
    load_best,
    load_model,
    load_training,
    newest_valid,
    verify,
)
from tests.reliability.outcome import Outcome, Row

KEEP_LAST = 2
CALLS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir"})
"""System calls before which a kill can be placed: Python's audit events."""
CALLS_OF_A_SAVE = 30
"""At least as many: a kill is placed before each of them in turn."""
SIZE = 2000
MEMORY = Path("/dev/shm")


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Every third kill is placed before a system call, the others after a random time.

    In memory where that can be: what is killed waits for a disk, and a kill leaves the same there.
    """
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK):
        with tempfile.TemporaryDirectory(dir=MEMORY) as memory:
            return kill_writers(count, seed, Path(memory))
    return kill_writers(count, seed, folder)


def kill_writers(count: int, seed: int, folder: Path) -> Outcome:
    draw = random.Random(seed)
    failures: list[str] = []
    figures = {"killed_in_a_save": 0, "left_half_done": 0}
    save_s = timed_save(folder / "timing")
    save(new_store(folder), 0)
    reported = 0
    places = itertools.cycle(range(1, 3 * CALLS_OF_A_SAVE))
    for kill in range(count):
        before_call = next(places) if kill % 3 == 0 else None
        # Three saves on average: the first one after a kill sweeps, the others do not.
        delay_s = draw.uniform(0, 6 * save_s)
        background = draw.random() < 0.5
        reported = max(reported, killed_writer(folder, delay_s, before_call, background))
        half_done = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        figures["killed_in_a_save"] += any(name.endswith(".tmp") for name in half_done)
        figures["left_half_done"] += len(half_done)
        where = f"after {1000 * delay_s:.2f} ms" if before_call is None else f"call {before_call}"
        mode = "in the background" if background else "in the foreground"
        failures += [f"kill {kill}, {where}, saving {mode}: {e}" for e in lost(folder, reported)]
    return Outcome(count, tuple(failures), {**figures, "saves": reported + 1})


def new_store(folder: Path, *, background: bool = False) -> CheckpointFolder:
    return CheckpointFolder(
        folder, texts={"a.txt": "x"}, keep_last=KEEP_LAST, background=background
    )


def step_of(number: int) -> int:
    """Each step is saved twice, as in the last step of an epoch and at its end."""
    return number // 2


def best_step(number: int) -> int:
    """Another best one now and then."""
    return step_of(number) // 5 * 5


def save(store: CheckpointFolder, number: int) -> None:
    """The number-th save, of a state that tells its number."""
    store.save(
        step_of(number),
        model={"weight": torch.full((SIZE,), float(number))},
        training={"number": number, "momentum": torch.full((SIZE,), -float(number))},
        best={"checkpoint": f"step-{best_step(number)}"},
    )


def timed_save(folder: Path) -> float:
    """Seconds of a save here."""
    store = new_store(folder)
    start = time.perf_counter()
    for number in range(10):
        save(store, number)
    return (time.perf_counter() - start) / 10


def killed_writer(folder: Path, delay_s: float, before_call: int | None, background: bool) -> int:
    """Fork a writer, kill it; the number of the last save that it reported to be on the disk."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        write_for_ever(folder, write, before_call, background)
    os.close(write)
    with os.fdopen(read, "rb") as reports:
        reports.read(1)  # it has started
        if before_call is None:
            time.sleep(delay_s)
            os.kill(pid, signal.SIGKILL)
        lines = reports.read().split()
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError(f"the writer ended by itself, with status {status}")
    return max(map(int, lines), default=-1)


def write_for_ever(folder: Path, reports: int, before_call: int | None, background: bool) -> None:
    """The writer's process: it goes on from the newest checkpoint, as a resumed run."""
    try:
        newest, _ = newest_valid(folder)
        done = load_training(newest)["number"] if newest else -1
        os.write(reports, b".")
        if before_call is not None:
            die_before(before_call)
        store = new_store(folder, background=background)
        for number in itertools.count(done + 1):
            save(store, number)
            finished = len(store.take_finished())  # in the order of their calls
            done += finished
            if finished:
                os.write(reports, f"{done}\n".encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def die_before(call: int) -> None:
    """Kill this process before the call-th of `CALLS` from now on."""
    left = call

    def count_down(event: str, arguments: object) -> None:
        nonlocal left
        if event in CALLS:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count_down)


def lost(folder: Path, reported: int) -> Iterator[str]:
    """A line for what is not as promised: the newest loads, is whole and no older than reported."""
    newest, lines = newest_valid(folder)
    yield from (f"half written: {line}" for line in lines)
    if newest is None:
        yield "no checkpoint is left"
        return
    try:
        training, weight = load_training(newest), load_model(newest)["weight"]
        best = (load_best(folder) or {})["checkpoint"]
        load_model(folder / best)
    except (RunError, KeyError) as error:
        yield f"{error!r}"
        return
    number = training["number"]
    steps = {path.name.split(".")[0] for path in checkpoints(folder) if is_whole(path)}
    if len(steps) < min(KEEP_LAST, step_of(number) + 1):
        yield f"of the last {KEEP_LAST}, {sorted(steps)} are whole"
    whole = torch.equal(weight, torch.full((SIZE,), float(number)))
    if not (whole and torch.equal(training["momentum"], -weight)):
        yield f"{newest.name} mixes the states of several saves"
    if newest.name != f"step-{step_of(number)}":
        yield f"{newest.name} is that of save {number}"
    if number < reported:
        yield f"save {reported} was reported and the newest is {number}"
    if not best_step(reported) <= int(best.removeprefix("step-")) <= best_step(number + 1):
        yield f"the best is {best}, after save {reported}"


def is_whole(path: Path) -> bool:
    try:
        verify(path)
    except RunError:
        return False
    return True


ROW = Row(
    "checkpoint_kills",
    "A process that is killed while it saves loses no checkpoint that was on the disk.",
    measure,
    quick=150,
    full=5000,
)
