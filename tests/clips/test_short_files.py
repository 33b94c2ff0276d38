"""A file of which fewer frames come than it has is refused, though nothing else complains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch

from cdb_video.clips.decoders import open_video
from cdb_video.errors import DecodeError

MakeVideo = Callable[..., Path]


def packets(path: Path) -> list[tuple[int, int, bool]]:
    """(first byte, size, whether it is a key frame) of every packet."""
    with av.open(str(path)) as container:
        found = [packet for packet in container.demux(video=0) if packet.size]
        return [(packet.pos or 0, packet.size, packet.is_keyframe) for packet in found]


def test_a_file_cut_between_two_packets_is_short_of_its_index(
    coded_video: MakeVideo, tmp_path: Path
) -> None:
    path = tmp_path / "web.mp4"
    with (
        av.open(str(coded_video(num_frames=48, b_frames=0))) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    start, size, _ = packets(path)[20]
    path.write_bytes(path.read_bytes()[: start + size])

    with pytest.raises(DecodeError, match=r"web\.mp4: .* 21 frames are there of the 48 in its in"):
        open_video(path)


def test_a_lost_key_frame_is_missed_where_times_do_not_tell(coded_video: MakeVideo) -> None:
    path = coded_video("by_order.avi", num_frames=48)
    with open_video(path) as video:
        assert len(video.frames(torch.arange(video.num_frames))) == 48
    start, size, _ = [packet for packet in packets(path) if packet[2]][1]
    content = path.read_bytes()
    path.write_bytes(content[:start] + content[start + size // 2 :])
    # FFmpeg finds 45 packets again, and leaves out those that need the key frame.

    with pytest.raises(DecodeError, match=r"by_order\.avi: damaged: 39 frames decode of 45 in"):
        open_video(path)
