"""What the processes of test_pool do. A module of its own, without torch: they start quickly."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path


def read(file: Path) -> Iterator[str]:
    """The content of a file; a FIFO that nobody writes to blocks for ever."""
    yield "opening"
    yield file.read_text()


def end_by(signal_number: int) -> Iterator[str]:
    """End as an abort in C or the system's out-of-memory killer would end it."""
    yield "alive"
    if signal_number:
        os.kill(os.getpid(), signal_number)


def tick(times: int) -> Iterator[int]:
    """A sign of life now and then."""
    for i in range(times):
        time.sleep(0.3)
        yield i


def wait_for_ever(pid_file: Path) -> Iterator[None]:
    """Write down who waits."""
    pid_file.write_text(str(os.getpid()))
    time.sleep(600)
    yield
