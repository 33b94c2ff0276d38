"""Which frames a video file shows, and when: read from its packets, before anything is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import av
import torch
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from torch import Tensor

from cdb_video.clips.droppable import droppable_test
from cdb_video.clips.untrusted import OPTIONS, refuse_stream
from cdb_video.errors import DecodeError

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,gif,flv"
"""Containers that hold their own data. Playlists, which name other files, are not among them."""
_TELLS_ALL = frozenset({"mov"})
"""Formats whose headers say what other files are probed for; Matroska's do not tell of B-frames."""
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})
PLACEHOLDER_BYTES = 8
"""Of MPEG-4 in AVI: a packet as small may stand for a frame that came before it."""
UNPROBED = MappingProxyType({"probesize": "32768", "analyzeduration": "0"})
"""Without decoding first frames to learn what is in the file: 1 ms in place of 6 for 640x480."""


@dataclass(frozen=True)
class FrameIndex:
    """The shown frames of a file in order of presentation: plain numbers, fit for a cache."""

    times: Tensor
    """(num_frames,) float64 seconds from the first shown frame, increasing."""
    fps: float
    """Mean frames a second."""
    pts: Tensor
    """(num_frames,) int64 presentation times in the stream's units; (0,) if known by order only."""
    key: Tensor
    """(num_frames,) int64: the row of `key_pts` from which a frame decodes; (0,) as above."""
    key_pts: Tensor
    """(num_keys,) int64 presentation times of the key frames, in the order of the file."""
    droppable: Tensor
    """(num_frames,) bool: no other frame is decoded from it; (0,) as above."""
    height: int
    """Of the first frame, upright, in pixels."""
    width: int
    open_gop: bool = False
    """Some frames are shown before the key frame that they follow in the file."""

    @property
    def by_order(self) -> bool:
        """Times cannot find a frame: it is the n-th that comes out when decoding from the start."""
        return self.pts.numel() == 0


def open_container(path: Path, *, untrusted: bool = False) -> tuple[InputContainer, VideoStream]:
    """A video file and its best video stream, on one thread; the caller closes the container.

    Only the file itself is read: no other protocol, and no playlist, whatever the file's name says.
    Of an untrusted one, only codecs and sizes that `untrusted.py` allows.
    """
    # FFmpeg's log callback takes a lock that threads and forks have been seen to hang on.
    av.logging.set_level(None)
    container = _open(path, UNPROBED, decoder_options={"skip_frame": "all"})
    if not _TELLS_ALL & set(container.format.name.split(",")):
        container.close()
        container = _open(path, decoder_options=OPTIONS if untrusted else NO_OPTIONS)
    try:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            raise DecodeError(f"{path}: no video in this file (sound only)")
        if untrusted:
            refuse_stream(path, stream)
        # Many decoders on one thread each beat one on many: loader workers are the parallel part.
        stream.codec_context.thread_count = 1
    except BaseException:
        container.close()
        raise
    return container, stream


def _open(
    path: Path,
    options: Mapping[str, str] = NO_OPTIONS,
    *,
    decoder_options: Mapping[str, str],
) -> InputContainer:
    try:
        return av.open(
            # An absolute path: FFmpeg would read "concat:a" or "-a" as something else than a file.
            str(path.absolute()),
            container_options={
                "format_whitelist": FORMATS,
                "protocol_whitelist": "file",
                **options,
            },
            options=dict(decoder_options),
        )
    except (av.error.ArgumentError, av.error.InvalidDataError):
        raise DecodeError(f"{path}: not a video file of a format that is read: {FORMATS}") from None


def packet_index(container: InputContainer, stream: VideoStream) -> FrameIndex | None:
    """The index as the packets tell it; None where they cannot be trusted to.

    Costs one reading of the file, and decoding up to its first frame. Packets that are decoded but
    not shown (before an edit list's start, VP8's hidden references) are no frames. Not trusted:
    timestamps that are missing, made up or repeated, and frames without a key frame before them in
    both orders, which some decoders show and others drop.
    """
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        return None  # AVI stores the order of decoding alone; FFmpeg makes times of it
    open_gop = False
    num_packets = 0
    shown: list[tuple[int, int, bool]] = []  # pts, row of its key frame, whether it is droppable
    key_pts: list[int] = []
    size: tuple[int, int] | None = None
    is_droppable = droppable_test(stream)
    for packet in container.demux(stream):
        size = size or _first_size(packet)
        if packet.size == 0:  # the end
            continue
        num_packets += 1
        if packet.is_corrupt:
            raise DecodeError(f"{container.name}: damaged or cut off after {len(shown)} frames")
        if packet.pts is None:
            return None
        if packet.is_keyframe:
            key_pts.append(packet.pts)
        if packet.is_discard or _is_hidden_vp8(stream, packet):
            continue
        # A frame shown before the key frame it follows in the file (open GOP) needs the one before.
        key = len(key_pts) - 1
        if key >= 0 and packet.pts < key_pts[key]:
            key -= 1
            open_gop = True
        if key < 0:
            return None
        shown.append((packet.pts, key, is_droppable(packet)))
    _refuse_cut(container, stream, num_packets)
    if not shown:
        raise DecodeError(f"{container.name}: no frames in this file")
    if size is None:
        raise DecodeError(f"{container.name}: no frame of this file decodes")

    pts, key_rows, droppable = torch.tensor(sorted(shown), dtype=torch.int64).unbind(1)
    if not _increases(pts):
        return None
    times, fps = _clock(pts, stream)
    return FrameIndex(
        times,
        fps,
        pts.clone(),
        key_rows.clone(),
        torch.tensor(key_pts, dtype=torch.int64),
        droppable.bool(),
        *size,
        open_gop=open_gop,
    )


