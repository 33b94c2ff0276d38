"""What every decoder of a video offers, and the part that they all share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import av
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdb_video.clips.sampling import TIME_TOLERANCE_S
from cdb_video.errors import DecodeError

Image = npt.NDArray[np.uint8]
"""(H, W, C), or (H, W) of a plane; views of a decoder's memory are allowed."""


class Window(NamedTuple):
    """A rectangle of the upright frame, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def within(self, outer: Window) -> Window:
        """The same rectangle, counted from the top left corner of another."""
        return self._replace(top=self.top - outer.top, left=self.left - outer.left)


class Planes(NamedTuple):
    """Frames as most files store them, brightness apart from colour: YUV 4:2:0."""

    luma: Tensor
    """(T, 1, H, W) uint8."""
    chroma: Tensor
    """(T, 2, ceil(H / 2), ceil(W / 2)) uint8."""
    to_rgb: Tensor
    """(3, 4) fp32: RGB in [0, 255], before it is clipped, is `to_rgb @ (Y, U, V, 1)`."""


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

    @property
    def height(self) -> int:
        """Of an upright frame, in pixels."""

    @property
    def width(self) -> int:
        """Of an upright frame, in pixels."""

    def index_at(self, seconds: float) -> int:
        """The first frame shown at or after a time; `num_frames` when past the last."""

    def frames(self, indices: Tensor, *, window: Window | None = None) -> Tensor:
        """(T,) indices, repeats and any order allowed -> (T, C, H, W) uint8 RGB, upright.

        With a window, the part of the same frames that it shows; what is outside is not converted.
        Stored channels last, as decoders make it: crop first, then `contiguous()` copies less.

        Raises:
            IndexError: an index is outside the video.
            ValueError: a window outside the frame.
            DecodeError: a frame does not decode.
        """

    def planes(self, indices: Tensor, *, window: Window | None = None) -> Planes:
        """As `frames`, before the conversion to RGB; `pyav` on video files alone.

        A window's chroma is widened to whole samples: to even edges.
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

    def __init__(self, path: Path, *, times: Tensor, fps: float, height: int, width: int) -> None:
        self.path = path
        self.times = times
        self.fps = fps
        self.num_frames = len(times)
        self.height = height
        self.width = width

    @abstractmethod
    def _decode(self, wanted: list[int], window: Window) -> Sequence[Image]:
        """Increasing indices of frames that exist -> an image (H, W, C) of the window each."""

    @abstractmethod
    def close(self) -> None:
        """Give back the file and the decoder's memory."""

    def index_at(self, seconds: float) -> int:
        """The first frame shown at or after a time; `num_frames` when past the last."""
        return int(torch.searchsorted(self.times, seconds - TIME_TOLERANCE_S))

    def frames(self, indices: Tensor, *, window: Window | None = None) -> Tensor:
        """(T,) indices, repeats and any order allowed -> (T, C, H, W) uint8 RGB, upright."""
        wanted, position = self._unique(indices)
        with errors_name(self.path):
            return _stack(self._decode(wanted, self._checked(window)), position)

    def planes(self, indices: Tensor, *, window: Window | None = None) -> Planes:
        """YUV planes, where a decoder has them."""
        raise DecodeError(
            f"{self.path}: data.pixels=yuv is for video files and decoder=pyav, not in memory"
        )

    def _unique(self, indices: Tensor) -> tuple[list[int], list[int]]:
        """Indices that exist, increasing, and where among them each of the given ones is."""
        if indices.ndim != 1 or indices.numel() == 0 or indices.is_floating_point():
            shape = tuple(indices.shape)
            raise ValueError(f"indices: {indices.dtype} {shape}; (T,) integers are needed")
        wanted, position = torch.unique(indices, return_inverse=True)
        for i in (int(wanted[0]), int(wanted[-1])):
            if not 0 <= i < self.num_frames:
                raise IndexError(f"{self.path}: frame {i} of a video of {self.num_frames} frames")
        return wanted.tolist(), position.tolist()

    def _checked(self, window: Window | None) -> Window:
        whole = Window(0, 0, self.height, self.width)
        if window is None:
            return whole
        fits = (
            0 <= window.top < window.top + window.height <= self.height
            and 0 <= window.left < window.left + window.width <= self.width
        )
        if not fits:
            raise ValueError(f"{window} is not inside a frame of {self.height} x {self.width}")
        return window

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def cut(image: Image, window: Window) -> Image:
    """The window of an image (H, W, ...): a view."""
    top, left, height, width = window
    return image[top : top + height, left : left + width]


def _stack(images: Sequence[Image], position: Sequence[int]) -> Tensor:
    """(T, C, H, W) of images (H, W, C), repeated as `position` says, in one copy."""
    # One thread copies 16 frames in a fraction of what torch.stack spends on starting several.
    stacked = np.stack([images[i] for i in position])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Turn any failure inside a decoder into a DecodeError of one line that names the file.

    Decoders raise IndexError, UnicodeDecodeError, EOFError, OSError and their own kinds on damaged
    files. Running out of memory is not the file's fault and stays what it is; but FFmpeg says so
    of a damaged file too, that claims a table of gigabytes.
    """
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) and not isinstance(error, av.error.FFmpegError):
            raise
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise DecodeError(f"{path}: {reason.splitlines()[0]}") from error
