"""What every decoder of a video offers, and the part that they all share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from cdb_video.clips.sampling import TIME_TOLERANCE_S
from cdb_video.errors import DecodeError


class VideoDecoder(Protocol):
    """An open video, a context manager; opened in the process that reads it, not before a fork."""

    @property
    def num_frames(self) -> int:
        """Frames that can be shown, not what the header claims."""

    @property
    def fps(self) -> float:
        """Mean frames a second; where the rate varies, trust `times`."""

    @property
    def times(self) -> Tensor:
        """(num_frames,) float64 seconds from the first shown frame, increasing."""

    def index_at(self, seconds: float) -> int:
        """The first frame shown at or after a time; `num_frames` when past the last."""

    def frames(self, indices: Tensor) -> Tensor:
        """(T,) indices, repeats and any order allowed -> (T, C, H, W) uint8 RGB, upright.

        Stored channels last, as decoders make it: crop first, then `contiguous()` copies less.

        Raises:
            IndexError: an index is outside the video.
            DecodeError: a frame does not decode.
        """

    def close(self) -> None:
        """Give back the file and the decoder's memory."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class BaseDecoder(ABC):
    """Checks indices, decodes each frame once, and turns every failure into a DecodeError."""

    def __init__(self, path: Path, *, times: Tensor, fps: float) -> None:
        self.path = path
        self.times = times
        self.fps = fps
        self.num_frames = len(times)

    @abstractmethod
    def _decode(self, wanted: list[int]) -> Tensor:
        """Increasing indices of frames that exist -> (len(wanted), C, H, W) uint8."""

    @abstractmethod
    def close(self) -> None:
        """Give back the file and the decoder's memory."""

    def index_at(self, seconds: float) -> int:
        """The first frame shown at or after a time; `num_frames` when past the last."""
        return int(torch.searchsorted(self.times, seconds - TIME_TOLERANCE_S))

    def frames(self, indices: Tensor) -> Tensor:
        """(T,) indices, repeats and any order allowed -> (T, C, H, W) uint8 RGB, upright."""
        if indices.ndim != 1 or indices.numel() == 0 or indices.is_floating_point():
            shape = tuple(indices.shape)
            raise ValueError(f"indices: {indices.dtype} {shape}; (T,) integers are needed")
        wanted, position = torch.unique(indices, return_inverse=True)
        for i in (int(wanted[0]), int(wanted[-1])):
            if not 0 <= i < self.num_frames:
                raise IndexError(f"{self.path}: frame {i} of a video of {self.num_frames} frames")
        with errors_name(self.path):
            decoded = self._decode(wanted.tolist())
        # A clip in order is the common case: it needs no second copy.
        return decoded if torch.equal(wanted, indices) else decoded[position]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Turn any failure inside a decoder into a DecodeError of one line that names the file.

    Decoders raise IndexError, UnicodeDecodeError, EOFError, OSError and their own kinds on damaged
    files. Running out of memory is not the file's fault and stays what it is.
    """
    try:
        yield
    except (DecodeError, MemoryError):
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise DecodeError(f"{path}: {reason.splitlines()[0]}") from error
