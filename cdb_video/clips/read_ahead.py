"""A video whose frames are known to be wanted: all are decoded in one go, at the first question."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cdb_video.clips.base import BaseDecoder, Image, Planes, VideoDecoder, Window


class ReadAhead(BaseDecoder):
    """A part of an open video; segments in it are opened by giving this, as closing keeps it open.

    Args:
        path: of the video.
        video: open.
        wanted: (L,) increasing indices of the frames that will be asked for, and no others.

    """

    def __init__(self, path: Path, video: VideoDecoder, wanted: Tensor) -> None:
        super().__init__(
            path, times=video.times, fps=video.fps, height=video.height, width=video.width
        )
        self._video = video
        self._wanted = wanted
        self._images: dict[Window, Tensor] = {}
        self._planes: dict[Window, Planes] = {}

    def _decode(self, wanted: list[int], window: Window) -> list[Image]:
        if window not in self._images:
            frames = self._video.frames(self._wanted, window=window)
            self._images = {window: frames.permute(0, 2, 3, 1)}
        return [self._images[window][row].numpy() for row in self._rows(torch.tensor(wanted))]

    def planes(self, indices: Tensor, *, window: Window | None = None) -> Planes:
        """(T,) indices -> the planes of the window."""
        window = self._checked(window)
        if window not in self._planes:
            self._planes = {window: self._video.planes(self._wanted, window=window)}
        luma, chroma, to_rgb = self._planes[window]
        rows = self._rows(indices)
        return Planes(luma[rows], chroma[rows], to_rgb)

    def _rows(self, indices: Tensor) -> Tensor:
        rows = torch.searchsorted(self._wanted, indices).clamp(max=len(self._wanted) - 1)
        if not torch.equal(self._wanted[rows], indices):
            raise IndexError(f"{self.path}: a frame that was not read ahead")
        return rows

    def close(self) -> None:
        """Keeps the frames: many segments of the part are opened one after the other."""
