"""The checks of one video file and its segments, made in a process that it may take down."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cdb_video.clips.base import VideoDecoder, errors_name
from cdb_video.clips.child import limit_process
from cdb_video.clips.dataset import ClipSampler, RecordOpener, open_record, sample_generator
from cdb_video.clips.images import is_image
from cdb_video.clips.index import open_container
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import DecodeError
from cdb_video.prepare.findings import Finding

FRAMES_AT_A_TIME = 64
"""Of a full check: more would hold gigabytes, fewer would decode each group of pictures oftener."""
OVERSHOOT_S = 1.0
"""Seconds that a segment or a header may claim past the last frame: some round up, some pad."""
BYTES_AT_A_TIME = 2**24
AV_TIME_BASE = 1_000_000
"""Units of a container's duration a second, in FFmpeg."""


@dataclass(frozen=True)
class VideoFile:
    """A file, or a folder of frames, and who uses it."""

    path: Path
    records: tuple[tuple[str, VideoRecord], ...]
    """(role, record) of every split."""
    is_hashed: bool = False
    """Another file is of the same size."""
    timing_seed: int | None = None
    """Time the decoding of a clip, drawn by this number."""

    @property
    def roles(self) -> str:
        """Such as "train, test"."""
        return ", ".join(dict.fromkeys(role for role, _ in self.records))


@dataclass(frozen=True)
class Step:
    """A sign of life: what is looked at next."""

    where: str


@dataclass(frozen=True)
class Digest:
    """SHA-256 of the file's content."""

    hexdigest: str


@dataclass(frozen=True)
class Timing:
    """Seconds that a clip takes on one core."""

    index_s: float
    """To find the frames of a file that was never opened."""
    clip_s: float
    """To open the file again, choose a clip as in training and decode it."""


Probe = Finding | Step | Digest | Timing


