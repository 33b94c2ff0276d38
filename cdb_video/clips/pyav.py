"""The default decoder: exact frame numbers by presentation time, through PyAV (FFmpeg)."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import av
import torch
from torch import Tensor

from cdb_video.clips.base import BaseDecoder, Image, Planes, Window, errors_name
from cdb_video.clips.convert import ToPlanes, ToRgb
from cdb_video.clips.index import FrameIndex, decoded_index, open_container, packet_index
from cdb_video.clips.index_folder import IndexFolder
from cdb_video.clips.untrusted import refuse_size
from cdb_video.errors import DecodeError

Taken = TypeVar("Taken")

MAX_INDICES = 64
"""Indices kept in a process, the latest used; that of a 20-minute video takes about 1 MB."""
_INDICES: OrderedDict[tuple[Path, int, int], FrameIndex] = OrderedDict()
_NOTHING: frozenset[int] = frozenset()


class PyavDecoder(BaseDecoder):
    """Finds frames by presentation time, from the key frame before them.

    Packets that no other frame is decoded from are left out, but for the wanted ones. Neither
    seeks nor timestamps are trusted blindly: decoding starts at the very packet of that key frame,
    and each frame on the way must be the next of the index. Else it is sought from further back,
    then every packet is decoded from an earlier key frame, then from the start of the file, then
    the frames are taken in order.
    """

    def __init__(
        self, path: Path, *, index_folder: IndexFolder | None = None, untrusted: bool = False
    ) -> None:
        self._untrusted = untrusted
        self._container, self._stream = open_container(path, untrusted=untrusted)
        try:
            self._index = index = self._find_index(path, index_folder)
            if untrusted:  # the header may have told less
                size = {"height": index.height, "width": index.width}
                refuse_size(path, **size, num_frames=len(index.times))
        except BaseException:
            self._container.close()
            raise
        super().__init__(
            path, times=index.times, fps=index.fps, height=index.height, width=index.width
        )

    def _find_index(self, path: Path, folder: IndexFolder | None) -> FrameIndex:
        """The file's index, kept for the next opening: long videos have many segments."""
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        index = _INDICES.get(key) or (folder.find(path) if folder else None)
        if index is None:
            index = packet_index(self._container, self._stream)
            self._reopen(path)
            if index is None:
                index = decoded_index(self._container, self._stream)
            if folder:
                folder.keep(path, index, status)
        _INDICES[key] = index
        if len(_INDICES) > MAX_INDICES:
            _INDICES.popitem(last=False)
        _INDICES.move_to_end(key)
        return index

    def close(self) -> None:
        """Give back the file and the decoder's memory."""
        self._container.close()

    def _decode(self, wanted: list[int], window: Window) -> Sequence[Image]:
        return self._take(wanted, ToRgb(window, self.height, self.width))

    def planes(self, indices: Tensor, *, window: Window | None = None) -> Planes:
        """(T,) indices, repeats and any order allowed -> the planes of the window."""
        wanted, position = self._unique(indices)
        with errors_name(self.path):
            to_planes = ToPlanes(self._checked(window), self.height, self.width)
            return to_planes.stack(self._take(wanted, to_planes), position)

    def _take(self, wanted: list[int], convert: Callable[[av.VideoFrame], Taken]) -> list[Taken]:
        taken: list[Taken] = []
        for run in self._runs(wanted):
            found = None if self._index.by_order else self._decode_run(run, convert)
            taken += self._decode_in_order(run, convert) if found is None else found
        return taken

    def _runs(self, wanted: list[int]) -> list[list[int]]:
        """Split where at least one whole group of pictures can be skipped by a seek."""
        if self._index.by_order:
            return [wanted]
        key = self._index.key[torch.tensor(wanted)].tolist()
        runs = [[wanted[0]]]
        for (before, after), i in zip(pairwise(key), wanted[1:], strict=True):
            if after > before + 1:
                runs.append([])
            runs[-1].append(i)
        return runs

    def _decode_run(
        self, run: list[int], convert: Callable[[av.VideoFrame], Taken]
    ) -> list[Taken] | None:
        """What is taken of a run's frames, found by their times; None if one does not come out."""
        key = int(self._index.key[run[0]])
        dropped = self._droppable(key, run)
        # MPEG streams are sought by the order of decoding, and so from one key frame earlier.
        attempts = [(key, key, dropped), (key - 1, key, dropped), (key - 1, key - 1, _NOTHING)]
        for seek_row, row, without in attempts:
            if seek_row < 0:
                continue
            frames = self._frames_from_key(seek_row, row, without)
            if (found := self._match(frames, run, without, convert)) is not None:
                return found
        return self._match(self._frames_from_start(), run, _NOTHING, convert)

    def _droppable(self, key: int, run: list[int]) -> frozenset[int]:
        """Times of frames of the run's groups of pictures that need not be decoded."""
        first = int(torch.searchsorted(self._index.key, key))
        unwanted = self._index.droppable[first : run[-1]].clone()
        unwanted[torch.tensor(run[:-1], dtype=torch.int64) - first] = False
        return frozenset(self._index.pts[first : run[-1]][unwanted].tolist())

    def _match(
        self,
        frames: Iterator[av.VideoFrame],
        run: list[int],
        without: Collection[int],
        convert: Callable[[av.VideoFrame], Taken],
    ) -> list[Taken] | None:
        taken: list[Taken] = []
        try:
            for i, frame in self._numbered(frames, without):
                if i == run[len(taken)] and not frame.is_corrupt:
                    taken.append(convert(frame))
                    if len(taken) == len(run):
                        return taken
                elif i >= run[len(taken)]:
                    return None
        except av.error.FFmpegError:
            return None  # the last attempt, in order, does not hide it
        return None

    def _numbered(
        self, frames: Iterator[av.VideoFrame], without: Collection[int]
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Number frames by their times, as long as they follow the index without a gap."""
        pts = self._index.pts.numpy()
        i = -1
        for frame in frames:
            if frame.pts is None:
                return
            i = bisect_left(pts, frame.pts) if i < 0 else i + 1
            while i < len(pts) and pts[i] in without:
                i += 1
            if i == len(pts) or pts[i] != frame.pts:
                return
            yield i, frame

    def _frames_from_key(
        self, seek_row: int, row: int, without: Collection[int]
    ) -> Iterator[av.VideoFrame]:
        key_pts = int(self._index.key_pts[row])
        self._container.seek(int(self._index.key_pts[seek_row]), stream=self._stream)
        started = False
        for packet in self._container.demux(self._stream):
            if packet.is_keyframe and packet.pts is not None and not started:
                if packet.pts > key_pts:  # the seek went too far, as it may in MPEG streams
                    return
                started = packet.pts == key_pts
            if started and packet.pts not in without:
                yield from packet.decode()

    def _frames_from_start(self) -> Iterator[av.VideoFrame]:
        # Not every container can seek back to its start; opened again, each is there.
        self._reopen(self.path)
        yield from self._container.decode(self._stream)

    def _decode_in_order(
        self, run: list[int], convert: Callable[[av.VideoFrame], Taken]
    ) -> list[Taken]:
        """What is taken of the frames, found by their place in the order of decoding."""
        if not self._index.by_order:
            self._leave_times()
        taken: list[Taken] = []
        for i, frame in enumerate(self._frames_from_start()):
            if i == run[len(taken)]:
                if frame.is_corrupt:
                    raise DecodeError(f"{self.path}: frame {i} of {self.num_frames} is damaged")
                taken.append(convert(frame))
                if len(taken) == len(run):
                    return taken
        raise DecodeError(
            f"{self.path}: frame {run[len(taken)]} of {self.num_frames} does not decode"
        )

    def _leave_times(self) -> None:
        """Go over to order, if as many frames decode as the packets told: else no number holds."""
        decoded = sum(1 for _ in self._frames_from_start())
        if decoded != self.num_frames:
            raise DecodeError(
                f"{self.path}: damaged: {decoded} frames decode of {self.num_frames} in the file"
            )
        none = self._index.pts[:0]
        self._index = replace(self._index, pts=none, key=none, key_pts=none, droppable=none.bool())

    def _reopen(self, path: Path) -> None:
        self._container.close()
        self._container, self._stream = open_container(path, untrusted=self._untrusted)
