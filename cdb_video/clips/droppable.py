"""Which packets of H.264 no other frame is decoded from: they may be left out, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import av
from av.video.stream import VideoStream

SLICES = frozenset({1, 2, 5})
"""NAL unit types that start a slice of a picture (H.264, table 7-1): plain, partitioned, IDR."""


def droppable_test(stream: VideoStream) -> Callable[[av.Packet[VideoStream]], bool]:
    """A test of the stream's packets; of other codecs than H.264, none is droppable.

    nal_ref_idc 0 says that a picture is a reference for none (H.264, 7.4.1). In what x264 writes
    by default that is every second or third frame.
    """
    if stream.codec_context.name != "h264":
        return lambda packet: False
    about = stream.codec_context.extradata or b""
    # avcC (ISO/IEC 14496-15, 5.3.3.1), of mp4 and mkv, starts with version 1 and tells how long
    # the lengths before NAL units are; else there are start codes (H.264, annex B).
    length_size = (about[4] & 3) + 1 if len(about) > 4 and about[0] == 1 else None
    return lambda packet: _is_unreferenced(bytes(packet), length_size)


def _is_unreferenced(data: bytes, length_size: int | None) -> bool:
    starts = _by_start_codes(data) if length_size is None else _by_lengths(data, length_size)
    # A picture may be two fields, of which one can be a reference and the other not.
    priorities = [data[i] >> 5 & 3 for i in starts if i < len(data) and data[i] & 31 in SLICES]
    return bool(priorities) and not any(priorities)


def _by_lengths(data: bytes, length_size: int) -> Iterator[int]:
    """Where NAL units start, each after its length."""
    start = length_size
    while start <= len(data):
        yield start
        start += int.from_bytes(data[start - length_size : start], "big") + length_size


def _by_start_codes(data: bytes) -> Iterator[int]:
    """Where NAL units start, each after 00 00 01."""
    start = data.find(b"\0\0\1")
    while start >= 0:
        yield start + 3
        start = data.find(b"\0\0\1", start + 3)
