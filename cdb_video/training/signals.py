"""SIGTERM and SIGUSR1 ask a run to save and stop; nothing is done in the handler itself.

A scheduler that takes a machine back, and Slurm before a job's time is up, send one of them. A save
in the middle of a step, or of another save, could not be right.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first one received."""

    @property
    def received(self) -> bool:
        """True from the first signal on."""
        return self.signal is not None

    @property
    def by(self) -> str:
        """What asked, of a run that is stopped."""
        return self.signal.name if self.signal else "a signal to another rank"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals as requests inside the block; elsewhere they do what they did.

        Outside of the main thread, where Python lets nobody set a handler, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
