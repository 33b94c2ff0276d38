"""The default decoder: exact frame numbers by presentation time, through PyAV (FFmpeg)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
from av.video.reformatter import Interpolation
from torch import Tensor

from cdb_video.clips.base import BaseDecoder
from cdb_video.clips.index import FrameIndex, decoded_index, open_container, packet_index
from cdb_video.errors import DecodeError

Image = npt.NDArray[np.uint8]

MAX_INDICES = 256
"""Indices kept in a process, the latest used; that of a 20-minute video takes about 1 MB."""
_INDICES: OrderedDict[tuple[Path, int, int], FrameIndex] = OrderedDict()


class PyavDecoder(BaseDecoder):
    """Finds frames by presentation time, from the key frame before them.

    Neither seeks nor timestamps are trusted blindly: decoding starts at the very packet of that key
    frame, and each frame on the way must be the next of the index. Else an earlier key frame is
    tried, then the start of the file, then the frames in order.
    """

    def __init__(self, path: Path) -> None:
        self._container, self._stream = open_container(path)
        try:
            self._index = index = self._find_index(path)
        except BaseException:
            self._container.close()
            raise
        super().__init__(path, times=index.times, fps=index.fps)

    def _find_index(self, path: Path) -> FrameIndex:
        """The file's index, kept for the next opening: long videos have many segments."""
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        index = _INDICES.get(key)
        if index is None:
            index = packet_index(self._container, self._stream)
            if index is None:
                self._reopen(path)
                index = decoded_index(self._container, self._stream)
            _INDICES[key] = index
            if len(_INDICES) > MAX_INDICES:
                _INDICES.popitem(last=False)
        _INDICES.move_to_end(key)
        return index

    def close(self) -> None:
        """Give back the file and the decoder's memory."""
        self._container.close()

    def _decode(self, wanted: list[int]) -> Tensor:
        frames: list[Image] = []
        for run in self._runs(wanted):
            found = None if self._index.by_order else self._decode_run(run)
            frames += self._decode_in_order(run) if found is None else found
        # One thread copies 16 frames in a fraction of what torch.stack spends on starting several.
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)

    def _runs(self, wanted: list[int]) -> list[list[int]]:
        """Split where at least one whole group of pictures can be skipped by a seek."""
        if self._index.by_order:
            return [wanted]
        runs = [[wanted[0]]]
        for before, i in pairwise(wanted):
            if self._index.key[i] > self._index.key[before] + 1:
                runs.append([])
            runs[-1].append(i)
        return runs

    def _decode_run(self, run: list[int]) -> list[Image] | None:
        """The frames (H, W, C) of a run by their times; None if one does not come out."""
        key = int(self._index.key[run[0]])
        for row in (key, key - 1):
            if row >= 0 and (found := self._match(self._frames_from_key(row), run)) is not None:
                return found
        return self._match(self._frames_from_start(), run)

    def _match(self, frames: Iterator[av.VideoFrame], run: list[int]) -> list[Image] | None:
        found: list[Image] = []
        try:
            for i, frame in self._numbered(frames):
                if i == run[len(found)] and not frame.is_corrupt:
                    found.append(_rgb(frame))
                    if len(found) == len(run):
                        return found
                elif i >= run[len(found)]:
                    return None
        except av.error.FFmpegError:
            return None  # the last attempt, in order, does not hide it
        return None

    def _numbered(self, frames: Iterator[av.VideoFrame]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Number frames by their times, as long as they follow the index without a gap."""
        pts = self._index.pts
        i = -1
        for frame in frames:
            if frame.pts is None:
                return
            i = int(torch.searchsorted(pts, frame.pts)) if i < 0 else i + 1
            if i == len(pts) or pts[i] != frame.pts:
                return
            yield i, frame

    def _frames_from_key(self, row: int) -> Iterator[av.VideoFrame]:
        key_pts = int(self._index.key_pts[row])
        self._container.seek(key_pts, stream=self._stream)
        started = False
        for packet in self._container.demux(self._stream):
            if packet.is_keyframe and packet.pts is not None and not started:
                if packet.pts > key_pts:  # the seek went too far, as it may in MPEG streams
                    return
                started = packet.pts == key_pts
            if started:
                yield from packet.decode()

    def _frames_from_start(self) -> Iterator[av.VideoFrame]:
        # Not every container can seek back to its start; opened again, each is there.
        self._reopen(self.path)
        yield from self._container.decode(self._stream)

    def _decode_in_order(self, run: list[int]) -> list[Image]:
        """The frames (H, W, C) by their place in the order of decoding."""
        if not self._index.by_order:
            self._leave_times()
        found: list[Image] = []
        for i, frame in enumerate(self._frames_from_start()):
            if i == run[len(found)]:
                if frame.is_corrupt:
                    raise DecodeError(f"{self.path}: frame {i} of {self.num_frames} is damaged")
                found.append(_rgb(frame))
                if len(found) == len(run):
                    return found
        raise DecodeError(
            f"{self.path}: frame {run[len(found)]} of {self.num_frames} does not decode"
        )

    def _leave_times(self) -> None:
        """Go over to order, if as many frames decode as the packets told: else no number holds."""
        decoded = sum(1 for _ in self._frames_from_start())
        if decoded != self.num_frames:
            raise DecodeError(
                f"{self.path}: damaged: {decoded} frames decode of {self.num_frames} in the file"
            )
        none = self._index.pts[:0]
        self._index = replace(self._index, pts=none, key=none, key_pts=none)

    def _reopen(self, path: Path) -> None:
        self._container.close()
        self._container, self._stream = open_container(path)


def _rgb(frame: av.VideoFrame) -> Image:
    """(H, W, C) uint8, upright.

    The matrix and range are those that the file is tagged with (BT.601 where it is not). Bicubic
    is what FFmpeg's own filters use to widen the chroma of odd sizes and deep colours; one thread,
    as the default threads cost a third more.
    """
    image = frame.to_ndarray(format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
    # Players know quarter turns; FFmpeg's angle is counter-clockwise, as rot90's.
    return np.rot90(image, round(frame.rotation / 90))
