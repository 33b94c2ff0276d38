"""A decoder in a process of its own: it can be killed, and the machine limits what it takes."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count, islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from cdb_video.clips.base import BaseDecoder, Image, Planes, VideoDecoder, Window, errors_name
from cdb_video.clips.untrusted import MAX_FRAMES
from cdb_video.errors import DecodeError

Result = TypeVar("Result")

MEMORY_BYTES = 4 * 2**30
"""Address space that a process of an untrusted video may add to what its parent had."""
FILE_BYTES = 2**26
"""Largest file that it may write: the packet index of `MAX_FRAMES` frames has 25 MB."""
DESCRIPTORS = 16
"""Files that it may open at a time, besides those that it has."""
MAX_WORDS = 2**20
"""Bytes of a message without pixels."""


_limited = False
"""Whether this process has its limits; a process that it forks has them too, and this."""


def limit_process(*, file_bytes: int = FILE_BYTES) -> None:
    """Limit what this process may take from now on, for good; twice changes nothing."""
    global _limited
    if _limited:
        return
    _limited = True
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    # A parent that uses a GPU has mapped terabytes: only what is added is limited.
    memory = pages * resource.getpagesize() + MEMORY_BYTES
    # The limit is on their numbers: below it, so many are free.
    taken = set(map(int, os.listdir("/proc/self/fd")))
    descriptors = next(islice((n for n in count() if n not in taken), DESCRIPTORS, None))
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, descriptors),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


class ChildDecoder(BaseDecoder):
    """An open video whose decoder lives in a forked process, and whose frames come by a pipe.

    Each question has a deadline, at which the kernel ends the process, whatever it is doing. What
    it answers is numbers of a known size and a line of text: nothing that could run here.

    Args:
        path: of the video.
        open_there: opens it, in the process.
        deadline_s: seconds that opening may take, and each decode.
        limited: what the process may take is limited too.

    Raises:
        DecodeError: naming the file; also where the process died, or took too long.

    """

    def __init__(
        self,
        path: Path,
        open_there: Callable[[], VideoDecoder],
        *,
        deadline_s: float,
        limited: bool,
    ) -> None:
        self._deadline_s = deadline_s
        self._pipe, theirs = Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            self._pipe.close()
            _serve(theirs, path, open_there, deadline_s=deadline_s, limited=limited)
        theirs.close()
        self.path = path  # errors of the opening name it
        try:
            about = self._hear()
            num_frames = int(about["frames"])
            if not 0 < num_frames <= (MAX_FRAMES if limited else sys.maxsize):
                raise DecodeError(f"{path}: its process told of {num_frames} frames")
            times = torch.from_numpy(self._receive((num_frames,), np.float64))
            super().__init__(
                path,
                times=times,
                fps=float(about["fps"]),
                height=int(about["height"]),
                width=int(about["width"]),
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._reap()

    def planes(self, indices: Tensor, *, window: Window | None = None) -> Planes:
        """(T,) indices -> the planes of the window, where the decoder has them."""
        wanted, position = self._unique(indices)
        with errors_name(self.path):
            window = self._checked(window)
            about = self._ask("planes", wanted, window)
            # A window is widened to even edges.
            height, width = (int(n) for n in about["size"])
            if not (0 < height <= window.height + 2 and 0 < width <= window.width + 2):
                raise DecodeError(f"{self.path}: its process answered with another size")
            small = (len(wanted), 2, -(-height // 2), -(-width // 2))
            luma = self._receive((len(wanted), 1, height, width), np.uint8)
            chroma = self._receive(small, np.uint8)
            to_rgb = self._receive((3, 4), np.float32)
        rows = torch.tensor(position)
        return Planes(
            torch.from_numpy(luma)[rows], torch.from_numpy(chroma)[rows], torch.from_numpy(to_rgb)
        )

    def _decode(self, wanted: list[int], window: Window) -> Sequence[Image]:
        self._ask("frames", wanted, window)
        return list(self._receive((len(wanted), window.height, window.width, 3), np.uint8))

    def _ask(self, what: str, wanted: list[int], window: Window) -> dict[str, Any]:
        question = json.dumps({"what": what, "wanted": wanted, "window": window})
        try:
            self._pipe.send_bytes(question.encode())
        except OSError:
            self._lost()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        try:
            # The kernel ends the process a moment before.
            if not self._pipe.poll(self._deadline_s + 1):
                os.kill(self._pid, signal.SIGALRM)
            answer: dict[str, Any] = json.loads(self._pipe.recv_bytes(MAX_WORDS))
        except (EOFError, OSError):
            self._lost()
        if "error" in answer:
            raise DecodeError(str(answer["error"]))
        return answer

    def _receive(self, shape: tuple[int, ...], dtype: type[Any]) -> np.ndarray[Any, Any]:
        """An array of just this size."""
        array = np.empty(shape, dtype)
        try:
            got = self._pipe.recv_bytes_into(array.data.cast("B"))
        except (EOFError, OSError):
            self._lost()
        if got != array.nbytes:
            raise DecodeError(f"{self.path}: its process answered with {got} bytes")
        return array

    def _lost(self) -> NoReturn:
        self._pipe.close()
        status = self._reap()
        if status == -signal.SIGALRM:
            raise DecodeError(
                f"{self.path}: took longer than {self._deadline_s:g} s to decode "
                "(data.decode_timeout_s)"
            )
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        raise DecodeError(f"{self.path}: the process that decoded it died ({how})")

    def _reap(self) -> int:
        """Wait for its end."""
        pid, self._pid = self._pid, 0
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)


def _serve(
    pipe: Connection,
    path: Path,
    open_there: Callable[[], VideoDecoder],
    *,
    deadline_s: float,
    limited: bool,
) -> NoReturn:
    """Answer until the pipe closes: the process does nothing else."""
    status = 1
    try:
        # The parent hears Ctrl-C and closes the pipe.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        # Threads that the parent had did not come with the fork.
        torch.set_num_threads(1)
        if limited:
            limit_process()
        _Server(pipe, path, deadline_s).answer(open_there)
        status = 0
    except (EOFError, ConnectionError):
        status = 0  # the parent has closed the pipe, or is gone
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class _Server:
    """The other side of a `ChildDecoder`."""

    def __init__(self, pipe: Connection, path: Path, deadline_s: float) -> None:
        self.pipe = pipe
        self.path = path
        self.deadline_s = deadline_s

    def answer(self, open_there: Callable[[], VideoDecoder]) -> None:
        """Open, then decode what is asked for."""
        video = self._attempt(open_there)
        if video is None:
            return
        self._tell(fps=video.fps, height=video.height, width=video.width, frames=video.num_frames)
        self.pipe.send_bytes(video.times.numpy().data)
        while True:
            question = json.loads(self.pipe.recv_bytes())
            decode = partial(
                _decode_planes if question["what"] == "planes" else _decode_frames,
                video,
                torch.tensor(question["wanted"]),
                Window(*question["window"]),
            )
            parts = self._attempt(decode)
            if parts is not None:
                self._tell(size=parts[0].shape[2:])
                for part in parts:
                    self.pipe.send_bytes(part.contiguous().numpy().reshape(-1).data)

    def _attempt(self, job: Callable[[], Result]) -> Result | None:
        """What it gives in time; None: it failed, and the parent was told."""
        _set_deadline(self.deadline_s)
        try:
            with errors_name(self.path):
                return job()
        except DecodeError as error:
            self._tell(error=str(error))
        except MemoryError:
            self._tell(error=f"{self.path}: needs more memory than a video may take")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return None

    def _tell(self, **about: Any) -> None:
        self.pipe.send_bytes(json.dumps(about).encode())


def _decode_frames(video: VideoDecoder, wanted: Tensor, window: Window) -> Sequence[Tensor]:
    return [video.frames(wanted, window=window).permute(0, 2, 3, 1)]


def _decode_planes(video: VideoDecoder, wanted: Tensor, window: Window) -> Sequence[Tensor]:
    return video.planes(wanted, window=window)


def _set_deadline(seconds: float) -> None:
    """From now on, by the clock, and by the processor's time should the clock be stopped."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    soft = int(time.process_time() + seconds) + 2
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
