"""An attack is tried twice: on the package, and on a careless reader that proves it is sharp."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cdb_video.errors import UserError
from tests.conftest import write_coloured_video

LIMIT_S = 60.0
BOMB_BYTES = 200 * 2**20
"""What reading a bomb may add to a process; a careless reader adds more, or runs out of memory."""
ADDRESS_SPACE = 2**30
"""That the process of an attack may add, so that a bomb does not take the machine."""


@dataclass(frozen=True)
class Place:
    """Where an attack is made: `root` is the data, `outside` is not to be read."""

    folder: Path
    url: str
    """A server's that counts requests."""

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def outside(self) -> Path:
        return self.folder / "outside"

    @property
    def canary(self) -> Path:
        """A file that a payload writes."""
        return self.folder / "executed"

    def make(self) -> None:
        """`inside.mp4` is green, `secret.mp4` and `secret.ts` are red."""
        self.root.mkdir(parents=True)
        self.outside.mkdir()
        write_coloured_video(self.root / "inside.mp4", channel=1, level=200)
        for name in ("secret.mp4", "secret.ts"):
            write_coloured_video(self.outside / name, channel=0, level=200)


@dataclass(frozen=True)
class Attack:
    """A hostile input, a door of the package that it is put before, and a careless reader."""

    kind: str
    name: str
    make: Callable[[Place], Path]
    """Writes the input."""
    package: Callable[[Path, Place], object]
    careless: Callable[[Path, Place], object]
    """What either returns is looked at: a red frame or the word "stolen" came from outside."""


@dataclass(frozen=True)
class Trial:
    """What came of it."""

    reached: bool
    """Something ran, was read outside, was fetched, or filled the memory."""
    how: str
    """A line."""
    refused: bool = False
    """By an error of ours, in one line."""


def attempt(
    reader: Callable[[Path, Place], object], given: Path, place: Place, hits: Callable[[], int]
) -> Trial:
    """Let a reader read, in a process of its own."""
    before = hits()
    place.canary.unlink(missing_ok=True)
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(receive)
            _in_child(reader, given, place, send)
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        answer = json.loads(pipe.read() or b"{}")
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    how = str(answer.get("how") or f"its process ended with {code}")
    for reached, what in (
        (place.canary.exists(), "ran a payload"),
        (hits() > before, "fetched a URL"),
        (answer.get("outside", False), "read outside of the root"),
        (answer.get("bytes", 0) > BOMB_BYTES or answer.get("full", False), "filled the memory"),
        # No answer: killed by the alarm, or for memory.
        (not answer, "did not come back"),
    ):
        if reached:
            return Trial(True, f"{what}: {how}")
    return Trial(False, how, refused=bool(answer.get("refused")))


def _in_child(
    reader: Callable[[Path, Place], object], given: Path, place: Place, send: int
) -> None:
    faulthandler.disable()  # a careless reader may crash, as it is to
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(LIMIT_S))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is the present one
    start = memory("VmHWM")
    answer: dict[str, object] = {}
    try:
        result = reader(given, place)
        answer = {"how": f"gave {str(result)[:80]!r}", "outside": is_outside(result)}
    except UserError as error:
        answer = {"how": str(error)[:300], "refused": "\n" not in str(error)}
        answer["outside"] = "stolen" in str(error)
    except MemoryError:
        answer = {"how": "no memory left", "full": True}
    except Exception as error:
        full = "allocate" in str(error) or isinstance(error.__cause__, MemoryError)
        answer = {"how": f"{type(error).__name__}: {error}"[:300], "full": full}
    answer["bytes"] = memory("VmHWM") - start
    os.write(send, json.dumps(answer).encode())


def memory(name: str) -> int:
    """Bytes of a line of this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def is_outside(result: object) -> bool:
    """Red frames (T, C, H, W), or a text that only a file outside has."""
    if isinstance(result, Tensor) and result.ndim == 4:
        return bool(result[:, 0].float().mean() > 150 > result[:, 1].float().mean())
    return "stolen" in str(result)
