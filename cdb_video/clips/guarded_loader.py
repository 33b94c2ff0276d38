"""A DataLoader whose workers may hang or die: the clip is named, and the rest goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

from cdb_video.clips.batch import Skipped
from cdb_video.clips.watchdog import IDLE, DecodePolicy, Guarded, took_too_long
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.distributed import end_with_parent
from cdb_video.errors import DecodeError, RunError

ENDING_S = 5.0
"""How long a worker may take to end that closed its pipe."""

Item = TypeVar("Item")
Collated = TypeVar("Collated")
Plan = Sequence[Sequence[Any]]
"""The keys of each batch: an index of a record, or a tuple whose second number is one."""


class GuardedLoader(Generic[Item, Collated]):
    """A DataLoader that outlives its workers.

    torch's own raises when a worker is gone, and is then of no more use; it does not know the
    sample. Here the clip is named, and with `on_error="skip"` the batch is made again without it,
    and without a second try of it, by new workers.

    Args:
        dataset: raises DecodeError for what does not decode.
        records: of the dataset, for their names.
        collate: items, perhaps none, -> a batch.
        policy: see `DecodePolicy`.
        num_workers: decoding processes; they live as long as the loader.
        pin_memory: whether batches are to go to a GPU.

    """

    def __init__(
        self,
        dataset: Dataset[Item],
        records: Sequence[VideoRecord],
        *,
        collate: Callable[[list[Item]], Collated],
        policy: DecodePolicy,
        num_workers: int,
        pin_memory: bool = False,
    ) -> None:
        self.records = records
        self.policy = policy
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.skipped: dict[str, str] = {}
        """Id of every record left out so far -> the reason."""
        self._guarded = Guarded(dataset, records, policy.timeout_s, num_workers)
        self._collate = _Collate(collate)
        self._plan: list[list[Any]] = []
        self._passes = 0
        self._workers: dict[int, BaseProcess] = {}
        self._waiting = False
        self._loader = self._new_loader()
        if num_workers:
            # At the process's end multiprocessing would ask workers to end by a signal that they
            # ignore, and wait for them; what has a priority comes before that.
            Finalize(None, _end, args=(self._workers,), exitpriority=10)

    def batches(self, plan: Plan) -> Iterator[tuple[Collated, tuple[Skipped, ...]]]:
        """A batch for each entry of the plan, in its order, and what is left out of it.

        Raises:
            DecodeError: naming the file, unless clips are skipped; or too many were.
            RunError: a worker was ended from outside.

        """
        iterator: Iterator[Any] | None = None
        self._passes += 1
        this_pass = self._passes
        done = 0
        while done < len(plan):
            if self._passes != this_pass:
                raise RuntimeError("another pass over this loader has begun: one at a time")
            found = lost = None
            try:
                with self._waking():
                    iterator = self._started(plan[done:]) if iterator is None else iterator
                    found = next(iterator)
            except Exception as error:
                if self._workers and isinstance(error, OSError | EOFError):
                    self._await_end()
                lost = self._lost()
                if lost is None:
                    raise
            if found is None:
                # Out of the except block: an error that held torch's would hold its workers.
                iterator = None
                self._restart(lost or ())
                continue
            batch, skipped = found
            self._check(skipped)
            done += 1
            yield batch, skipped

    def _started(self, plan: Plan) -> Iterator[Any]:
        self._plan[:] = map(list, plan)
        before = set(multiprocessing.active_children())
        iterator = iter(self._loader)
        started = set(multiprocessing.active_children()) - before
        self._workers.update((process.pid or 0, process) for process in started)
        return iterator

    def _restart(self, lost: Sequence[Skipped]) -> None:
        _end(self._workers)
        self._guarded.posts.clear()
        self._guarded.lost.update((one.index, one.message) for one in lost)
        self._loader = self._new_loader()
        self._check(lost)

    def _new_loader(self) -> DataLoader[Any]:
        options: dict[str, Any] = {}
        if self.num_workers:
            options = {"persistent_workers": True, "prefetch_factor": 2}
            options["worker_init_fn"] = _outlive_signals
            # Python 3.14's default starts workers from another process, which then is their parent:
            # no signal would tell this one of their end.
            if multiprocessing.get_start_method(allow_none=True) is None:
                options["multiprocessing_context"] = "fork"
        return DataLoader(
            self._guarded,
            batch_sampler=self._plan,
            collate_fn=self._collate,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            **options,
        )

    def _check(self, skipped: Sequence[Skipped]) -> None:
        if skipped and self.policy.on_error == "raise":
            raise DecodeError(skipped[0].message)
        for one in skipped:
            self.skipped.setdefault(self.records[one.index].id, one.message)
        if skipped:
            self.policy.check(self.skipped)

    @contextmanager
    def _waking(self) -> Iterator[None]:
        """Wait for a batch, and be woken when a worker ends.

        torch finds such a worker every 5 s, and sets a handler of its own for SIGCHLD that raises
        wherever the main thread happens to be, in the middle of a step too. This one raises in the
        block alone, and puts back what was there: torch's is gone after the first block.
        """
        if not self.num_workers or threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.getsignal(signal.SIGCHLD)

        def wake(number: int, frame: FrameType | None) -> None:
            if self._waiting and self._ended():
                self._waiting = False
                raise _WorkerEndedError
            if callable(previous):
                previous(number, frame)

        signal.signal(signal.SIGCHLD, wake)
        try:
            try:
                self._waiting = True
                if self._ended():
                    raise _WorkerEndedError
                yield
            finally:
                self._waiting = False
        finally:
            signal.signal(signal.SIGCHLD, previous or signal.SIG_DFL)

    def _await_end(self) -> None:
        """Of the worker that broke off in the middle of a tensor: its pipe ends before it does."""
        ready = wait([process.sentinel for process in self._workers.values()], ENDING_S)
        for process in self._workers.values():
            if process.sentinel in ready:  # a process closes its files before it is gone
                process.join(ENDING_S)

    def _ended(self) -> dict[int, int | None]:
        """Pid -> exit status of the workers that are gone; None: it was not to be had."""
        ended = {pid: process.exitcode for pid, process in self._workers.items()}
        ended = {pid: status for pid, status in ended.items() if status is not None}
        # One that was gone before its process could be kept: torch waited for it.
        early = [pid for pid, _ in self._guarded.posts.items() if pid not in self._workers]
        return ended | {pid: None for pid in early if not _exists(pid)}

    def _lost(self) -> list[Skipped] | None:
        """The clips that workers were at when they ended; None: no worker ended.

        Raises:
            RunError: one was ended from outside, or between two clips.

        """
        ended = self._ended()
        if blameless := [pid for pid, status in ended.items() if status in _BLAMELESS]:
            how = _name(*[ended[pid] for pid in blameless])
            raise RunError(
                f"a loader's process was ended from outside ({how}); is there memory, "
                f"and room in /dev/shm, for data.num_workers processes?{self._at(blameless)}"
            )
        lost = [
            Skipped(index, self._reason(self.records[index], ended[pid]))
            for pid, index in self._guarded.posts.items()
            if pid in ended and index != IDLE
        ]
        if ended and not lost:
            raise RunError(
                f"a loader's process ended between two clips ({_name(*ended.values())}); is there "
                "memory, and room in /dev/shm, for data.num_workers processes?"
            )
        return lost or None

    def _at(self, pids: Sequence[int]) -> str:
        """What ended processes were at, which may be what took the memory."""
        at = [
            f"{self.records[index].path} (clip {self.records[index].id})"
            for pid, index in self._guarded.posts.items()
            if pid in pids and index != IDLE
        ]
        return f" It was decoding {' and '.join(at)}" if at else ""

    def _reason(self, record: VideoRecord, status: int | None) -> str:
        if status == -signal.SIGALRM:
            return took_too_long(record, self.policy.timeout_s)
        return f"{record.path}: the process that decoded clip {record.id} died ({_name(status)})"


def _end(workers: dict[int, BaseProcess]) -> None:
    # Killed, and not asked to end: one may hang.
    for process in workers.values():
        process.kill()
    for process in workers.values():
        process.join()
    workers.clear()


def _outlive_signals(worker: int) -> None:
    """In a worker: a request to stop that goes to every process of a job is the trainer's.

    It needs its clips until the step is done. The kernel ends a worker whose trainer is gone.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)


_BLAMELESS = frozenset({0, -signal.SIGKILL, -signal.SIGBUS, -signal.SIGTERM})
"""What the machine does to processes (no memory left, a full /dev/shm), whatever they are at."""


class _WorkerEndedError(RuntimeError):
    """Wakes the parent."""


class _Collate(Generic[Item, Collated]):
    """A batch of what decoded, and what did not."""

    def __init__(self, collate: Callable[[list[Item]], Collated]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Item | Skipped]) -> tuple[Collated, tuple[Skipped, ...]]:
        skipped = tuple(item for item in items if isinstance(item, Skipped))
        return self.collate([item for item in items if not isinstance(item, Skipped)]), skipped


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _name(*statuses: int | None) -> str:
    names = [
        "it ended at once"
        if status is None
        else signal.Signals(-status).name
        if status < 0
        else f"exit status {status}"
        for status in statuses
    ]
    return ", ".join(names)
