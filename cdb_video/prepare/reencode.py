"""One video file re-encoded for training: smaller, short groups of pictures, the same frames."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.container import OutputContainer
from av.video.reformatter import Colorspace, Interpolation
from av.video.stream import VideoStream
from torch import Tensor

from cdb_video.clips.base import errors_name
from cdb_video.clips.decoders import open_video
from cdb_video.clips.index import FrameIndex, decoded_index, open_container, packet_index
from cdb_video.clips.untrusted import refuse_size
from cdb_video.errors import DecodeError

TIME_TOLERANCE_S = 1e-6
"""How far a frame of the new file may be shown from its time in the source."""
FINEST_UNIT = Fraction(1, 1_000_000)
"""Of times in the new file. Finer ones would overflow the 32 bits that mp4 has from frame to frame
after seconds; a coarser source keeps its own unit, and with it the exact times."""
FRAMES_A_SIGN = 50
"""Between signs of life."""
RGB_MATRIX = 0
"""AVCOL_SPC_RGB: the frames have no matrix, as they are not YUV."""


@dataclass(frozen=True)
class Settings:
    """How files are made; every file of a folder by the same."""

    short_side: int = 256
    """Pixels of the shorter side of larger videos, even; smaller ones keep their size."""
    gop: int = 32
    """Frames from one key frame to the next. 24 to 48 suit dense clips: longer groups cost more
    decoding a clip, shorter ones bytes."""
    crf: int = 23
    """x264's constant rate factor, 1 to 51: lower is better and larger."""
    preset: str = "medium"
    """x264's, superfast to veryslow: slower is smaller at the same quality."""


@dataclass(frozen=True)
class Encoded:
    """What the new file shows."""

    times: Tensor
    """(num_frames,) float64 seconds from the first frame."""
    fps: float
    """Mean frames a second."""
    height: int
    width: int

    @property
    def duration_s(self) -> float:
        """The last frame is shown for one period."""
        return float(self.times[-1]) + 1 / self.fps


def reencode(
    source: Path, target: Path, settings: Settings, *, untrusted: bool = False
) -> Generator[int, None, Encoded]:
    """Write a source's frames as H.264 (4:2:0, 8 bit) in mp4, without sound; yields frames done.

    The frames are those that training would see, in their order, upright, at their times from the
    first frame on. Matrix and range of the colours stay what the source is tagged with. Groups of
    pictures are closed and of equal length: a key frame at a scene cut would save no seek.

    Raises:
        DecodeError: the source is damaged, or its frames are not all of one size; an untrusted one
            is not of an allowed codec and size.
        FFmpegError: the target cannot be written.
    """
    with errors_name(source):
        index, unit = _read_index(source, untrusted=untrusted)
    unit, ticks = _clock(index, unit)
    ends = [*ticks[1:], ticks[-1] + max(round(1 / index.fps / unit), 1)]
    height, width = planned_size(index.height, index.width, settings.short_side)
    with av.open(str(target), "w", format="mp4") as container:
        stream: VideoStream | None = None
        for i, decoded in enumerate(_frames(source, index, untrusted=untrusted)):
            frame = _converted(decoded, height=height, width=width)
            if stream is None:
                stream = _add_stream(container, settings, frame, unit, index.fps)
            frame.time_base, frame.pts, frame.duration = unit, ticks[i], ends[i] - ticks[i]
            frame.pict_type = 0  # else the source's key frames become the target's
            container.mux(stream.encode(frame))
            if i % FRAMES_A_SIGN == 0:
                yield i
        if stream is not None:
            container.mux(stream.encode(None))
    return Encoded(index.times, index.fps, height, width)


