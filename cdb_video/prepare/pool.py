"""Jobs in processes of their own: one that hangs or dies is named and replaced, the rest go on."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

ENDING_S = 5.0
"""How long a process that closed its pipe may take to end by itself, to tell how it ended."""


@dataclass(frozen=True)
class Outcome(Generic[Job, Result]):
    """What a job gave: all of it, or as far as it got."""

    job: Job
    results: Sequence[Result]
    hung: bool = False
    """It gave no sign of life for the time limit, and its process was killed."""
    died: str | None = None
    """How its process ended, such as "SIGSEGV" or "exit status 1"."""


def run_watched(
    task: Callable[[Job], Iterator[Result]],
    jobs: Sequence[Job],
    *,
    num_workers: int,
    timeout_s: float,
) -> Generator[Outcome[Job, Result], None, None]:
    """Run a task over jobs; outcomes come as they are ready.

    Each result that the task yields is a sign of life: the time limit runs from one to the next,
    and not while a process starts. Closing the iterator ends every process.

    Args:
        task: a module's function (or a partial of one): processes are spawned, as libraries that
            decode do not survive a fork.
        jobs: sent to the processes, as results are sent back.
        num_workers: processes at a time.
        timeout_s: seconds without a sign of life.

    """
    waiting = deque(jobs)
    workers: list[_Worker[Job, Result]] = []
    try:
        while len(workers) < min(num_workers, len(jobs)):
            workers.append(_Worker(task, timeout_s))
        while workers:
            for worker in _with_news(workers):
                outcome = worker.listen()
                if outcome is not None:
                    yield outcome
                if worker.is_free and waiting:
                    worker.give(waiting.popleft())
                elif worker.is_free or worker.has_ended:
                    workers.remove(worker)
                    worker.end()
            # In place of those that hung or died.
            while len(workers) < min(num_workers, len(waiting)):
                workers.append(_Worker(task, timeout_s))
    finally:
        for worker in workers:
            worker.end()


class _Worker(Generic[Job, Result]):
    """A process and what it is at."""

    def __init__(self, task: Callable[[Job], Iterator[Result]], timeout_s: float) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # A daemon ends with its parent, however the parent ends by itself.
        self._process = context.Process(target=_work, args=(task, theirs), daemon=True)
        self._process.start()
        theirs.close()  # else the pipe would not close when the process dies
        self._timeout_s = timeout_s
        self._job: tuple[Job] | None = None
        self._results: list[Result] = []
        self.deadline = math.inf
        self.is_free = False
        self.has_ended = False

    def give(self, job: Job) -> None:
        """Send a job; its time runs from now."""
        self._job, self._results = (job,), []
        self.is_free = False
        self.deadline = time.monotonic() + self._timeout_s
        # A process that died meanwhile closes the pipe, which `listen` hears.
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send(job)

    def listen(self) -> Outcome[Job, Result] | None:
        """Take one message; the outcome, if it ended the job."""
        if not self.pipe.poll():
            return self._hung() if time.monotonic() >= self.deadline else None
        try:
            message: tuple[Result] | None = self.pipe.recv()
        except (EOFError, OSError):
            return self._dead()
        if message is not None:
            self._results.append(message[0])
            self.deadline = time.monotonic() + self._timeout_s
            return None
        self.is_free, self.deadline = True, math.inf
        return self._outcome()

    def _hung(self) -> Outcome[Job, Result] | None:
        self.end()
        return self._outcome(hung=True)

    def _dead(self) -> Outcome[Job, Result] | None:
        self._process.join(ENDING_S)
        self.end()
        status = self._process.exitcode or 0
        died = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        if self._job is None:
            raise RuntimeError(f"a process ended without a job: {died}")
        return self._outcome(died=died)

    def _outcome(
        self, *, hung: bool = False, died: str | None = None
    ) -> Outcome[Job, Result] | None:
        """Of the job it had; None at the first message, before any job."""
        if self._job is None:
            return None
        [job], self._job = self._job, None
        return Outcome(job, self._results, hung=hung, died=died)

    def end(self) -> None:
        """Kill the process, whatever it is doing; twice does no harm."""
        self.has_ended, self.is_free = True, False
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _with_news(workers: Sequence[_Worker[Job, Result]]) -> list[_Worker[Job, Result]]:
    """Sleep until a process says something, dies or is past its deadline."""
    deadline = min(worker.deadline for worker in workers)
    left_s = None if math.isinf(deadline) else max(deadline - time.monotonic(), 0)
    ready = wait([worker.pipe for worker in workers], left_s)
    now = time.monotonic()
    return [worker for worker in workers if worker.pipe in ready or now >= worker.deadline]


def _work(task: Callable[[Job], Iterator[Result]], pipe: Connection) -> None:
    """What a process does: None says that it is free, (result,) is a result."""
    # Ctrl-C goes to every process of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            pipe.send(None)
            job = pipe.recv()
        except (EOFError, ConnectionError):
            return  # the parent is gone
        for result in task(job):
            pipe.send((result,))
