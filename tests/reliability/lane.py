"""Measuring one row: in a folder of its own, and with an eye on the processes it leaves behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from tests.reliability.outcome import Outcome, Row

GRACE_S = 10.0
"""For what a row started to end by itself, once the row is done."""
LASTING = ("resource_tracker", "forkserver")
"""Processes of Python's own that end with this one."""


def adopt_orphans() -> None:
    """Make this process the parent of what its children leave behind, so that it is seen."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def measure(row: Row, count: int, seed: int, folder: Path) -> Outcome:
    """The row's outcome; a process that outlives it is a failure, and is ended."""
    before = set(_children())
    try:
        outcome = row.measure(count, seed, folder)
    except Exception as error:
        outcome = Outcome(tried=0, failures=(f"the row itself failed: {error!r}",))
    left = _left_behind(before)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    lines = [f"process {pid} was left behind: {command}" for pid, command in left.items()]
    return replace(outcome, failures=(*outcome.failures, *lines))


def _left_behind(before: set[int]) -> dict[int, str]:
    deadline = time.monotonic() + GRACE_S
    while True:
        found = {pid: command for pid, command in _children().items() if pid not in before}
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _children() -> dict[int, str]:
    """Process id -> command line of this process's running children; the dead are buried."""
    found = {}
    for pid in map(int, Path("/proc/thread-self/children").read_text().split()):
        with contextlib.suppress(ChildProcessError, FileNotFoundError, ProcessLookupError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if not any(name in command for name in LASTING) and not _is_buried(pid):
                found[pid] = command
    return found


def _is_buried(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "Z" and os.waitpid(pid, os.WNOHANG)[0] == pid