def verify(target: Path, expected: Encoded) -> None:
    """Open a new file as training does: DecodeError where it does not show what it should."""
    with open_video(target) as video:
        if video.num_frames != len(expected.times):
            raise DecodeError(
                f"{target}: {video.num_frames} frames were written of {len(expected.times)}"
            )
        apart = float((video.times - expected.times).abs().max())
        if apart > TIME_TOLERANCE_S:
            raise DecodeError(f"{target}: a frame is shown {apart:.2g} s from its time")
        last = video.num_frames - 1
        frames = video.frames(torch.tensor([0, last // 2, last]))
        if frames.shape[2:] != (expected.height, expected.width):
            raise DecodeError(f"{target}: frames of {tuple(frames.shape[2:])} were written")


def planned_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width), even as 4:2:0 needs them; never larger than the source, but for one pixel.

    Larger videos get the short side and the nearest even number for the other.
    """
    short = min(height, width)
    if short <= short_side:
        return max(height - height % 2, 2), max(width - width % 2, 2)
    scale = short_side / short
    return 2 * round(height * scale / 2), 2 * round(width * scale / 2)


def save_for_good(written: Path, target: Path) -> None:
    """Rename a file over another; after a loss of power there is the old or the new one, whole."""
    with written.open("rb") as file:
        os.fsync(file.fileno())
    written.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_index(path: Path, *, untrusted: bool) -> tuple[FrameIndex, Fraction]:
    """The frames that training would see, and the unit of the file's own times in seconds."""
    if not path.is_file():  # a pipe would be waited for
        raise DecodeError(f"{path}: not a regular file")
    container, stream = open_container(path, untrusted=untrusted)
    with container:
        index, unit = packet_index(container, stream), stream.time_base
    if index is None:
        container, stream = open_container(path, untrusted=untrusted)
        with container:
            index = decoded_index(container, stream)
    if untrusted:
        size = {"height": index.height, "width": index.width}
        refuse_size(path, **size, num_frames=len(index.times))
    return index, unit or FINEST_UNIT


def _clock(index: FrameIndex, unit: Fraction) -> tuple[Fraction, list[int]]:
    """A unit in which the times are whole numbers, and these; else microseconds."""
    for candidate in (unit, 1 / Fraction(index.fps).limit_denominator(1001)):
        ticks = (index.times / float(candidate)).round()
        exact = (ticks * float(candidate) - index.times).abs().max() < TIME_TOLERANCE_S / 100
        if candidate.denominator <= FINEST_UNIT.denominator and exact:
            return candidate, ticks.long().tolist()
    return FINEST_UNIT, (index.times / float(FINEST_UNIT)).round().long().tolist()


def _frames(path: Path, index: FrameIndex, *, untrusted: bool) -> Iterator[av.VideoFrame]:
    """The frames of the index, one at a time: a long video is never held."""
    count, num_frames = 0, len(index.times)
    size: tuple[int, int] | None = None
    with errors_name(path):
        container, stream = open_container(path, untrusted=untrusted)
        with container:
            for i, frame in enumerate(container.decode(stream)):
                if i < num_frames and not index.by_order and frame.pts != index.pts[i]:
                    raise DecodeError(f"{path}: damaged: frame {i} of {num_frames} has no time")
                if frame.is_corrupt:
                    raise DecodeError(f"{path}: frame {i} of {num_frames} is damaged")
                size = size or (frame.height, frame.width)
                if (frame.height, frame.width) != size:
                    raise DecodeError(f"{path}: frame {i} is of another size than the first")
                count = i + 1
                if count <= num_frames:
                    yield frame
    if count != num_frames:
        raise DecodeError(f"{path}: damaged: {count} frames decode of {num_frames} in the file")


def _converted(frame: av.VideoFrame, *, height: int, width: int) -> av.VideoFrame:
    """Scaled, as YUV 4:2:0 of the same matrix and range, upright; the size is the upright one."""
    turns = round(frame.rotation / 90)
    if turns % 2:
        height, width = width, height
    is_rgb = frame.format.is_rgb or frame.colorspace == RGB_MATRIX
    scaled = frame.reformat(
        width=width,
        height=height,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU601 if is_rgb else None,
        interpolation=Interpolation.BICUBIC,
        threads=1,
    )
    return scaled if turns % 4 == 0 else _turned(scaled, turns)


def _turned(frame: av.VideoFrame, turns: int) -> av.VideoFrame:
    """By quarter turns, counter-clockwise; plane by plane, so no colour is computed anew."""
    height, width = frame.height, frame.width
    packed = frame.to_ndarray().reshape(-1)
    luma, *chroma = np.split(packed, [height * width, height * width * 5 // 4])
    planes = [luma.reshape(height, width), *(c.reshape(height // 2, width // 2) for c in chroma)]
    turned = [np.rot90(plane, turns) for plane in planes]
    flat = np.concatenate([plane.reshape(-1) for plane in turned])
    upright = av.VideoFrame.from_ndarray(
        flat.reshape(-1, turned[0].shape[1]).astype(np.uint8), format="yuv420p"
    )
    upright.colorspace, upright.color_range = frame.colorspace, frame.color_range
    upright.color_primaries, upright.color_trc = frame.color_primaries, frame.color_trc
    return upright


def _add_stream(
    container: OutputContainer, settings: Settings, like: av.VideoFrame, unit: Fraction, fps: float
) -> VideoStream:
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = like.width, like.height, "yuv420p"
    context.time_base = unit
    context.thread_count = 1  # a process a file is the parallel part
    context.colorspace, context.color_range = like.colorspace, like.color_range
    context.color_primaries, context.color_trc = like.color_primaries, like.color_trc
    gop = f"keyint={settings.gop}:min-keyint={settings.gop}:scenecut=0:open-gop=0"
    stream.options = {
        "crf": str(settings.crf),
        "preset": settings.preset,
        "x264-params": f"{gop}:threads=1",
    }
    return stream