def decoded_index(container: InputContainer, stream: VideoStream) -> FrameIndex:
    """The index by order, for files whose packets do not tell it. Costs decoding the whole file.

    Raises:
        DecodeError: nothing decodes, or fewer frames than there are packets of one: a decoder that
            lost a key frame leaves out those after it without a word.

    """
    found: list[int | None] = []
    size = 0, 0
    stored = 0
    least = PLACEHOLDER_BYTES if stream.codec_context.name == "mpeg4" else 0
    by_fields = False
    for packet in container.demux(stream):
        is_shown = not (packet.is_discard or _is_hidden_vp8(stream, packet))
        stored += is_shown and packet.size > least
        for frame in packet.decode():
            size = upright_size(frame) if not found else size
            by_fields |= frame.interlaced_frame
            found.append(frame.pts)
    if not found:
        raise DecodeError(f"{container.name}: no frame of this file decodes")
    if len(found) < stored and not by_fields:
        raise DecodeError(
            f"{container.name}: damaged: {len(found)} frames decode of {stored} in the file"
        )
    known = [pts for pts in found if pts is not None]
    pts = torch.tensor(known, dtype=torch.int64)
    if len(known) == len(found) and _increases(pts):
        times, fps = _clock(pts, stream)
    else:
        rate = _header_rate(stream)
        if rate is None:
            raise DecodeError(f"{container.name}: neither timestamps nor a frame rate")
        times, fps = torch.arange(len(found), dtype=torch.float64) / float(rate), float(rate)
    none = torch.empty(0, dtype=torch.int64)
    return FrameIndex(times, fps, none, none, none, none.bool(), *size)


def _refuse_cut(container: InputContainer, stream: VideoStream, num_packets: int) -> None:
    """A file cut between two packets reads well to its new end: only its own index tells."""
    if num_packets < len(stream.index_entries):
        stored = sum(entry.size > 0 for entry in stream.index_entries)
        if num_packets < stored:
            raise DecodeError(
                f"{container.name}: damaged or cut off: {num_packets} frames are there of the "
                f"{stored} in its index"
            )


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) as players show the frame, which know quarter turns."""
    size = frame.height, frame.width
    return size[::-1] if quarter_turns(frame) % 2 else size


def quarter_turns(frame: av.VideoFrame) -> int:
    """To make the frame upright, counter-clockwise: FFmpeg's angle is, and numpy's rot90."""
    return round(frame.rotation / 90)


def _first_size(packet: av.Packet[VideoStream]) -> tuple[int, int] | None:
    try:
        return next((upright_size(frame) for frame in packet.decode()), None)
    except av.error.FFmpegError:
        return None  # a file may start with what cannot be shown


def _clock(pts: Tensor, stream: VideoStream) -> tuple[Tensor, float]:
    """Seconds from the first frame (num_frames,), and the mean rate."""
    unit = stream.time_base
    if unit is None:
        raise DecodeError(f"{stream.container.name}: the video stream has no time base")
    ticks = pts - pts[0]
    times = ticks.double() * unit.numerator / unit.denominator
    if len(pts) == 1:
        return times, float(_header_rate(stream) or 1)
    return times, float(Fraction(len(pts) - 1) / (int(ticks[-1]) * unit))


def _header_rate(stream: VideoStream) -> Fraction | None:
    return stream.average_rate or stream.guessed_rate


def _increases(pts: Tensor) -> bool:
    return bool((pts[1:] > pts[:-1]).all())


def _is_hidden_vp8(stream: VideoStream, packet: av.Packet[VideoStream]) -> bool:
    # RFC 6386, 9.1: bit 4 of a frame's first byte is show_frame. VP9 and AV1 pack what is hidden
    # into the packet of a frame that is shown.
    return (
        stream.codec_context.name == "vp8" and packet.size > 0 and not memoryview(packet)[0] & 0x10
    )
