"""A decode that hangs, or takes its process with it: ended in time, and named.

In a loader's worker the time limit is the kernel's: SIGALRM in its default form ends a process
whatever it is doing, also while a library holds the interpreter's lock for ever. Each worker writes
down what it is at before it starts, so that of a worker that is gone the parent knows the clip
(`guarded_loader`). In the training process itself (`num_workers=0`) a handler raises instead, which
a library that never gives the lock back does not let through: only a worker can be ended from
outside.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from types import FrameType
from typing import Any, Literal, TypeVar

from torch.utils.data import Dataset, get_worker_info

from cdb_video.clips.batch import Skipped
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import DecodeError

Item = TypeVar("Item")

IDLE = -1


@dataclass(frozen=True)
class DecodePolicy:
    """What happens to clips that do not decode."""

    on_error: Literal["raise", "skip"] = "raise"
    max_skipped: int = 100
    """Clips that may be skipped."""
    timeout_s: float = 60.0
    """Longest time that one clip may take, all its views together."""

    def check(self, skipped: Mapping[str, str]) -> None:
        """Count the clips left out so far: id -> reason, the newest last.

        Raises:
            DecodeError: more than may be.

        """
        if len(skipped) > self.max_skipped:
            name, reason = list(skipped.items())[-1]
            raise DecodeError(
                f"data.max_skipped={self.max_skipped}: {len(skipped)} clips did not decode; the "
                f"last is {name}: {reason}"
            )


RAISE = DecodePolicy()
"""The first clip that does not decode is an error."""


class Posts:
    """What each worker is at: two numbers a worker, in memory that all processes share."""

    def __init__(self, num_workers: int) -> None:
        self._numbers = RawArray("q", 2 * num_workers)

    def set(self, worker: int, index: int) -> None:
        """In the worker."""
        self._numbers[2 * worker + 1] = index
        self._numbers[2 * worker] = os.getpid()

    def items(self) -> list[tuple[int, int]]:
        """In the parent: (pid, index) of the workers that have begun."""
        numbers = self._numbers[:]
        return [(pid, index) for pid, index in zip(numbers[::2], numbers[1::2], strict=True) if pid]

    def clear(self) -> None:
        """No worker."""
        self._numbers[:] = [0] * len(self._numbers)


class Guarded(Dataset[Item | Skipped]):
    """Gives what does not decode as a value: raised in a worker it would be a page of traceback."""

    def __init__(
        self,
        dataset: Dataset[Item],
        records: Sequence[VideoRecord],
        timeout_s: float,
        num_workers: int,
    ) -> None:
        self.dataset = dataset
        self.records = records
        self.timeout_s = timeout_s
        self.posts = Posts(num_workers)
        self.lost: dict[int, str] = {}
        """Index -> reason: clips that took too long or ended a worker; not to be tried again."""

    def __getitem__(self, key: Any) -> Item | Skipped:
        index = key[1] if isinstance(key, tuple) else key
        if index in self.lost:
            return Skipped(index, self.lost[index])
        try:
            with self._limit(index):
                return self.dataset[key]
        except DecodeError as error:
            if isinstance(error, TookTooLongError):
                self.lost[index] = str(error)
            return Skipped(index, str(error))

    def _limit(self, index: int) -> AbstractContextManager[None]:
        worker = get_worker_info()
        if worker is not None:
            return self._posted(worker.id, index)
        return time_limit(
            self.timeout_s, lambda: took_too_long(self.records[index], self.timeout_s)
        )

    @contextmanager
    def _posted(self, worker: int, index: int) -> Iterator[None]:
        # The default, whatever the parent or a library has set: the kernel ends the process.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        # The parent's handler came with the fork, and a decoder may have a process of its own.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.posts.set(worker, index)
        signal.setitimer(signal.ITIMER_REAL, self.timeout_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.posts.set(worker, IDLE)


class TookTooLongError(DecodeError):
    """Raised by `time_limit`."""


@contextmanager
def time_limit(seconds: float, message: Callable[[], str]) -> Iterator[None]:
    """Raise an error in the block when it takes longer; nothing outside of the main thread.

    A timer and handler of somebody else's go on after it.

    Raises:
        TookTooLongError: with the message.

    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise TookTooLongError(message())

    previous = signal.signal(signal.SIGALRM, expire)
    start = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous or signal.SIG_DFL)
        if left:
            left = max(left - (time.monotonic() - start), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def took_too_long(record: VideoRecord, timeout_s: float) -> str:
    """The reason of a clip that was ended at the time limit."""
    return (
        f"{record.path}: clip {record.id} took longer than {timeout_s:g} s to decode "
        "(data.decode_timeout_s)"
    )