@dataclass(frozen=True)
class FileCheck:
    """How files are opened, and how much of them is decoded."""

    sampler: ClipSampler
    """Which frames a segment offers, and which of them make a clip."""
    opener: RecordOpener = open_record
    untrusted: bool = False
    """Every file is a stranger's; for its process, and where it is opened past the opener."""
    full: bool = False
    """Decode every frame of each segment; else the first, the middle and the last."""

    def __call__(self, file: VideoFile) -> Iterator[Probe]:
        """What is found, as it is found."""
        where = str(file.path)
        yield Step(where)
        if not os.path.exists(file.path):
            yield Finding("missing", file.roles, where, "no such file")
            return
        if file.path.is_file() and file.path.stat().st_size == 0:
            yield Finding("empty", file.roles, where, "the file has no content")
            return
        try:
            yield from self._look_into(file)
        except DecodeError as error:
            message = f"it does not open as a video: {without_path(error, file.path)}"
            yield Finding("unreadable", file.roles, where, message)

    def _look_into(self, file: VideoFile) -> Iterator[Probe]:
        started = time.perf_counter()
        with self.opener(file.records[0][1]) as video:
            index_s = time.perf_counter() - started
            yield from _check_header(file, video, untrusted=self.untrusted)
        yield from self._time_clip(file, index_s)
        for role, record in file.records:
            yield Step(segment_name(record))
            yield from self._check_segment(role, record)
        yield from _hash(file)

    def _time_clip(self, file: VideoFile, index_s: float) -> Iterator[Timing]:
        if file.timing_seed is None:
            return
        record = file.records[0][1]
        started = time.perf_counter()
        try:
            with self.opener(record) as video:
                segment = self.sampler.segment(video, record)
                generator = sample_generator(file.timing_seed)
                video.frames(segment[self.sampler.random(len(segment), generator=generator)])
        except DecodeError:
            return  # the check of the segment tells it
        yield Timing(index_s, time.perf_counter() - started)

    def _check_segment(self, role: str, record: VideoRecord) -> Iterator[Probe]:
        where = segment_name(record)
        if record.stop_s is not None and record.stop_s <= (record.start_s or 0):
            yield Finding("segment", role, where, "it ends before it starts, or has no length")
            return
        # Opened anew, as in training: what fails in one segment leaves nothing to the next.
        with self.opener(record) as video:
            try:
                segment = self.sampler.segment(video, record).unique()
            except DecodeError:
                yield Finding("segment", role, where, f"the video ends at {end_s(video):.3f} s")
                return
            yield from _check_end(video, role, record)
            try:
                for part in self._parts(segment):
                    video.frames(part)
                    yield Step(where)
            except DecodeError as error:
                yield Finding("damaged", role, where, without_path(error, record.path))

    def _parts(self, segment: Tensor) -> Sequence[Tensor]:
        if not self.full:
            return [segment[[0, len(segment) // 2, -1]]]
        parts: Sequence[Tensor] = segment.split(FRAMES_AT_A_TIME)
        return parts


def on_one_thread(check: FileCheck, file: VideoFile) -> Iterator[Probe]:
    """The check in a process of its own, as a loader's worker."""
    torch.set_num_threads(1)
    if check.untrusted:
        limit_process()
    yield from check(file)


def segment_name(record: VideoRecord) -> str:
    """The file, or file@start-stop."""
    if record.start_s is None and record.stop_s is None:
        return str(record.path)
    stop = "end" if record.stop_s is None else f"{record.stop_s:g}"
    return f"{record.path}@{record.start_s or 0:g}-{stop}"


def without_path(error: Exception, path: Path) -> str:
    """The message alone, where the path stands beside it."""
    return str(error).removeprefix(f"{path}: ")


def end_s(video: VideoDecoder) -> float:
    """When the last frame has been shown for one period, in seconds."""
    return float(video.times[-1]) + 1 / video.fps


def _check_end(video: VideoDecoder, role: str, record: VideoRecord) -> Iterator[Finding]:
    if record.stop_s is None:
        return
    missing_s = record.stop_s - end_s(video)
    if missing_s > 1 / video.fps:
        kind = "segment" if missing_s > OVERSHOOT_S else "segment end"
        message = f"the video ends at {end_s(video):.3f} s, {missing_s:.3f} s before the segment"
        yield Finding(kind, role, segment_name(record), message)


def _check_header(file: VideoFile, video: VideoDecoder, *, untrusted: bool) -> Iterator[Finding]:
    """What the container claims, against the frames that are there.

    A file without an index that was cut between two packets reads well: only the header tells.
    """
    if not file.path.is_file() or is_image(file.path):
        return
    container, stream = open_container(file.path, untrusted=untrusted)
    with container:
        claimed, claimed_s = stream.frames, (container.duration or 0) / AV_TIME_BASE
        own_s = min(claimed_s, _tagged_s(stream.metadata.get("DURATION", "")))
    there, past = f"{video.num_frames} frames, {end_s(video):.3f} s", end_s(video) + OVERSHOOT_S
    if claimed and claimed != video.num_frames:
        kind, message = "header", f"it claims {claimed} frames"
    elif not claimed and own_s > past:
        kind, message = "cut off", f"it claims {own_s:.3f} s of video"
    elif not claimed and claimed_s > past:
        kind, message = "header", f"it claims {claimed_s:.3f} s of video or sound"
    else:
        return
    yield Finding(kind, file.roles, str(file.path), f"{message}; {there} can be shown")


def _tagged_s(tag: str) -> float:
    """Seconds of a tag such as 00:01:02.500000000, which Matroska files have a stream; else 0."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", tag)
    return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3]) if match else 0.0


def _hash(file: VideoFile) -> Iterator[Probe]:
    if not file.is_hashed:
        return
    digest = hashlib.sha256()
    with errors_name(file.path), file.path.open("rb") as content:
        while part := content.read(BYTES_AT_A_TIME):
            digest.update(part)
            yield Step(str(file.path))
    yield Digest(digest.hexdigest())
