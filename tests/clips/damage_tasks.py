"""What the processes of test_damaged_files do: decode a file that may be damaged anyhow."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from cdb_video.clips.decoders import open_video
from cdb_video.errors import DecodeError


@dataclass(frozen=True)
class Job:
    path: Path
    seed: int
    num_frames: int | None = None
    """Frames to draw; None: every one."""


@dataclass(frozen=True)
class Shown:
    """Frames that were given."""

    asked: tuple[int, ...]
    checksums: tuple[int, ...]
    """CRC-32 of the pixels of each frame that came."""
    sizes: tuple[tuple[int, ...], ...]
    """(C, H, W) of each."""
    size: tuple[int, ...]
    """(C, H, W) as the open video says."""
    times: tuple[float, ...]
    """Seconds of each frame asked for."""


@dataclass(frozen=True)
class Refused:
    message: str


def decode(job: Job) -> Iterator[Shown | Refused]:
    """Open, ask for frames, tell what came; any other error than a DecodeError ends the process."""
    torch.set_num_threads(1)
    try:
        yield _decode(job)
    except DecodeError as error:
        yield Refused(str(error))


def _decode(job: Job) -> Shown:
    with open_video(job.path) as video:
        if job.num_frames is None:
            asked = torch.arange(video.num_frames)
        else:
            generator = torch.Generator().manual_seed(job.seed)
            asked = torch.randint(video.num_frames, (job.num_frames,), generator=generator)
        frames = [frame for part in asked.split(64) for frame in video.frames(part)]
        assert all(frame.dtype == torch.uint8 for frame in frames)
        return Shown(
            asked=tuple(asked.tolist()),
            checksums=tuple(zlib.crc32(frame.contiguous().numpy().tobytes()) for frame in frames),
            sizes=tuple(tuple(frame.shape) for frame in frames),
            size=(3, video.height, video.width),
            times=tuple(round(t, 6) for t in video.times[asked].tolist()),
        )
